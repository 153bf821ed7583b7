"""The record of a rebase under way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forkyard.errors import RecipeError, UsageError
from forkyard.rebasing.replaying import Base
from forkyard.rebasing.state import (
    State,
    Waiting,
    clear_state,
    none_under_way,
    read_state,
    remove_folder,
    state_folder,
    write_state,
)

BASE = Base("1" * 40, "2" * 40, "2026-01-01")
STATE = State("mine", BASE, replace(BASE, commit="3" * 40), ("a", "b"), True, "4" * 64, "somewhere", True, True, "/out")


def test_round_trip(tmp_path: Path) -> None:
    assert read_state(tmp_path, "mine") is None
    for state in (STATE, STATE.with_waiting(Waiting("a", "p", "5" * 40, "/w")), STATE.with_dropped("a", "p")):
        write_state(tmp_path, state)
        assert read_state(tmp_path, "mine") == state
    # One recipe has nothing to do with another.
    assert read_state(tmp_path, "other") is None
    clear_state(tmp_path, "mine")
    clear_state(tmp_path, "mine")
    assert read_state(tmp_path, "mine") is None


def test_dropping_takes_the_waiting_patch_away() -> None:
    waiting = STATE.with_waiting(Waiting("a", "p", "5" * 40, "/w"))
    assert waiting.with_dropped("a", "p").waiting is None
    assert waiting.with_dropped("a", "p").with_dropped("a", "q").dropped == (("a", "p"), ("a", "q"))


def damage(data: bytes, how: str) -> bytes:
    return {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "zeros": b"\0" * len(data),
        "list": b"[]",
        "number": b"7",
        "version": data.replace(b'"schema": 1', b'"schema": 2'),
        "more": data.replace(b'"recipe"', b'"surprise": 1, "recipe"'),
        "less": data.replace(b'"whole": true,', b""),
        "kinds": data.replace(b'"old": {', b'"old": 3, "was": {'),
        "latin": b"\xff\xfe",
    }[how]


@pytest.mark.parametrize(
    "how", ["empty", "cut", "zeros", "list", "number", "version", "more", "less", "kinds", "latin"]
)
def test_damaged(tmp_path: Path, how: str) -> None:
    write_state(tmp_path, STATE.with_waiting(Waiting("a", "p", "5" * 40, "/w")))
    path = state_folder(tmp_path, "mine") / "state.json"
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(RecipeError, match="cannot be read") as error:
        read_state(tmp_path, "mine")
    assert error.value.where == str(path)
    assert "--abort" in str(error.value.next_step)


def test_removing_a_folder_finishes_what_a_killed_run_began(tmp_path: Path) -> None:
    tree, left = tmp_path / "tree", tmp_path / ".tree.deleted"
    remove_folder(tree)
    for folder in (tree, left):
        (folder / "below").mkdir(parents=True)
    remove_folder(tree)
    assert list(tmp_path.iterdir()) == []


def test_nothing_under_way() -> None:
    error = none_under_way("mine")
    assert isinstance(error, UsageError)
    assert "rebase mine --to" in str(error.next_step)
