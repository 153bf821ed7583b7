from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkyard.errors import BusyError, StorageError
from forkyard.locks import held_locks, hold, hold_folder

HOLDER = """\
import subprocess, sys, time
from pathlib import Path
from forkyard.locks import hold
with hold(Path(sys.argv[1]), shared=sys.argv[2] == "shared") as held:
    if sys.argv[3] == "child":
        child = subprocess.Popen(["sleep", "60"], pass_fds=held.fds, stdout=subprocess.DEVNULL)
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


def is_taken(folder: Path) -> bool:
    try:
        with hold_folder(folder, timeout_s=0):
            return False
    except BusyError:
        return True


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_a_folder_is_taken_by_the_lock_in_it(tmp_path: Path, holder: Start, kind: str) -> None:
    holder_of(holder, tmp_path / "a.lock", kind)
    assert is_taken(tmp_path)
    assert is_free(tmp_path / "b.lock")


def test_a_folder_says_who_has_it(tmp_path: Path, holder: Start) -> None:
    told: list[str] = []
    first, _ = holder_of(holder, tmp_path / "a.lock")
    second, _ = holder_of(holder, tmp_path / "b.lock")
    with pytest.raises(BusyError) as caught, hold_folder(tmp_path, timeout_s=0.5, waiting=told.append):
        pass
    both = ", ".join(sorted(f"process {process.pid}" for process in (first, second)))
    assert told == [both]
    assert both in str(caught.value.why)
    assert caught.value.where == str(tmp_path)


def test_a_folder_that_is_shared_only_names_nobody(tmp_path: Path, holder: Start) -> None:
    # Signed by someone who is gone.
    (tmp_path / "a.lock").write_text("process 1\n")
    holder_of(holder, tmp_path / "a.lock", "shared")
    with pytest.raises(BusyError) as caught, hold_folder(tmp_path, timeout_s=0):
        pass
    assert "process" not in str(caught.value.why)


def test_a_whole_folder_keeps_out_locks_that_were_never_made(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "new"):
        with pytest.raises(BusyError) as caught, hold(tmp_path / "new" / "a.lock", timeout_s=0):
            pass
        assert f"process {os.getpid()}" in str(caught.value.why)
        assert is_taken(tmp_path / "new")
    assert is_free(tmp_path / "new" / "a.lock")
    assert not is_taken(tmp_path / "new")


def test_a_lock_made_while_another_waits_for_the_folder_comes_first(tmp_path: Path) -> None:
    """Who works on with a second lock is let finish; the one who waits for all of them does not stand in the way."""
    order: list[str] = []
    waits = threading.Event()

    def take_all() -> None:
        with hold_folder(tmp_path, waiting=lambda _: waits.set()):
            order.append("all")

    thread = threading.Thread(target=take_all)
    with hold(tmp_path / "a.lock"):
        thread.start()
        assert waits.wait(30)
        with hold(tmp_path / "b.lock", timeout_s=30):
            order.append("second")
    thread.join(30)
    assert order == ["second", "all"]


def test_a_child_that_inherited_the_lock_keeps_the_folder(tmp_path: Path, holder: Start) -> None:
    process, child = holder(tmp_path / "a.lock", "exclusive", "child")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_taken(tmp_path)
    os.kill(int(child), signal.SIGKILL)
    with hold_folder(tmp_path, timeout_s=10):
        pass


def test_only_what_is_locked_is_handed_on(tmp_path: Path, holder: Start) -> None:
    holder_of(holder, tmp_path / "a.lock")
    before = held_locks()
    seen: list[tuple[int, ...]] = []
    with (
        pytest.raises(BusyError),
        hold(tmp_path / "a.lock", timeout_s=0.3, waiting=lambda _: seen.append(held_locks())),
    ):
        pass
    with hold(tmp_path / "b.lock") as held:
        assert set(held_locks()) - set(before) == set(held.fds)
    assert seen == [before]
    assert held_locks() == before
