from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard import journal
from forkyard.errors import BusyError, StorageError
from forkyard.journal import LEFT, STATE, Changes, commit_changes, finish_changes, project_lock, recover, unfinished

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


def commit(root: Path) -> None:
    commit_changes(root, changes())


def killed_at(root: Path, number: int, work: Callable[[Path], object] = commit) -> bool:
    """Work in a child that dies before its ``number``-th change of the file system; whether it got that far."""
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
        work(root)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def cut_off(root: Path) -> None:
    """Die right after the rename: nothing is written yet, and all of it will be."""
    (root / STATE).mkdir(exist_ok=True)
    number = 0
    while killed_at(root, number) and not (root / STATE / "journal").is_dir():
        number += 1
    assert (root / STATE / "journal").is_dir()


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def step(self, title: str, unit: str = "") -> Any:
        raise AssertionError(title)

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


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
    cut_off(root)
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


def test_what_is_finished_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/forkyard", "rebase", "a b", "--source", "https://me:secret@host/x"])
    cut_off(root)
    heard = Heard()
    done = recover(root, heard)
    assert done is not None
    assert (done.paths, done.left) == (("a", "deep/er/c", "dir/b", "gone"), ())
    assert files(root) == NEW
    (said,) = heard.warnings
    assert "`forkyard rebase 'a b' --source 'https://***@host/x'`" in said
    for path in done.paths:
        assert path in said
    assert recover(root, heard) is None
    assert len(heard.warnings) == 1


# What may have happened to each of the four files between the kill and the next command.
def _edit(root: Path) -> None:
    (root / "dir/b").write_bytes(b"my own b")


def _delete(root: Path) -> None:
    (root / "dir/b").unlink()


def _folder(root: Path) -> None:
    (root / "dir/b").unlink()
    (root / "dir/b").mkdir()


def _link(root: Path) -> None:
    (root / "dir/b").rename(root / "elsewhere")
    (root / "dir/b").symlink_to("../elsewhere")


def _mode(root: Path) -> None:
    (root / "dir/b").chmod(0o755)


def _parent_is_a_link(root: Path) -> None:
    (root / "dir").rename(root.parent / "outside")
    (root / "dir").symlink_to(root.parent / "outside")


def _parent_is_a_file(root: Path) -> None:
    shutil.rmtree(root / "dir")
    (root / "dir").write_text("a file")


def _pipe(root: Path) -> None:
    (root / "dir/b").unlink()
    os.mkfifo(root / "dir/b")


@pytest.mark.parametrize("touch", [_edit, _delete, _folder, _link, _mode, _parent_is_a_link, _parent_is_a_file, _pipe])
def test_what_somebody_touched_since_is_left_alone(root: Path, touch: Callable[[Path], None]) -> None:
    def seen() -> list[tuple[str, int, bytes | str]]:
        places = [root / "dir", *(root / "dir").glob("b"), root / "elsewhere", root.parent / "outside" / "b"]
        found: list[tuple[str, int, bytes | str]] = []
        for place in places:
            if place.is_symlink():
                found.append((str(place), 0, os.readlink(place)))
            elif place.exists():
                found.append((str(place), place.stat().st_mode, place.read_bytes() if place.is_file() else ""))
        return found

    cut_off(root)
    touch(root)
    before = seen()
    heard = Heard()
    done = recover(root, heard)
    assert done is not None
    assert (done.paths, done.left) == (("a", "deep/er/c", "gone"), ("dir/b",))
    assert seen() == before
    assert (root / "a").read_bytes() == b"new a"
    assert not (root / "gone").exists()
    assert (root / STATE / LEFT / "dir/b").read_bytes() == b"new b"
    assert "left alone, somebody has changed it since: dir/b" in heard.warnings[0]
    assert str(root / STATE / LEFT) in heard.warnings[0]
    assert recover(root) is None


@pytest.mark.parametrize("path", ["deep/er/c", "gone"])
def test_a_new_file_and_one_to_be_deleted_may_be_somebodys_too(root: Path, path: str) -> None:
    cut_off(root)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"mine")
    done = recover(root)
    assert done is not None
    assert done.left == (path,)
    assert (root / path).read_bytes() == b"mine"
    assert "is in" not in done.describe(root) or path == "deep/er/c"


def test_put_back_by_git_checkout_it_is_finished(root: Path) -> None:
    """Killed in the middle, some files new already, then all of them as they were: nobody's edit is in them."""
    cut_off(root)
    (root / "a").write_bytes(b"new a")
    (root / "a").write_bytes(b"old a")
    done = recover(root)
    assert done is not None
    assert done.left == ()
    assert files(root) == NEW


def test_another_branch_is_checked_out_in_between(root: Path) -> None:
    """Its files are not the change's to write over; those that are the same on both branches are finished."""

    def git(*words: str) -> None:
        person = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *person, *words], cwd=root, check=True, capture_output=True)

    git("init", "--quiet", "--initial-branch=one")
    git("add", "--all")
    git("commit", "--quiet", "--message", "one")
    git("checkout", "--quiet", "-b", "two")
    (root / "a").write_bytes(b"their a")
    git("commit", "--quiet", "--all", "--message", "two")
    git("checkout", "--quiet", "one")
    cut_off(root)
    git("checkout", "--quiet", "two")
    done = recover(root)
    assert done is not None
    assert done.left == ("a",)
    assert (root / "a").read_bytes() == b"their a"
    assert (root / "dir/b").read_bytes() == b"new b"


def test_an_edit_survives_a_kill_at_every_instant(root: Path, tmp_path: Path) -> None:
    """The edit stays, the rest is all new or all old."""
    shutil.copytree(root, tmp_path / "backup")
    kept = 0
    for number in range(400):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "backup", root)
        cut = killed_at(root, number)
        (root / "dir/b").write_bytes(b"my own b")
        recover(root)
        found = files(root)
        assert found in ({**OLD, "dir/b": b"my own b"}, {**NEW, "dir/b": b"my own b"}), number
        kept += found["a"] == b"new a"
        if not cut:
            break
    assert kept > 5


def test_a_recovery_may_be_killed_as_well(root: Path) -> None:
    cut_off(root)
    (root / "dir/b").write_bytes(b"my own b")
    number = 0
    while killed_at(root, number, recover):
        number += 1
        assert (root / "dir/b").read_bytes() == b"my own b", number
    assert number > 10
    assert files(root) == {**NEW, "dir/b": b"my own b"}
    assert unfinished(root) is None


def test_two_recoveries_at_once(root: Path) -> None:
    cut_off(root)
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(recover(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in results if one is not None]) == 1
    assert files(root) == NEW


def test_a_project_that_was_moved(root: Path) -> None:
    cut_off(root)
    moved = root.rename(root.with_name("another place"))
    assert recover(moved) is not None
    assert files(moved) == NEW


def test_a_folder_that_always_was_a_link(root: Path) -> None:
    (root / "dir").rename(root.parent / "outside")
    (root / "dir").symlink_to("../outside")
    cut_off(root)
    done = recover(root)
    assert done is not None
    assert done.left == ()
    assert (root.parent / "outside" / "b").read_bytes() == b"new b"


def test_the_record_of_an_older_version_is_not_guessed_at(root: Path) -> None:
    """It does not say how the files were: an edit could not be told from the old state."""
    cut_off(root)
    file = root / STATE / "journal" / "list.json"
    listing = json.loads(file.read_bytes())
    file.write_text(json.dumps({"writes": listing["writes"], "deletes": listing["deletes"]}))
    with pytest.raises(StorageError, match="another version of forkyard") as caught:
        recover(root)
    assert str(file.parent) in str(caught.value.next_step)
    assert files(root) == OLD


def test_half_a_record_and_a_path_that_leads_out(root: Path) -> None:
    cut_off(root)
    file = root / STATE / "journal" / "list.json"
    whole = file.read_text()
    for damage in (
        whole[: len(whole) // 2],
        whole.replace("deep/er/c", "deep/../../c"),
        whole.replace('"before"', '"x"'),
    ):
        file.write_text(damage)
        with pytest.raises(StorageError, match="damaged"):
            recover(root)
        with pytest.raises(StorageError, match="damaged"):
            unfinished(root)
        assert files(root) == OLD


def test_looking_changes_nothing(root: Path) -> None:
    assert unfinished(root) is None
    cut_off(root)
    (root / "a").write_bytes(b"mine")
    found = unfinished(root)
    assert found is not None
    assert (found.paths, found.left) == (("deep/er/c", "dir/b", "gone"), ("a",))
    assert files(root) == {**OLD, "a": b"mine"}
    assert (root / STATE / "journal").is_dir()


def test_a_read_only_project_says_so(as_nobody: Callable[[Callable[[], None]], int], root: Path) -> None:
    cut_off(root)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "project"
        shutil.copytree(root, place)
        Path(folder).chmod(0o755)
        for path in [place, *place.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def attempt() -> None:
            with pytest.raises(StorageError, match="cannot be written") as caught:
                recover(place)
            assert "permission denied" in str(caught.value.why)
            assert unfinished(place) is not None

        assert as_nobody(attempt) == 0
        assert files(place) == OLD


def test_a_file_changed_in_the_very_moment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        real(source, target)
        if Path(target).name == "journal":
            (root / "a").write_bytes(b"mine")

    monkeypatch.setattr(journal.os, "rename", rename)
    with pytest.raises(StorageError, match="while they were to be written"):
        commit_changes(root, changes())
    assert files(root) == {**NEW, "a": b"mine"}
