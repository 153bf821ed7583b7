from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.cache import Cache, explained, folder_size, publish, storage_error, write_atomic, write_if_changed
from forkyard.errors import StorageError

AsNobody = Callable[[Callable[[], None]], int]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# -- writing -------------------------------------------------------------------------------------------


def test_write_atomic_replaces_completely(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one", mode=0o755)
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert left_in(path.parent) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    (tmp_path / "file").write_bytes(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(f"forkyard.cache.os.{call}", refuse(number))
        with pytest.raises(StorageError) as caught:
            write_atomic(tmp_path / "file", b"after" * 100_000)
    assert "file" in caught.value.what
    assert caught.value.why
    assert caught.value.next_step
    assert (tmp_path / "file").read_bytes() == b"before"
    assert left_in(tmp_path) == ["file"]


def test_interruption_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"before")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("forkyard.cache.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("which", ["write_atomic", "publish"])
def test_a_size_limit_met_in_the_middle(tmp_path: Path, as_nobody: AsNobody, which: str) -> None:
    """The kernel itself refuses the second half of the file."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    (folder / "file").write_bytes(b"before")
    source = tmp_path / "source"
    source.write_bytes(bytes(200_000))

    def attempt() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            if which == "publish":
                publish(source, folder / "file")
            else:
                write_atomic(folder / "file", bytes(200_000))
        except StorageError as error:
            os._exit(0 if "limit" in str(error.why) else 2)
        os._exit(1)

    assert as_nobody(attempt) == 0
    assert (folder / "file").read_bytes() == b"before"
    assert left_in(folder) == ["file"]


def test_write_if_changed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert write_if_changed(path, b"a")
    os.utime(path, ns=(1, 1))
    assert not write_if_changed(path, b"a")
    assert path.stat().st_mtime_ns == 1
    assert write_if_changed(path, b"a", mode=0o755)
    assert write_if_changed(path, b"b", mode=0o755)
    assert path.read_bytes() == b"b"


def test_publish_copies_and_keeps_the_source(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"new")
    (tmp_path / "s").chmod(0o600)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "t").write_bytes(b"old")
    publish(tmp_path / "s", tmp_path / "out" / "t")
    publish(tmp_path / "s", tmp_path / "deep" / "er" / "t")
    assert (tmp_path / "s").exists()
    for path in (tmp_path / "out" / "t", tmp_path / "deep" / "er" / "t"):
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert left_in(tmp_path / "out") == ["t"]


def test_publish_on_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").write_bytes(b"new")
    (tmp_path / "t").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr("forkyard.cache.shutil.copyfile", refuse(errno.ENOSPC))
        with pytest.raises(StorageError, match="put t in place"):
            publish(tmp_path / "s", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == b"old"
    assert left_in(tmp_path) == ["s", "t"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, as_nobody: AsNobody) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    def attempt() -> None:
        actions: list[Callable[[], None]] = [lambda: write_atomic(closed / "f", b""), Cache(closed / "cache").prepare]
        for action in actions:
            try:
                action()
            except StorageError as error:
                if error.next_step and "FORKYARD_CACHE" in error.next_step:
                    continue
            os._exit(1)

    assert as_nobody(attempt) == 0


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG])
def test_space_and_permission_are_explained(number: int) -> None:
    found = storage_error(OSError(number, "x", "/a/file"), "do it")
    assert found is not None
    assert found.what == "could not do it"
    assert found.where == "/a/file"
    assert found.why
    assert found.next_step


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "x"), OSError("no number"), OSError(errno.EIO, "x")])
def test_other_errors_pass(error: OSError) -> None:
    assert storage_error(error, "do it") is None
    with pytest.raises(OSError) as caught, explained("do it"):
        raise error
    assert caught.value is error


def test_the_cause_is_kept() -> None:
    cause = OSError(errno.ENOSPC, "x")
    with pytest.raises(StorageError) as caught, explained("do it"):
        raise cause
    assert caught.value.__cause__ is cause


# -- places --------------------------------------------------------------------------------------------


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "c"))
    assert Cache.default().root == tmp_path / "c"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORKYARD_CACHE", "relative")
    assert Cache.default().root == tmp_path / "relative"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FORKYARD_CACHE", "~/x")
    assert Cache.default().root == tmp_path / "x"
    monkeypatch.setenv("FORKYARD_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache.default().root == tmp_path / "xdg" / "forkyard"
    assert not (tmp_path / "xdg").exists(), "naming a cache makes nothing"


def test_no_two_places_are_the_same(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    places = [cache.downloads, cache.store("a"), cache.tree("a"), cache.tree_index("a"), cache.build("a", "b")]
    places += [cache.ccache, cache.locks, cache.logs, cache.scratch]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert not cache.tree_index("a").is_relative_to(cache.tree("a"))


def test_folder_size(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(bytes(10))
    (tmp_path / "b").write_bytes(bytes(5))
    (tmp_path / "hang").symlink_to("/nonexistent")
    assert folder_size(tmp_path) == 15 + len("/nonexistent")
    assert folder_size(tmp_path / "none") == 0
