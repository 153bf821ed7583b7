"""Patches that are not what the lock says: every command that reads them tells so, and none locks them unasked."""

from __future__ import annotations

import json

import pytest

from ..toy import Toy
from .rebasing import clean_hop, move_on, project_files, rebase

FILE = "patches/changes/llama.cpp/two.patch"


@pytest.fixture
def cut(toy: Toy) -> str:
    """A locked series with a patch whose last file was cut off; gives a commit it could be rebased to."""
    clean_hop(toy)
    new = move_on(toy, ("src/part2.cpp", "+ 2;", "+ 222;"))
    assert toy.run("lock", "toy").status == 0
    path = toy.root / FILE
    path.write_bytes(path.read_bytes().rpartition(b"diff --git")[0])
    return new


def test_a_rebase_does_not_carry_what_was_cut_off(toy: Toy, cut: str) -> None:
    before = project_files(toy)
    for words in ((), ("--dry-run",)):
        answer = rebase(toy, "--to", cut, *words)
        assert answer.status == 3, answer
        assert answer.json["where"] == FILE
        assert "forkyard lock toy" in answer.json["next"]
    assert project_files(toy) == before, "the lock above all"
    # Whoever means it says so.
    locked = toy.run("lock", "toy")
    assert locked.json["locks"][0]["changed_files"] == [FILE]
    assert rebase(toy, "--to", cut).status == 0


@pytest.mark.usefixtures("cut")
def test_every_other_reader_tells_so(toy: Toy) -> None:
    before = project_files(toy)
    for words in (
        ("status",),
        ("plan", "sse42"),
        ("range-diff", "changes", "worktree", "worktree"),
        ("stack", "edit", "changes", "--engine", "llama.cpp"),
        ("stack", "verify", "--no-build"),
    ):
        answer = toy.run(*words)
        assert f"{FILE} is not what the lock of toy says" in answer.stderr, f"{words}: {answer}"
    answer = toy.run("stack", "lint")
    assert answer.status == 12
    (finding,) = (one for one in json.loads(answer.stdout)["findings"] if one["rule"] == "lock")
    assert finding["where"] == FILE
    assert project_files(toy) == before


@pytest.mark.usefixtures("cut")
def test_export_refresh_and_import_renew_the_lock(toy: Toy) -> None:
    assert toy.run("stack", "export", "changes", "--engine", "llama.cpp", "--lock").status == 0
    assert "is not what the lock" not in toy.run("status").stderr
