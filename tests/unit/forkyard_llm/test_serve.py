"""Supervision of a server, with a small Python program in llama-server's place."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forkyard_llm import serve
from forkyard_llm.errors import EngineError, ModelError, UsageError
from forkyard_llm.health import has_key
from forkyard_llm.payloads import read_payload
from forkyard_llm.serve import Ready, ServeOptions, Supervisor, is_loopback

MakePayload = Callable[..., Path]

# A key and certificate made for this test and known to everybody.
CERTIFICATE = Path(__file__).with_name("localhost.pem")

SERVER = """\
#!{python}
import http.server, json, os, pathlib, signal, socket, ssl, sys, time
state = pathlib.Path({state!r})
mode = (state / "mode").read_text() if (state / "mode").exists() else ""
with (state / "starts").open("a") as starts:
    print(os.getpid(), *sys.argv[1:], file=starts)
(state / "environment").write_text(json.dumps(dict(os.environ)))
print("server says hello", flush=True)
if mode == "exit":
    sys.exit("no such tensor")
if mode.startswith("print "):
    print(mode.removeprefix("print "))
    sys.exit(1)
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
prefix = (state / "prefix").read_text() if (state / "prefix").exists() else ""
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
began = time.monotonic()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = 200, '{{"status": "ok"}}'
        if mode == "never" or time.monotonic() - began < 0.2:
            status, body = 503, '{{"error": {{"message": "Loading model"}}}}'
        elif mode.startswith("answer "):
            _, status, body = mode.split(" ", 2)
        elif self.path != prefix + "/health":
            status, body = 404, '{{"error": {{"message": "File Not Found"}}}}'
        self.send_response(int(status))
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *_):
        pass

class Server(http.server.HTTPServer):
    def server_bind(self):
        if mode == "shares":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

port = int(sys.argv[sys.argv.index("--port") + 1])
if mode == "elsewhere":
    time.sleep(60)
server = Server(("127.0.0.1", port), Handler)
if mode.startswith("tls "):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(mode.removeprefix("tls "))
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def make(make_payload: MakePayload, tmp_path: Path, state: Path) -> Callable[..., Supervisor]:
    payload = read_payload(make_payload())
    tool = payload.tool("llama-server")
    tool.write_text(SERVER.format(python=sys.executable, state=str(state)))
    tool.chmod(0o755)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))

    def build(**options: object) -> Supervisor:
        return Supervisor(payload, ServeOptions(**{"model": model, "port": 0, "grace": 5.0, **options}))  # type: ignore[arg-type]

    return build


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_POLL_S", 0.02)
    monkeypatch.setattr(serve, "_MAX_BACKOFF_S", 0.05)
    monkeypatch.setattr(serve, "_LAST_WORDS_S", 0.1)


def starts(state: Path) -> list[list[str]]:
    return [line.split() for line in (state / "starts").read_text().splitlines()]


def alive(pid: int) -> bool:
    try:
        # A zombie whose parent has not looked yet is dead.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end_with(number: int) -> Callable[[Ready], None]:
    return lambda ready: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_served_until_a_signal(make: Callable[..., Supervisor], state: Path, number: int) -> None:
    seen: list[Ready] = []
    supervisor = make(extra=["-t", "2"])
    before = signal.getsignal(signal.SIGINT)

    def on_ready(ready: Ready) -> None:
        seen.append(ready)
        assert alive(ready.pid)
        os.kill(os.getpid(), number)

    assert supervisor.run(on_ready) == number
    assert signal.getsignal(signal.SIGINT) is before
    (ready,) = seen
    assert ready.url == supervisor.url
    assert ready.url.startswith("http://127.0.0.1:")
    assert not alive(ready.pid)
    assert "server says hello" in ready.log_file.read_text()
    ((pid, *arguments),) = starts(state)
    assert int(pid) == ready.pid
    assert arguments[:1] == ["-m"]
    assert arguments[-2:] == ["-t", "2"]


def test_a_crash_is_restarted(make: Callable[..., Supervisor], state: Path) -> None:
    seen: list[Ready] = []

    def on_ready(ready: Ready) -> None:
        seen.append(ready)
        os.kill(ready.pid if len(seen) < 3 else os.getpid(), signal.SIGSEGV if len(seen) < 3 else signal.SIGTERM)

    make().run(on_ready)
    assert [ready.restarts for ready in seen] == [0, 1, 2]
    assert len({ready.url for ready in seen}) == 1
    assert len(starts(state)) == 3


def test_crashes_in_a_row_end_it(make: Callable[..., Supervisor], state: Path) -> None:
    with pytest.raises(EngineError, match=r"crashed with SIGSEGV again, after 2 restarts; log: .*serve-") as caught:
        make(max_restarts=2).run(lambda ready: os.kill(ready.pid, signal.SIGSEGV))
    assert "| server says hello" in str(caught.value)
    assert len(starts(state)) == 3


def test_a_server_that_ends_well_is_not_restarted(make: Callable[..., Supervisor], state: Path) -> None:
    assert make().run(lambda ready: os.kill(ready.pid, signal.SIGTERM)) == 0
    assert len(starts(state)) == 1


def test_a_server_that_does_not_start_shows_its_log(make: Callable[..., Supervisor], state: Path) -> None:
    (state / "mode").write_text("exit")
    with pytest.raises(EngineError, match="ended with exit code 1 before it was ready") as caught:
        make().run(lambda ready: None)
    assert "| no such tensor" in str(caught.value)
    assert len(starts(state)) == 1


def test_a_server_that_is_never_ready(make: Callable[..., Supervisor], state: Path) -> None:
    (state / "mode").write_text("never")
    with pytest.raises(EngineError, match="was not ready after"):
        make(startup_timeout=1.0).run(lambda ready: None)
    assert not alive(int(starts(state)[0][0]))


def test_a_server_deaf_to_sigterm_is_killed(make: Callable[..., Supervisor], state: Path) -> None:
    (state / "mode").write_text("deaf")
    started = time.monotonic()
    make(grace=0.3).run(end_with(signal.SIGTERM))
    assert time.monotonic() - started < 10
    assert not alive(int(starts(state)[0][0]))


def test_the_log_file_can_be_chosen(make: Callable[..., Supervisor], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "mine.log"
    make(log_file=log).run(end_with(signal.SIGTERM))
    assert "server says hello" in log.read_text()
    with pytest.raises(UsageError, match="cannot write the log file"):
        make(log_file=tmp_path).run(lambda ready: None)


def test_without_a_writable_cache_the_log_goes_elsewhere(
    make: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "file"))
    seen: list[Ready] = []

    def on_ready(ready: Ready) -> None:
        seen.append(ready)
        os.kill(os.getpid(), signal.SIGTERM)

    make().run(on_ready)
    assert "server says hello" in seen[0].log_file.read_text()


def test_the_server_dies_with_a_killed_supervisor(make: Callable[..., Supervisor], state: Path, tmp_path: Path) -> None:
    payload = next((tmp_path / "payloads").iterdir())
    make()
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from forkyard_llm.payloads import read_payload\n"
        "from forkyard_llm.serve import ServeOptions, Supervisor\n"
        f"payload = read_payload(Path({str(payload)!r}))\n"
        f"options = ServeOptions(model=Path({str(tmp_path / 'model.gguf')!r}), port=0)\n"
        "Supervisor(payload, options).run(lambda ready: print(ready.pid, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
        process.wait(timeout=1800)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_busy_port_is_refused_even_one_that_could_be_shared(make: Callable[..., Supervisor]) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            make(port=port)


@pytest.mark.parametrize(
    "argument",
    ["-m", "--model", "--host", "--port", "--port=1", "--model_url", "-mu", "-hf", "--hf_repo", "-dr", "--hf-file=x"],
)
def test_our_own_options_are_not_taken_twice(make: Callable[..., Supervisor], argument: str) -> None:
    with pytest.raises(UsageError, match="is set by forkyard-llm itself"):
        make(extra=["-t", "1", argument])


def test_an_argument_no_program_can_be_given(make: Callable[..., Supervisor]) -> None:
    with pytest.raises(UsageError, match="contains a NUL character"):
        make(extra=["--alias", "a\0b"])


def test_whether_a_key_is_asked_for() -> None:
    assert has_key(["-t", "2", "--api_key", "k"])
    assert has_key(["--api-key-file", "f"])
    assert not has_key(["--api-prefix", "/k"])


def test_a_bad_model_is_refused_before_anything_starts(
    make: Callable[..., Supervisor], tmp_path: Path, state: Path
) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"<html>")
    with pytest.raises(ModelError):
        make(model=tmp_path / "bad.gguf")
    assert not (state / "starts").exists()


def test_an_address_of_nobody(make: Callable[..., Supervisor]) -> None:
    with pytest.raises(UsageError):
        make(host="203.0.113.1")
    with pytest.raises(UsageError, match="not an address of this machine"):
        make(host="no such host")


@pytest.mark.parametrize("host", ["/tmp/llama.sock", "127.0.0.1,::1", "", "a..b", "x\udcff", "127.0.0.1\0"])
def test_what_is_no_single_address(make: Callable[..., Supervisor], host: str) -> None:
    with pytest.raises(UsageError, match="--host"):
        make(host=host)


# -- where it answers


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-prefix", "/llm"],
        ["--api_prefix", "/llm"],
        ["--api-prefix", "/other", "--api-prefix", "/llm"],
        ["--api-prefix", "/llm", "-t", "2"],
    ],
)
def test_a_prefix_is_followed(make: Callable[..., Supervisor], state: Path, arguments: list[str]) -> None:
    (state / "prefix").write_text("/llm")
    supervisor = make(extra=arguments)
    seen: list[Ready] = []

    def on_ready(ready: Ready) -> None:
        seen.append(ready)
        os.kill(os.getpid(), signal.SIGTERM)

    supervisor.run(on_ready)
    assert seen[0].url == supervisor.url
    assert supervisor.url.endswith("/llm")


def test_a_prefix_in_the_environment_is_followed(
    make: Callable[..., Supervisor], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_API_PREFIX", "/a b")
    (state / "prefix").write_text("/a%20b")
    supervisor = make()
    assert supervisor.url.endswith("/a%20b")
    assert supervisor.run(end_with(signal.SIGTERM)) == signal.SIGTERM


def test_a_prefix_no_request_can_match(make: Callable[..., Supervisor]) -> None:
    with pytest.raises(UsageError, match="--api-prefix 'llm' must begin with a slash"):
        make(extra=["--api-prefix", "llm"])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("404 {}", "HTTP 404 Not Found"),
        ("401 go away", "HTTP 401 Unauthorized: go away"),
        ("403 {}", "HTTP 403"),
        ("301 {}", "HTTP 301"),
        ("500 oh", "HTTP 500"),
        ("200 <html>welcome</html>", "HTTP 200 OK: <html>welcome</html>"),
        ("200 [1]", "HTTP 200 OK"),
    ],
)
def test_an_answer_that_is_not_health_is_reported_at_once(
    make: Callable[..., Supervisor], state: Path, answer: str, told: str
) -> None:
    (state / "mode").write_text(f"answer {answer}")
    started = time.monotonic()
    with pytest.raises(EngineError, match="is no health address: it answers") as caught:
        make().run(lambda ready: None)
    assert time.monotonic() - started < 60
    assert told in str(caught.value)
    assert "| server says hello" in str(caught.value)
    assert not alive(int(starts(state)[0][0]))


def test_a_guarded_health_address_is_one(make: Callable[..., Supervisor], state: Path) -> None:
    body = '{"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}'
    (state / "mode").write_text(f"answer 401 {body}")
    assert make(extra=["--api-key", "k", "--api-prefix", "/llm"]).run(end_with(signal.SIGTERM)) == signal.SIGTERM


def test_https_is_found_whoever_asked_for_it(make: Callable[..., Supervisor], state: Path) -> None:
    (state / "mode").write_text(f"tls {CERTIFICATE}")
    supervisor = make()
    assert supervisor.run(end_with(signal.SIGTERM)) == signal.SIGTERM
    assert supervisor.url.startswith("https://")


def test_https_that_was_asked_for_and_is_not_there(make: Callable[..., Supervisor], state: Path) -> None:
    with pytest.raises(EngineError, match="asked for https and speaks http"):
        make(extra=["--ssl-key-file", "k"]).run(lambda ready: None)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("LLAMA_ARG_HOST", "--host"),
        ("LLAMA_ARG_PORT", "--port"),
        ("LLAMA_ARG_MODEL", "-m"),
        ("LLAMA_ARG_HF_REPO", "-m"),
        ("AIP_MODE", "--port"),
    ],
)
def test_no_variable_moves_the_server(
    make: Callable[..., Supervisor],
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    option: str,
) -> None:
    monkeypatch.setenv(name, "0.0.0.0")
    monkeypatch.setenv("LLAMA_ARG_THREADS", "2")
    make().run(end_with(signal.SIGTERM))
    environment = json.loads((state / "environment").read_text())
    assert name not in environment
    assert environment["LLAMA_ARG_THREADS"] == "2"
    assert f"{name}=0.0.0.0 is kept from llama-server: forkyard-llm's option {option} decides" in caplog.text


def test_another_program_on_the_port_is_not_taken_for_the_server(make: Callable[..., Supervisor], state: Path) -> None:
    (state / "mode").write_text("elsewhere")
    supervisor = make(startup_timeout=1.0)
    port = int(supervisor.url.rpartition(":")[2])
    with other_server(port), pytest.raises(EngineError, match="was not ready after .*, it does not listen yet"):
        supervisor.run(lambda ready: pytest.fail("that was the other one"))


def test_another_program_that_shares_the_port_is_seen(make: Callable[..., Supervisor], state: Path) -> None:
    (state / "mode").write_text("shares")
    supervisor = make()
    port = int(supervisor.url.rpartition(":")[2])
    with other_server(port), pytest.raises(EngineError, match="another process listens at .* as well"):
        supervisor.run(lambda ready: pytest.fail("half of the requests go elsewhere"))


@contextlib.contextmanager
def other_server(port: int) -> Iterator[None]:
    """A healthy server of somebody else, on a port that can be shared."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", port), Handler, bind_and_activate=False)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.server_bind()
    server.server_activate()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- why it ended


def test_only_this_start_s_log_is_searched(make: Callable[..., Supervisor], tmp_path: Path, state: Path) -> None:
    log = tmp_path / "mine.log"
    log.write_text("error: of another day\n")
    (state / "mode").write_text("print error: unknown argument: --nonsense")
    with pytest.raises(EngineError, match=r"it does not know --nonsense; `.*llama-server --help` lists") as caught:
        make(log_file=log).run(lambda ready: None)
    assert "another day" not in str(caught.value)


def test_a_killed_server_is_probably_one_without_memory(make: Callable[..., Supervisor], state: Path) -> None:
    (state / "mode").write_text("killed")
    with pytest.raises(EngineError, match=r"was killed with SIGKILL: by the kernel for lack of memory.* before it was"):
        make().run(lambda ready: None)


def test_urls(make: Callable[..., Supervisor]) -> None:
    assert make(host="::1").url.startswith("http://[::1]:")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("127.1", True),
        ("0.0.0.0", False),
        ("0", False),
        ("::", False),
        ("a..b", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local
