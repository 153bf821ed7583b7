"""Run a payload's llama-server and look after it: start, wait for its answer, restart after a crash, end it.

The server process never outlives the supervisor, however that one dies (programs.bound).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from .cache import cache_dir
from .errors import EngineError, UsageError
from .health import Address, Answer, State, api_prefix, ask, listening, wants_tls
from .payloads import Payload
from .programs import MODEL_OPTIONS, MODEL_VARIABLES, bound, environment_of, refuse, threads
from .server_devices import device_arguments
from .server_files import check_files
from .server_log import ending, explain

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "Ready", "ServeOptions", "Supervisor", "free_port", "is_loopback"]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080

# What forkyard-llm decides beside the model: the address.
_OWN_OPTIONS = {**MODEL_OPTIONS, "--host": "--host", "--port": "--port"}
# AIP_MODE makes llama.cpp listen on port AIP_HTTP_PORT or 8080.
_OWN_VARIABLES = {
    **MODEL_VARIABLES,
    "LLAMA_ARG_HOST": "--host",
    "LLAMA_ARG_PORT": "--port",
    "AIP_MODE": "--port",
}
_POLL_S = 0.1
_LAST_WORDS_S = 1.0  # for a server that answers oddly because it is about to end
_STEADY_S = 60.0  # a server that lived this long after becoming ready starts with a clean record
_MAX_BACKOFF_S = 30.0
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """What to serve and how. Times are seconds; `port` 0 is any free one; `extra` goes to llama-server."""

    model: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    extra: Sequence[str] = field(default_factory=tuple)
    allow_remote_rpc: bool = False
    startup_timeout: float = 600.0
    grace: float = 10.0
    max_restarts: int = 5
    log_file: Path | None = None


@dataclass(frozen=True)
class Ready:
    """A server that answers: told to `on_ready` after every (re)start."""

    url: str
    pid: int
    log_file: Path
    restarts: int
    seconds: float


class Supervisor:
    """One llama-server under supervision. `run` blocks until it has ended."""

    def __init__(self, payload: Payload, options: ServeOptions) -> None:
        """Check everything that can be checked before starting.

        Raises UsageError (arguments, a busy port), ModelError (a file that the server would open), AbiMismatch (no
        llama-server in the payload); UnsupportedOption and EngineError for RPC servers it cannot use.
        """
        refuse(options.extra, _OWN_OPTIONS)
        self._environment = environment_of(payload, "llama-server", _OWN_VARIABLES)
        self._tool = payload.tool("llama-server")
        self._options = options
        self._extra = device_arguments(payload, options.extra, self._environment, allow_remote=options.allow_remote_rpc)
        self._tls = wants_tls(payload.engine, options.extra, self._environment)
        prefix = api_prefix(payload.engine, options.extra, self._environment)
        check_files(options.model, options.extra, self._environment, engine=payload.engine)
        self._address = Address(options.host, free_port(options.host, options.port), prefix)
        self._log_start = 0
        self._stop: int | None = None
        self._urgent = False

    @property
    def url(self) -> str:
        """Where the server listens; whether it speaks http or https is known when it is ready."""
        return self._address.url

    def run(self, on_ready: Callable[[Ready], None]) -> int:
        """Serve until a signal ends it (result: its number) or the server ends cleanly by itself (0).

        SIGINT, SIGTERM and SIGHUP are forwarded as a request to finish; a second one, or `grace` seconds,
        kills. Raises EngineError if the server does not start, or crashes more often than `max_restarts` in a
        row.
        """
        with _log(self._options.log_file) as (path, output), self._signals():
            restarts = 0
            while True:
                process = self._start(output)
                try:
                    seconds = self._wait_ready(process, path)
                    if seconds is not None:
                        on_ready(Ready(self.url, process.pid, path, restarts, seconds))
                        lived = self._watch(process)
                    if self._stop is not None:
                        self._finish(process)
                        return self._stop
                finally:
                    _kill(process)
                code = process.returncode
                if code == 0:
                    log.info("llama-server ended by itself")
                    return 0
                restarts = 1 if lived > _STEADY_S else restarts + 1
                if restarts > self._options.max_restarts:
                    why = self._explain(path, started=True)
                    msg = f"llama-server {ending(code)} again, after {restarts - 1} restarts; {why}"
                    raise EngineError(msg)
                pause = min(2.0 ** (restarts - 1), _MAX_BACKOFF_S)
                log.warning("llama-server %s (log: %s); restart %d in %.0f s", ending(code), path, restarts, pause)
                self._sleep(pause)
                if self._stop is not None:
                    return self._stop

    # -- one server ------------------------------------------------------------------------------------------

    def _start(self, output: BinaryIO) -> subprocess.Popen[bytes]:
        options = self._options
        listen = ["--host", options.host, "--port", str(self._address.port)]
        server = [str(self._tool), "-m", str(options.model), *listen, *threads(options.extra), *self._extra]
        log.debug("starting %s", server)
        self._log_start = os.fstat(output.fileno()).st_size
        return subprocess.Popen(
            bound(server),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Its own session: a Ctrl-C in the terminal reaches it from here only. It takes a second one as
            # "die".
            start_new_session=True,
        )

    def _wait_ready(self, process: subprocess.Popen[bytes], path: Path) -> float | None:
        """Seconds until the server said that it is ready; None if a signal came first."""
        started = time.monotonic()
        last = "it does not listen yet"
        while self._stop is None:
            if process.poll() is not None:
                code = process.returncode
                why = self._explain(path, started=code == 0)  # its help is full of words like "error"
                msg = f"llama-server {ending(code)} before it was ready; {why}"
                raise EngineError(msg)
            waited = time.monotonic() - started
            answer = self._ask(process.pid)
            if answer is not None:
                last = f"its last answer: {answer.text}"
                if answer.state is State.READY:
                    self._accept(answer, path)
                    return waited
                if answer.state is State.OTHER and not self._ends(process):
                    raise EngineError(self._strange(answer, path))
            if waited > self._options.startup_timeout:
                msg = (
                    f"llama-server was not ready after {waited:.0f} s (see --startup-timeout), {last};"
                    f" {self._explain(path)}"
                )
                raise EngineError(msg)
            self._sleep(_POLL_S)
        return None

    def _ask(self, pid: int) -> Answer | None:
        """The server's answer; None while it does not listen, whoever else does on that port."""
        found = listening(pid, self._address.port)
        if found == (True, True):
            msg = (
                f"another process listens at {self._address.url} as well, and each gets a part of the requests;"
                " choose another port with --port (0: any free one)"
            )
            raise EngineError(msg)
        return ask(self._address) if found is None or found[0] else None

    def _accept(self, answer: Answer, path: Path) -> None:
        if self._tls and not answer.address.tls:
            msg = (
                f"llama-server was asked for https and speaks http at {answer.address.url}: https needs both"
                f" --ssl-key-file and --ssl-cert-file, and a payload built with TLS; log: {path}"
            )
            raise EngineError(msg)
        self._address = answer.address

    def _ends(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the server is about to end: then its log says more than its answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_LAST_WORDS_S)
        return process.poll() is not None

    def _strange(self, answer: Answer, path: Path) -> str:
        return (
            f"llama-server listens, but {answer.address.url}/health is no health address: it answers {answer.text}."
            " Something moves or hides it: --api-prefix or --path among its arguments, a LLAMA_ARG_ variable, or"
            f" llama.cpp's config.ini in /etc/llama.cpp or ~/.config/llama.cpp; {self._explain(path, started=True)}"
        )

    def _explain(self, path: Path, *, started: bool = False) -> str:
        return explain(path, self._log_start, self._tool, started=started)

    def _watch(self, process: subprocess.Popen[bytes]) -> float:
        """Wait until the server ends or a signal comes; seconds it lived."""
        started = time.monotonic()
        while self._stop is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_POLL_S)
                break
        return time.monotonic() - started

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        """Ask the server to end; wait `grace` seconds, less if another signal comes. The caller kills."""
        if process.poll() is None:
            process.terminate()
        deadline = time.monotonic() + self._options.grace
        while process.poll() is None and not self._urgent and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    # -- signals ---------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop is None:
            self._stop = number
        else:
            self._urgent = True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        previous = {number: signal.getsignal(number) for number in _FORWARDED}
        try:
            for number in previous:
                signal.signal(number, self._on_signal)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _sleep(self, seconds: float) -> None:
        """Sleep in steps: a signal handler does not end time.sleep (PEP 475)."""
        deadline = time.monotonic() + seconds
        while self._stop is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_S))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host` (an address, or a name that resolves to some)."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)
    except (OSError, ValueError):
        return False


def free_port(host: str, port: int) -> int:
    """`port` if it can be bound on `host` (any free one for 0). Raises UsageError if not.

    llama-server itself would not notice: it sets SO_REUSEPORT, and two servers then share the port by chance.
    """
    if host.endswith(".sock") or "," in host or "\0" in host:
        msg = f"--host {host}: forkyard-llm serve listens at one IP address, not at socket files or several addresses"
        raise UsageError(msg)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:  # the latter for what cannot be a name, such as a..b
        why = error.strerror if isinstance(error, OSError) else error
        msg = f"--host {host} is not an address of this machine: {why}"
        raise UsageError(msg) from error
    with socket.socket(family, kind, protocol) as probe:
        # A port whose last connections are only waiting out TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            why = error.strerror
            msg = f"cannot listen on {host} port {port}: {why}; choose another with --port (0: any free one)"
            raise UsageError(msg) from error
        return int(probe.getsockname()[1])


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(timeout=30)


@contextlib.contextmanager
def _log(path: Path | None) -> Iterator[tuple[Path, BinaryIO]]:
    """The server's log, for appending: `path`, or a new file in the cache or else a temporary folder."""
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("ab")
        except OSError as error:
            msg = f"cannot write the log file {path}: {error.strerror}"
            raise UsageError(msg) from error
    else:
        name = f"serve-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        path = cache_dir() / "logs" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("ab")
        except OSError:
            path = Path(tempfile.mkdtemp(prefix="forkyard-llm-")) / name
            handle = path.open("ab")
    with handle:
        yield path, handle
