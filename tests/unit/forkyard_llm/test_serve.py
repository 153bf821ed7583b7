"""Supervision of a server, with a small Python program in llama-server's place."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import serve
from forkyard_llm.errors import EngineError, ModelError, UsageError
from forkyard_llm.payloads import read_payload
from forkyard_llm.serve import Ready, ServeOptions, Supervisor, is_loopback

MakePayload = Callable[..., Path]

SERVER = """\
#!{python}
import http.server, os, pathlib, signal, sys, time
state = pathlib.Path({state!r})
mode = (state / "mode").read_text() if (state / "mode").exists() else ""
with (state / "starts").open("a") as starts:
    print(os.getpid(), *sys.argv[1:], file=starts)
print("server says hello", flush=True)
if mode == "exit":
    sys.exit("no such tensor")
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
began = time.monotonic()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if mode == "never" or time.monotonic() - began < 0.2 else 200)
        self.end_headers()
    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
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
        process.wait(timeout=30)
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


@pytest.mark.parametrize("argument", ["-m", "--model", "--host", "--port", "--port=1"])
def test_our_own_options_are_not_taken_twice(make: Callable[..., Supervisor], argument: str) -> None:
    with pytest.raises(UsageError, match="is set by forkyard-llm itself"):
        make(extra=["-t", "1", argument])


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


def test_urls(make: Callable[..., Supervisor]) -> None:
    assert make(host="::1").url.startswith("http://[::1]:")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local
