"""The one place that starts other programs: lists only, a timeout always, whole groups killed on the way out."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.errors import BuildError, ToolchainError

# Kept for programs we start; everything else in the environment could change a build's bytes unseen.
_KEPT = ("HOME", "TMPDIR", "USER", "LOGNAME", "TERM", "SSL_CERT_FILE", "SSL_CERT_DIR", "SYSTEMROOT")
_GRACE_S = 5.0


def clean_environment(path: str | None = None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A small, fixed environment: no CFLAGS, CPATH, CMAKE_*, locale or time zone of the caller gets in."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env["PATH"] = path if path is not None else os.environ.get("PATH", os.defpath)
    env.update({"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"})
    env.update(extra or {})
    return env


def show(command: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(command)


@dataclass(frozen=True)
class Finished:
    """A program that ended."""

    returncode: int
    stdout: str
    stderr: str


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> Finished:
    """Run a short program and return what it said; a non-zero exit is the caller's to judge.

    It gets a process group of its own, which is killed when the time is up or the call is interrupted: a compiler
    driver must not leave its compiler behind.

    Raises:
        ToolchainError: the program does not exist or cannot be started.
        BuildError: it ran past ``timeout_s`` seconds.
    """
    try:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=dict(env) if env is not None else None,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        msg = f"{command[0]} is not on this machine"
        raise ToolchainError(
            msg, where=show(command), next_step="run `forkyard doctor`: it names the command that installs it"
        ) from error
    except OSError as error:
        msg = f"{command[0]} cannot be run"
        raise ToolchainError(msg, where=show(command), why=str(error)) from error
    with child:
        try:
            output, problem = child.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            _end_group(child)
            msg = f"{command[0]} did not end within {timeout_s:.0f} s"
            raise BuildError(msg, where=show(command)) from error
        except BaseException:
            _end_group(child)
            raise
    return Finished(child.returncode, output.decode("utf-8", "replace"), problem.decode("utf-8", "replace"))


def stream(
    command: Sequence[str],
    *,
    log: Path,
    on_line: Callable[[str], None],
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> int:
    """Run a long program in its own process group, its output to ``log`` and line by line to ``on_line``.

    The group is killed when this function is left by an exception (Ctrl-C among them) or when the time is
    up, so no compiler outlives its build. File descriptors in ``keep_open`` are inherited (locks).

    Returns:
        the exit status (negative: the signal that ended it).

    Raises:
        ToolchainError: it cannot be started.
        BuildError: it ran past ``timeout_s`` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a person may be reading along.
    with log.open("ab", buffering=0) as sink:
        sink.write(f"$ {show(command)}\n".encode())
        sink.flush()
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env) if env is not None else None,
                pass_fds=tuple(keep_open),
                start_new_session=True,
            )
        except OSError as error:
            msg = f"{command[0]} cannot be started"
            raise ToolchainError(msg, where=show(command), why=str(error)) from error
        timed_out = threading.Event()

        def expire() -> None:
            timed_out.set()
            _end_group(child)

        timer = threading.Timer(timeout_s, expire)
        timer.daemon = True
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
            timer.cancel()
            child.stdout.close()
    if timed_out.is_set():
        msg = f"{command[0]} did not end within {timeout_s:.0f} s"
        raise BuildError(msg, where=show(command))
    return status


@contextlib.contextmanager
def background(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[Callable[[], int | None]]:
    """Run a program beside what the block does, its output to ``log``; its group is killed when the block is left.

    The block gets a function that returns the exit status, ``None`` while the program runs.

    Raises:
        ToolchainError: it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as sink:
        sink.write(f"$ {show(command)}\n".encode())
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                start_new_session=True,
            )
        except OSError as error:
            msg = f"{command[0]} cannot be started"
            raise ToolchainError(msg, where=show(command), why=str(error)) from error
    try:
        yield child.poll
    finally:
        _end_group(child)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ask the child's group to end, then make all of it: a member may ignore the asking or outlive its leader."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
