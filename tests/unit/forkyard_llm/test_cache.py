"""Where the cache is and that nothing half-written is ever read from it."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from forkyard_llm.cache import cache_dir, expanded, read_json, write_atomic, write_json
from forkyard_llm.errors import UsageError
from forkyard_llm.models import resolve


def test_the_environment_decides_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORKYARD_LLM_CACHE", "here")
    assert cache_dir() == tmp_path / "here"


def test_then_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FORKYARD_LLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "forkyard-llm"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_dir() == tmp_path / ".cache" / "forkyard-llm"


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_home_that_is_none_is_asked_of_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    for name in ("FORKYARD_LLM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert cache_dir() == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "forkyard-llm"

    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "forkyard-llm"
    assert expanded("~/x") == tmp_path / "x"


def test_a_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_LLM_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(UsageError, match="no user's home"):
        cache_dir()
    with pytest.raises(UsageError, match="no user's home"):
        resolve("~nobody-of-this-name/model.gguf")
    monkeypatch.setenv("FORKYARD_LLM_CACHE", "./~here")
    assert cache_dir() == Path.cwd() / "~here"


def test_a_current_folder_that_was_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("FORKYARD_LLM_CACHE", "here")
    with pytest.raises(UsageError, match="current folder"):
        cache_dir()
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path


def test_writing_obeys_the_umask_and_leaves_nothing_beside(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a" / "b", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o644
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, [0] * 10_000)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write_json(path, [number] * 10_000)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(50):
            value = read_json(path)
            assert isinstance(value, list)
            assert len(set(value)) == 1
    finally:
        stop.set()
        for writer in writers:
            writer.join(timeout=1800)


def test_what_cannot_be_read_is_none_and_what_cannot_be_written_false(tmp_path: Path) -> None:
    assert read_json(tmp_path / "gone") is None
    (tmp_path / "bad").write_bytes(b"{")
    assert read_json(tmp_path / "bad") is None
    assert write_json(tmp_path / "bad" / "inside", 1) is False
