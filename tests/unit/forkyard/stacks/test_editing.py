from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from forkyard.errors import PatchError
from forkyard.gitstore import Author, Entry, Store
from forkyard.gitstore.history import CommitFacts, commits
from forkyard.sources import Obtained
from forkyard.stacks.editing import restored, side_of
from forkyard.stacks.importing import Imported
from forkyard.stacks.joining import Chain, join

Files = Mapping[str, Any]
LINES = "".join(f"line {number}\n" for number in range(60)).encode()
BASE: Files = {"f": LINES, "g": LINES}


def line(number: int, text: str, on: bytes = LINES) -> bytes:
    lines = on.splitlines(keepends=True)
    lines[number] = text.encode() + b"\n"
    return b"".join(lines)


def chain(forge: Any, base: Files, *steps: tuple[str, Files]) -> Chain:
    """A series: subject and the state after it, each dated by the sum of its letters."""
    store = forge.store
    tree = forge.tree(base)
    start = tip = store.commit(tree, None, Author("A", "a@b", "2026-01-02T00:00:00Z"), b"base\n")
    for subject, state in steps:
        author = Author("A", "a@b", f"2026-01-02T00:00:{sum(map(ord, subject.split()[0])) % 60:02}Z")
        tip = store.commit(forge.tree(state), tip, author, f"{subject}\n\nUpstream-Status: Pending\n".encode())
    return Chain(tree, commits(store, f"{start}..{tip}") if steps else [])


def subjects(found: Sequence[CommitFacts]) -> list[str]:
    return [one.subject for one in found]


A, B = line(5, "a"), line(30, "b")
AB: Files = {"f": A, "g": B}


@pytest.fixture
def old(forge: Any) -> Chain:
    return chain(forge, BASE, ("a", {**BASE, "f": A}), ("b", AB))


def test_each_patch_is_taken_from_the_side_that_changed_it(forge: Any, store: Store, old: Chain) -> None:
    mine = chain(forge, BASE, ("a", {**BASE, "f": A}), ("b", {"f": A, "g": line(30, "b mine")}))
    other_a = line(5, "a theirs")
    theirs = chain(forge, BASE, ("a", {**BASE, "f": other_a}), ("b", {"f": other_a, "g": B}))
    found = join(store, old, mine, theirs, "next")
    assert subjects(found) == ["a", "b"]
    assert [one.tree for one in found] == [
        forge.tree({**BASE, "f": other_a}),
        forge.tree({"f": other_a, "g": line(30, "b mine")}),
    ]


def test_new_ones_of_both_sides_and_dropped_ones(forge: Any, store: Store, old: Chain) -> None:
    mine = chain(forge, BASE, ("b", {**BASE, "g": B}), ("mine", {"f": line(50, "m"), "g": B}))
    theirs = chain(forge, BASE, ("theirs", {**BASE, "f": line(20, "t")}), ("a", {**BASE, "f": line(20, "t", A)}),
                   ("b", {"f": line(20, "t", A), "g": B}))  # fmt: skip
    found = join(store, old, mine, theirs, "next")
    assert subjects(found) == ["theirs", "b", "mine"]
    assert found[-1].tree == forge.tree({"f": line(20, "t", line(50, "m")), "g": B})


def test_another_ground_alone(forge: Any, store: Store, old: Chain) -> None:
    """The stack before changed, or the pin moved: theirs is the same series elsewhere."""
    ground: Files = {"f": b"more\n" + LINES, "g": LINES}
    moved = b"more\n" + A
    theirs = chain(forge, ground, ("a", {**ground, "f": moved}), ("b", {"f": moved, "g": B}))
    mine = chain(forge, BASE, ("a", {**BASE, "f": A}), ("b", {"f": A, "g": line(30, "b mine")}))
    found = join(store, old, mine, theirs, "next")
    assert found[-1].tree == forge.tree({"f": moved, "g": line(30, "b mine")})


def test_the_order_of_the_side_that_changed_it(forge: Any, store: Store, old: Chain) -> None:
    mine = chain(forge, BASE, ("b", {**BASE, "g": B}), ("a", AB))
    theirs = chain(forge, BASE, ("a", {**BASE, "f": A}), ("new", {**BASE, "f": line(50, "n", A)}),
                   ("b", {"f": line(50, "n", A), "g": B}))  # fmt: skip
    assert subjects(join(store, old, mine, theirs, "next")) == ["b", "a", "new"]
    with pytest.raises(PatchError, match="cannot be brought together") as caught:
        join(store, old, mine, mine, "next")
    assert "order" in str(caught.value.why)


@pytest.mark.parametrize("drops", [False, True])
def test_a_patch_both_sides_changed_is_for_a_person(forge: Any, store: Store, old: Chain, drops: bool) -> None:
    mine = chain(forge, BASE, ("a", {**BASE, "f": line(5, "mine")}), ("b", {"f": line(5, "mine"), "g": B}))
    last = {"f": line(5, "theirs"), "g": B}
    theirs = chain(forge, BASE, ("a", {**BASE, "f": line(5, "theirs")}), ("b", last))
    if drops:
        theirs = chain(forge, BASE, ("b", {**BASE, "g": B}))
    with pytest.raises(PatchError) as caught:
        join(store, old, mine, theirs, "do this")
    assert "both sides changed 'a'" in str(caught.value.why)
    assert caught.value.next_step == "do this"


def test_the_same_change_on_both_sides_is_none(forge: Any, store: Store, old: Chain) -> None:
    same = line(5, "same")
    mine = chain(forge, BASE, ("a", {**BASE, "f": same}), ("b", {"f": same, "g": B}))
    assert [one.tree for one in join(store, old, mine, mine, "next")] == [one.tree for one in mine.commits]


def test_changes_that_do_not_merge_are_named(forge: Any, store: Store, old: Chain) -> None:
    mine = chain(forge, BASE, ("a", {**BASE, "f": A}), ("b", AB), ("mine", {"f": line(20, "m", A), "g": B}))
    theirs = chain(forge, BASE, ("a", {**BASE, "f": A}), ("b", AB), ("theirs", {"f": line(20, "t", A), "g": B}))
    with pytest.raises(PatchError) as caught:
        join(store, old, mine, theirs, "next")
    assert "'mine' conflicts with the other side's changes of f" in str(caught.value.why) or "'theirs'" in str(
        caught.value.why
    )


# -- a pin that was not delivered whole ----------------------------------------------------------------


def test_what_a_source_lacks_is_left_out_and_put_back(forge: Any, store: Store) -> None:
    lost = Entry("100644", "blob", "1" * 40, "dir/lost.bin")
    linked = Entry("160000", "commit", "2" * 40, "module")
    whole = store.write_tree([*store.entries(forge.tree({"a": b"a"})), lost, linked])
    changed = store.write_tree([*store.entries(forge.tree({"a": b"b"})), lost, linked])
    author = Author("A", "a@b", "2026-01-02T00:00:00Z")
    base = store.commit(whole, None, author, b"base\n")
    tip = store.commit(changed, base, author, b"change\n")
    imported = Imported(base, whole, tuple(commits(store, f"{base}..{tip}")), ("x.patch",))
    obtained = Obtained("1" * 40, whole, "2026-01-05", 0, "registry", "here", ("dir/lost.bin",))
    side = side_of(store, obtained, imported)
    assert side == side_of(store, obtained, imported)
    assert side.absent == (lost,)
    assert [entry.path for entry in store.entries(store.tree_of(side.tip))] == ["a", "module"]
    (back,) = restored(store, commits(store, f"{side.base}..{side.tip}"), side.absent)
    assert back.tree == changed
    assert side_of(store, dataclasses.replace(obtained, absent=()), imported).tip == tip


def test_a_file_of_the_persons_own_in_its_place_stays(forge: Any, store: Store) -> None:
    lost = Entry("100644", "blob", "1" * 40, "lost")
    author = Author("A", "a@b", "2026-01-02T00:00:00Z")
    tip = store.commit(forge.tree({"lost": b"mine"}), None, author, b"x\n")
    (back,) = restored(store, commits(store, tip), [lost])
    assert back.tree == forge.tree({"lost": b"mine"})
