from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forkyard.gitstore import Author, Store
from forkyard.gitstore.history import CommitFacts, commits
from forkyard.stacks.folding import fold

AUTHOR = Author("A", "a@b", "2026-01-02T00:00:00Z")


def chain(forge: Any, states: Sequence[Mapping[str, Any]]) -> tuple[str, list[CommitFacts]]:
    store: Store = forge.store
    base = tip = store.commit(forge.tree(states[0]), None, AUTHOR, b"base\n")
    for number, state in enumerate(states[1:]):
        tip = store.commit(forge.tree(state), tip, AUTHOR, b"%d\n" % number)
    return store.tree_of(base), commits(store, f"{base}..{tip}")


def folded(forge: Any, *states: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    kept, notes = fold(forge.store, *chain(forge, states))
    return [(one.subject, one.tree) for one in kept], notes


def test_later_edits_go_into_the_commit_that_adds(forge: Any, store: Store) -> None:
    kept, notes = folded(
        forge, {"a": b"a"}, {"a": b"a", "o": b"1"}, {"a": b"b", "o": b"2"}, {"a": b"b", "o": ("100755", b"3")}
    )
    assert kept == [
        ("0", forge.tree({"a": b"a", "o": ("100755", b"3")})),
        ("1", forge.tree({"a": b"b", "o": ("100755", b"3")})),
    ]
    assert notes == ["o has its last content from '0' on", "'2' only edited whole files and is gone; so is its message"]


def test_files_that_go_or_move_or_become_links_keep_their_history(forge: Any) -> None:
    for last in ({"a": b"a"}, {"a": b"a", "moved": b"2"}, {"a": b"a", "o": ("120000", b"a")}):
        states = [{"a": b"a"}, {"a": b"a", "o": b"1"}, {"a": b"a", "o": b"2"}, last]
        kept, notes = folded(forge, *states)
        assert kept == [(str(number), forge.tree(state)) for number, state in enumerate(states[1:])]
        assert notes == []


def test_a_file_that_is_added_again_is_folded_from_there(forge: Any) -> None:
    kept, _ = folded(
        forge, {"a": b"a"}, {"a": b"a", "o": b"1"}, {"a": b"a"}, {"a": b"a", "o": b"2"}, {"a": b"x", "o": b"3"}
    )
    assert [tree for _, tree in kept] == [
        forge.tree({"a": b"a", "o": b"1"}),
        forge.tree({"a": b"a"}),
        forge.tree({"a": b"a", "o": b"3"}),
        forge.tree({"a": b"x", "o": b"3"}),
    ]


def test_empty_commits_of_the_persons_own_stay(forge: Any) -> None:
    kept, notes = folded(forge, {"a": b"a"}, {"a": b"a"}, {"a": b"b"})
    assert [subject for subject, _ in kept] == ["0", "1"]
    assert notes == []
    assert folded(forge, {"a": b"a"}) == ([], [])
