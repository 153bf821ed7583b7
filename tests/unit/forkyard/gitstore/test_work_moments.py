"""Work repositories: a change is seen in whatever moment it was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from forkyard.gitstore import Author
from forkyard.gitstore.work import WorkRepository

AUTHOR = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")


def test_a_change_in_the_moment_of_the_check_out(forge: Any, tmp_path: Path) -> None:
    """A script edits a file in the same tick of the clock it was checked out in, to as many bytes."""
    tip = forge.store.commit(forge.tree({"a": b"one\n"}), None, AUTHOR, b"base\n")
    work = WorkRepository.make(tmp_path / "work", forge.store, tip, "main", {})
    work._git("config", "core.trustctime", "false")
    moment = 1_700_000_000_000_000_000
    os.utime(work.path / "a", ns=(moment, moment))
    work._git("update-index", "--refresh")
    (work.path / "a").write_bytes(b"two\n")
    for path in (work.path / "a", work.path / ".git" / "index"):
        os.utime(path, ns=(moment, moment))
    assert work.snapshot() == forge.tree({"a": b"two\n"})
