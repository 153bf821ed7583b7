"""Run a program that is measured: all it says goes to a log, its time is limited, and its group ends with us."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import EngineError
from ..programs import bound

__all__ = ["RunFailed", "background", "ended", "plain_environment", "said_by", "stream"]

# Kept for programs that are measured; everything else in the environment could change a figure unseen.
_KEPT = ("HOME", "TMPDIR", "USER", "LOGNAME", "TERM")
_GRACE_S = 5.0
_FOREVER_S = 7 * 24 * 3600.0


class RunFailed(EngineError):
    """A run failed or said nothing that can be read. `why` is the reason without the command, `log` has all it said."""

    def __init__(self, message: str, why: str, log: Path | None = None) -> None:
        super().__init__(f"{message}: {why}" + (f" (all it said: {log})" if log else ""), {"why": why})
        self.what, self.why, self.log = message, why, log


def plain_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """A small, fixed environment and `extra`: nothing else of the caller's reaches a program that is measured."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC", **kept, **extra}


def ended(status: int) -> str:
    """How a run that failed ended."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}" if status else "no such answer"


def said_by(command: Sequence[str], environment: Mapping[str, str], timeout_s: float = 60.0) -> tuple[int, str]:
    """Exit status of a short program, and what it wrote to both streams.

    Raises:
        RunFailed: it cannot be started, or does not end within `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            bound(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{Path(command[0]).name} does not run on this machine"
        raise RunFailed(msg, str(error)) from error
    return done.returncode, done.stdout.decode("utf-8", "replace")


def stream(
    command: Sequence[str],
    *,
    log: Path,
    on_line: Callable[[str], None],
    timeout_s: float,
    env: Mapping[str, str],
    stop: threading.Event | None = None,
) -> int:
    """Run a long program to its end, or to `stop`; its exit status, negative for the signal that ended it.

    Its group is ended when this function is left by an exception (Ctrl-C among them) or when the time is up.

    Raises:
        RunFailed: it cannot be started, or ran past `timeout_s` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a person may be reading along.
    with log.open("ab", buffering=0) as sink:
        sink.write(f"$ {shlex.join(command)}\n".encode())
        try:
            child = subprocess.Popen(
                bound(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        except OSError as error:
            msg = f"{command[0]} cannot be started"
            raise RunFailed(msg, str(error)) from error
        late, over = threading.Event(), stop or threading.Event()

        def watch() -> None:
            if not over.wait(timeout_s):
                late.set()
            _end_group(child)

        timer = threading.Thread(target=watch, name="forkyard-measured-limit", daemon=True)
        timer.start()
        assert child.stdout is not None
        try:
            for raw in child.stdout:
                sink.write(raw)
                on_line(raw.decode("utf-8", "replace").rstrip("\n"))
            status = child.wait()
        except BaseException:
            _end_group(child)
            raise
        finally:
            over.set()
            timer.join()
            child.stdout.close()
    if late.is_set():
        msg = f"{Path(command[0]).name} was stopped"
        raise RunFailed(msg, f"it did not end within {timeout_s:.0f} s", log)
    return status


@contextlib.contextmanager
def background(
    command: Sequence[str], log: Path, env: Mapping[str, str], timeout_s: float = _FOREVER_S
) -> Iterator[tuple[threading.Event, Sequence[str]]]:
    """Run a program beside what the block does; its group is ended when the block is left, or this process ends.

    The block gets what is set once the program is gone, and the last lines that it said.
    """
    lines: list[str] = []
    stop, gone = threading.Event(), threading.Event()

    def live() -> None:
        try:
            stream(command, log=log, on_line=hear, timeout_s=timeout_s, env=env, stop=stop)
        except RunFailed as error:
            lines.append(error.why)
        finally:
            gone.set()

    def hear(line: str) -> None:
        lines.append(line)
        del lines[:-200]

    thread = threading.Thread(target=live, name="forkyard-measured-server", daemon=True)
    thread.start()
    try:
        yield gone, lines
    finally:
        stop.set()
        thread.join()


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ask the child's group to end, then make all of it: a member may ignore the asking or outlive its leader."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
