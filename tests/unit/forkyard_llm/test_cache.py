"""Where the cache is and that nothing half-written is ever read from it."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from forkyard_llm.cache import cache_dir, read_json, write_atomic, write_json


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
            writer.join(timeout=30)


def test_what_cannot_be_read_is_none_and_what_cannot_be_written_false(tmp_path: Path) -> None:
    assert read_json(tmp_path / "gone") is None
    (tmp_path / "bad").write_bytes(b"{")
    assert read_json(tmp_path / "bad") is None
    assert write_json(tmp_path / "bad" / "inside", 1) is False
