from __future__ import annotations

from typing import Any

import pytest

from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore.history import changed_paths, commits, is_ancestor, merge_base, patch_ids, touching

AUTHOR = Author("J\u00fcrgen O'Neil", "j@example.org", "2026-01-02T03:04:05+02:00")
LINES = "".join(f"line {number}\n" for number in range(30))


@pytest.fixture
def chain(forge: Any, store: Store) -> list[str]:
    """Four commits that follow each other."""
    tip = None
    found = []
    for number in range(4):
        tip = store.commit(forge.tree({"f": b"%d\n" % number, "g": b"g"}), tip, AUTHOR, b"part : %d\n\nbody\n" % number)
        found.append(tip)
    return found


def test_commits_in_order_with_all_their_facts(store: Store, chain: list[str]) -> None:
    found = commits(store, f"{chain[0]}..{chain[3]}")
    assert [one.commit for one in found] == chain[1:]
    assert [one.parents for one in found] == [(parent,) for parent in chain[:3]]
    assert [one.subject for one in found] == ["part : 1", "part : 2", "part : 3"]
    assert found[0].tree == store.tree_of(chain[1])
    assert found[0].author == AUTHOR
    assert found[0].message == "part : 1\n\nbody\n"
    assert commits(store, f"{chain[3]}..{chain[3]}") == []


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        ("1767348000 +0000", "2026-01-02T10:00:00+00:00"),
        ("1767348000 -0000", "2026-01-02T10:00:00+00:00"),
        ("1767348000 +0530", "2026-01-02T15:30:00+05:30"),
        ("1767348000 -0330", "2026-01-02T06:30:00-03:30"),
        ("0 +0000", "1970-01-01T00:00:00+00:00"),
        ("1767348000 +9900", "@1767348000 +9900"),
        ("1767348000 +0075", "@1767348000 +0075"),
        ("99999999999999 +0000", "@99999999999999 +0000"),
    ],
)
def test_a_date_is_read_as_numbers_and_written_in_one_form(store: Store, forge: Any, raw: str, written: str) -> None:
    # git 2.39 writes UTC as +00:00, 2.47 as Z.
    tree = forge.tree({})
    text = f"tree {tree}\nauthor a <a@b> {raw}\ncommitter a <a@b> 1 +0000\n\nm\n"
    commit = store._line("hash-object", "-t", "commit", "-w", "--stdin", stdin=text.encode())
    assert [one.author.date for one in commits(store, commit)] == [written]


@pytest.mark.parametrize(
    "message", ["one line", "two\nlines\n\n\nbody\n", "control \x02 \u2028 here\n\n\x1f", "\u6f22\n"]
)
def test_any_message_is_read_whole(store: Store, forge: Any, message: str) -> None:
    commit = store.commit(forge.tree({}), None, AUTHOR, message.encode())
    after = store.commit(forge.tree({}), commit, AUTHOR, b"after\n")
    found = commits(store, after)
    assert [one.commit for one in found] == [commit, after]
    assert found[0].message.rstrip("\n") == message.rstrip("\n")


def test_merges_have_two_parents(store: Store, forge: Any, chain: list[str]) -> None:
    side = store.commit(forge.tree({"s": b""}), chain[1], AUTHOR, b"side\n")
    raw = (
        f"tree {store.tree_of(side)}\nparent {chain[3]}\nparent {side}\n"
        "author a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nmerge\n"
    )
    merge = store._line("hash-object", "-t", "commit", "-w", "--stdin", stdin=raw.encode())
    assert [one.commit for one in commits(store, "--min-parents=2", f"{chain[0]}..{merge}")] == [merge]
    assert merge_base(store, chain[3], side) == chain[1]
    assert is_ancestor(store, side, merge)
    assert not is_ancestor(store, merge, side)


def test_histories_that_do_not_meet(store: Store, forge: Any, chain: list[str]) -> None:
    other = store.commit(forge.tree({}), None, AUTHOR, b"other\n")
    assert merge_base(store, chain[3], other) is None
    assert not is_ancestor(store, other, chain[3])
    for missing in (lambda: merge_base(store, chain[0], "1" * 40), lambda: is_ancestor(store, "1" * 40, chain[0])):
        with pytest.raises(GitFailure):
            missing()
    with pytest.raises(GitFailure):
        commits(store, "1" * 40)


def change(forge: Any, old: dict[str, Any], new: dict[str, Any]) -> str:
    base = forge.store.commit(forge.tree(old), None, AUTHOR, b"base\n")
    commit = forge.store.commit(forge.tree(new), base, AUTHOR, b"change\n")
    assert isinstance(commit, str)
    return commit


def test_the_same_change_elsewhere_has_the_same_id(store: Store, forge: Any) -> None:
    here = change(forge, {"f": LINES.encode()}, {"f": LINES.replace("line 9", "nine").encode()})
    moved = "more\n" * 5 + LINES
    there = change(forge, {"f": moved.encode()}, {"f": moved.replace("line 9", "nine").encode()})
    other = change(forge, {"f": LINES.encode()}, {"f": LINES.replace("line 9", "ten").encode()})
    empty = change(forge, {"f": b""}, {"f": b""})
    undone = change(forge, {"f": LINES.replace("line 9", "nine").encode()}, {"f": LINES.encode()})
    found = patch_ids(store, [here, there, other, empty, undone])
    assert found[here] == found[there] != found[other]
    assert empty not in found
    assert patch_ids(store, [here], reverse=True)[here] == found[undone]
    assert patch_ids(store, []) == {}


def test_what_differs(store: Store, forge: Any) -> None:
    old = forge.tree({"a": b"a", "dir/b c": b"b", "\u00fc": b"1", "same": b""})
    new = forge.tree({"a": ("100755", b"a"), "moved": b"b", "\u00fc": b"2", "same": b""})
    assert changed_paths(store, old, new) == ["a", "dir/b c", "moved", "\u00fc"]
    assert changed_paths(store, old, old) == []


def test_who_touched_a_path(store: Store, forge: Any) -> None:
    states = [{"a": b"1", "*": b"1"}, {"a": b"2", "*": b"1"}, {"a": b"2", "*": b"2"}, {"a": b"3", "*": b"3"}]
    found: list[str] = []
    for state in states:
        found.append(store.commit(forge.tree(state), found[-1] if found else None, AUTHOR, b"x\n"))
    assert touching(store, found[0], found[3], ["a"]) == [found[1], found[3]]
    assert touching(store, found[0], found[3], ["*"]) == found[2:]
    assert touching(store, found[0], found[3], ["nosuch"]) == []
