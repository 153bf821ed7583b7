"""A whole series in one run, whatever happens to each patch."""

from __future__ import annotations

import pytest

from forkyard.gitstore import GitFailure
from forkyard.gitstore.merging import has_markers
from forkyard.stacks.applying import base_commit

from .lab import Lab, numbered, statuses, text, verdicts

BINARY = bytes(range(256))


def test_all_outcomes_in_one_run(lab: Lab) -> None:
    old = {"a.c": numbered(), "b.c": numbered(), "m.c": numbered(), "keep": text("x")}
    new = {"a.c": numbered(l5="theirs"), "lib/m.c": numbered(), "keep": text("x", "merged"), "b.c": numbered(l20="u")}
    made = lab.history(old, new)
    one = {**old, "a.c": numbered(l5="mine")}
    two = {**one, "b.c": numbered(l2="mine")}
    three = {**two, "keep": text("x", "merged")}
    four = {**three, "a.c": numbered(l5="mine, more")}
    five = {**four, "m.c": numbered(l9="mine")}
    six = {**five, "ours.c": text("a whole file")}
    lab.series(made[0], ("one", one), ("two", two), ("three", three), ("four", four), ("five", five), ("six", six))
    seen: list[tuple[int, int, str]] = []
    done = lab.replay(*made, progress=lambda *facts: seen.append(facts))
    # The fourth depends on the first and is tried on what the first would give.
    assert statuses(done) == ["conflict", "clean", "dropped", "clean", "clean", "clean"]
    assert verdicts(done)[2] == "merged"
    assert [one.follows_conflict for one in done.outcomes] == [False, True, True, True, True, True]
    assert [name for _, name, _ in done.chain] == [f"{name}.patch" for name in ("one", "two", "four", "five", "six")]
    files = lab.files(done.tree)
    assert files["a.c"] == numbered(l5="mine, more")
    assert files["lib/m.c"] == numbered(l9="mine")
    assert not any(has_markers(data) for data in files.values())
    assert [fact[:2] for fact in seen] == [(number, 6) for number in range(7)]


def test_dropped_by_a_person(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    lab.series(
        made[0],
        ("one", {"a.c": numbered(l5="one")}),
        ("two", {"a.c": numbered(l5="one", l10="two")}),
        ("three", {"a.c": numbered(l5="one, again", l10="two")}),
    )
    done = lab.replay(*made, dropped=[("part", "one.patch")])
    # What the patch did is not there for those that build on it.
    assert statuses(done) == ["dropped", "clean", "conflict"]
    assert [one.follows_dropped for one in done.outcomes] == [(), (), ("part/one.patch",)]
    assert lab.files(done.tree)["a.c"] == numbered(l5="one, again", l10="two", l20="new")


def test_a_conflict_of_its_own_follows_from_nothing(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l10="theirs")})
    lab.series(made[0], ("one", {"a.c": numbered(l5="one")}), ("two", {"a.c": numbered(l5="one", l10="two")}))
    done = lab.replay(*made, dropped=[("part", "one.patch")])
    assert statuses(done) == ["dropped", "conflict"]
    assert done.outcomes[1].follows_dropped == ()


def test_ids_are_a_function_of_the_input(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    lab.series(made[0], ("one", {"a.c": numbered(l5="one")}))
    one, other = lab.replay(*made), lab.replay(*made)
    assert one.outcomes[-1].commit == other.outcomes[-1].commit
    there = lab.base(made[1])
    assert one.base == base_commit(lab.upstream, "llama.cpp", there.commit, there.date, there.tree)


def test_there_and_back(lab: Lab) -> None:
    """On the base they were made on, the commits are the very same."""
    made = lab.history({"a.c": numbered(), "b": BINARY}, {"a.c": numbered(l20="new"), "b": BINARY, "x": b""})
    lab.series(
        made[0],
        ("one", {"a.c": ("100755", numbered(l5="one")), "b": BINARY}),
        ("two", {"a.c": ("100755", numbered(l5="one")), "b": BINARY + b"\0", "new": text("mine")}),
    )
    there = lab.replay(*made)
    assert statuses(there) == ["clean", "clean"]
    same = lab.replay(made[0], made[0])
    assert [one.commit for one in same.outcomes] == [patch.commit for patch in same.old.patches]
    assert statuses(same) == ["clean", "clean"]


def test_no_patches(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": text("new")})
    lab.series(made[0])
    done = lab.replay(*made)
    assert (done.outcomes, done.chain, done.tree) == ((), (), lab.upstream.tree_of(made[1]))


def test_several_stacks(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    first = {"a.c": numbered(l5="one")}
    lab.series(made[0], ("one", first), stack="first", order=1)
    lab.series(made[0], ("one", {"a.c": numbered(l5="one", l10="two")}), stack="second", order=2, after=lab.tree(first))
    done = lab.replay(*made)
    assert [one.key for one in done.outcomes] == [("first", "one.patch"), ("second", "one.patch")]
    only = lab.replay(*made, dropped=[("first", "one.patch")])
    assert statuses(only) == ["dropped", "clean"]
    assert lab.files(only.tree)["a.c"] == numbered(l10="two", l20="new")


def test_missing_objects_are_an_error(lab: Lab) -> None:
    made = lab.history({"a.c": numbered(), "z.c": numbered()}, {"a.c": numbered(l5="x"), "z.c": numbered()})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine"), "z.c": numbered()}))
    (entry,) = (one for one in lab.upstream.entries(f"{made[1]}^{{tree}}") if one.path == "a.c")
    (lab.upstream.path / "objects" / entry.oid[:2] / entry.oid[2:]).unlink()
    with pytest.raises(GitFailure):
        lab.replay(*made)
