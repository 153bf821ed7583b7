from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import BusyError, StorageError
from forkyard.journal import STATE, Changes, commit_changes, finish_changes, project_lock, recover

OLD = {"a": b"old a", "dir/b": b"old b", "gone": b"bye", "same": b"same"}
NEW = {"a": b"new a", "dir/b": b"new b", "same": b"same", "deep/er/c": b"new c"}
STEPS = ("open", "replace", "rename", "unlink", "mkdir", "rmdir")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "project"
    for path, data in OLD.items():
        (found / path).parent.mkdir(parents=True, exist_ok=True)
        (found / path).write_bytes(data)
    return found


def changes() -> Changes:
    made = Changes()
    for path, data in NEW.items():
        made.write(path, data, executable=path == "deep/er/c")
    made.delete("gone")
    return made


def files(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file() and STATE not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_all_of_it_is_written(root: Path) -> None:
    with project_lock(root):
        assert commit_changes(root, changes()) == ["a", "deep/er/c", "dir/b", "gone"]
    assert files(root) == NEW
    assert os.access(root / "deep/er/c", os.X_OK)
    assert not os.access(root / "a", os.X_OK)
    assert [path.name for path in (root / STATE).iterdir()] == ["project.lock"]


def test_what_is_there_already_is_not_written(root: Path) -> None:
    with project_lock(root):
        commit_changes(root, changes())
        stamps = {path: (root / path).stat().st_mtime_ns for path in NEW}
        assert commit_changes(root, changes()) == []
        assert {path: (root / path).stat().st_mtime_ns for path in NEW} == stamps
    only_mode = Changes()
    only_mode.write("a", b"new a", executable=True)
    assert only_mode.effective(root).paths == ["a"]


def test_the_last_word_on_a_path_counts() -> None:
    made = Changes()
    assert not made
    made.write("x", b"1", executable=True)
    made.delete("x")
    assert (made.writes, made.executable, made.deletes) == ({}, set(), {"x"})
    made.write("x", b"2")
    assert (made.writes, made.executable, made.deletes) == ({"x": b"2"}, set(), set())


def killed_at(root: Path, number: int) -> bool:
    """Commit in a child that dies before its ``number``-th change of the file system; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = number

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return function(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        commit_changes(root, changes())
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_at_every_instant_it_is_all_or_none(root: Path, tmp_path: Path) -> None:
    (root / STATE).mkdir()
    shutil.copytree(root, tmp_path / "backup")
    states = []
    for number in range(400):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "backup", root)
        cut = killed_at(root, number)
        recover(root)
        assert files(root) in (OLD, NEW), number
        states.append(files(root) == NEW)
        with project_lock(root):
            commit_changes(root, changes())
        assert files(root) == NEW
        assert not [path for path in root.rglob("*") if path.name.startswith(".") and path.name != STATE]
        if not cut:
            break
    assert not cut, "it ends"
    assert number > 20
    assert states == sorted(states), "once it will happen it happens"
    assert not states[0]


def test_recovering_is_one_look_when_there_is_nothing(root: Path) -> None:
    assert not recover(root)
    assert not (root / STATE).exists()


def test_an_unfinished_change_is_finished_before_another_begins(root: Path) -> None:
    (root / STATE).mkdir()
    number = 0
    while killed_at(root, number) and not (root / STATE / "journal").is_dir():
        number += 1
    more = Changes()
    more.write("a", b"newer a")
    with project_lock(root):
        commit_changes(root, more)
    assert files(root) == {**NEW, "a": b"newer a"}


@pytest.mark.parametrize(
    "damage",
    ["", "{}", "[]", '{"writes": [1], "deletes": []}', '{"writes": [["a", "0", false]]}'],
)
def test_a_damaged_record_is_not_guessed_at(root: Path, damage: str) -> None:
    (root / STATE / "journal").mkdir(parents=True)
    (root / STATE / "journal" / "list.json").write_text(damage)
    with pytest.raises(StorageError) as caught:
        recover(root)
    assert "damaged" in caught.value.what
    assert files(root) == OLD


def test_one_at_a_time(root: Path) -> None:
    waited: list[str] = []
    with project_lock(root), pytest.raises(BusyError), project_lock(root, timeout_s=0.1, waiting=waited.append):
        pass
    assert waited == [f"process {os.getpid()}"]
    order: list[int] = []

    def work(number: int) -> None:
        with project_lock(root):
            order.append(number)
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [order[number] for number in (0, 2, 4)] == [order[number] for number in (1, 3, 5)]


def test_without_permission_nothing_changes(root: Path, as_nobody: Callable[[Callable[[], None]], int]) -> None:
    # Somewhere anybody may look into, unlike pytest's own folder.
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "project"
        shutil.copytree(root, place)
        Path(folder).chmod(0o755)
        for path in [place, *place.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def attempt() -> None:
            with pytest.raises(StorageError, match="put the changes aside"):
                commit_changes(place, changes())

        assert as_nobody(attempt) == 0
        assert files(place) == OLD


def test_a_change_that_cannot_be_finished_now_is_finished_later(root: Path) -> None:
    """A folder stands where a file should go: the others wait with it, and nothing is lost."""
    (root / "deep").write_text("in the way")
    with pytest.raises(StorageError, match="something else is where"):
        commit_changes(root, changes())
    assert json.loads((root / STATE / "journal" / "list.json").read_bytes())["deletes"] == ["gone"]
    (root / "deep").unlink()
    with project_lock(root):
        assert finish_changes(root)
    assert files(root) == NEW
