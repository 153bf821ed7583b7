from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkyard.errors import BusyError, StorageError
from forkyard.locks import hold

HOLDER = """\
import subprocess, sys, time
from pathlib import Path
from forkyard.locks import hold
with hold(Path(sys.argv[1]), shared=sys.argv[2] == "shared") as held:
    if sys.argv[3] == "child":
        child = subprocess.Popen(["sleep", "60"], pass_fds=(held.fd,), stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
    else:
        print("held", flush=True)
    time.sleep(60)
"""

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Start]:
    """Start another process that holds the lock; returns it and the first line it said."""
    running: list[subprocess.Popen[str]] = []

    def start(path: Path, kind: str = "exclusive", how: str = "alone") -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path), kind, how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def is_free(path: Path, *, shared: bool = False) -> bool:
    try:
        with hold(path, shared=shared, timeout_s=0):
            return True
    except BusyError:
        return False


def test_exclusive_keeps_everybody_out(tmp_path: Path, holder: Start) -> None:
    path = tmp_path / "locks" / "a.lock"
    process, _ = holder_of(holder, path)
    assert not is_free(path)
    assert not is_free(path, shared=True)
    with pytest.raises(BusyError) as caught, hold(path, timeout_s=0):
        pass
    assert f"process {process.pid}" in str(caught.value.why)
    assert caught.value.where == str(path)


def holder_of(holder: Start, path: Path, kind: str = "exclusive") -> tuple[subprocess.Popen[str], str]:
    path.parent.mkdir(exist_ok=True)
    return holder(path, kind)


def test_shared_lets_others_share_and_keeps_writers_out(tmp_path: Path, holder: Start) -> None:
    path = tmp_path / "a.lock"
    holder_of(holder, path, "shared")
    assert is_free(path, shared=True)
    assert not is_free(path)


def test_an_exception_releases(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold(tmp_path / "a.lock"):
        raise KeyError
    assert is_free(tmp_path / "a.lock")


def test_kill_9_of_the_holder_releases(tmp_path: Path, holder: Start) -> None:
    path = tmp_path / "a.lock"
    process, _ = holder_of(holder, path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_free(path)


def test_a_child_that_inherited_it_holds_on(tmp_path: Path, holder: Start) -> None:
    path = tmp_path / "a.lock"
    process, child = holder(path, "exclusive", "child")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_free(path)
    os.kill(int(child), signal.SIGKILL)
    with hold(path, timeout_s=10):
        pass


def test_a_child_that_did_not_inherit_it_does_not(tmp_path: Path) -> None:
    with hold(tmp_path / "a.lock"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert is_free(tmp_path / "a.lock")
    finally:
        child.kill()
        child.wait()


def test_waiting_is_told_once_with_the_owner(tmp_path: Path, holder: Start) -> None:
    path = tmp_path / "a.lock"
    process, _ = holder_of(holder, path)
    told: list[str] = []
    with pytest.raises(BusyError), hold(path, timeout_s=0.5, waiting=told.append):
        pass
    assert told == [f"process {process.pid}"]


def test_waiting_ends_when_the_holder_does(tmp_path: Path, holder: Start) -> None:
    path = tmp_path / "a.lock"
    process, _ = holder_of(holder, path)
    with hold(path, timeout_s=30, waiting=lambda _: process.kill()):
        assert path.read_text() == f"process {os.getpid()}\n"


def test_two_locks_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    with hold(tmp_path / "a.lock"):
        assert not is_free(tmp_path / "a.lock")
        assert is_free(tmp_path / "b.lock")


def test_a_folder_that_cannot_be_written(tmp_path: Path, as_nobody: Callable[[Callable[[], None]], int]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    def attempt() -> None:
        try:
            with hold(closed / "a.lock"):
                pass
        except StorageError:
            return
        os._exit(1)

    assert as_nobody(attempt) == 0
