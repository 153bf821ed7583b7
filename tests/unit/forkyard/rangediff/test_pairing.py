"""Which patch is which, in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from forkyard.gitstore import Author
from forkyard.rangediff.model import Pair, Place
from forkyard.rangediff.pairing import Range, pair_up
from forkyard.stacks.applying import AppliedPatch
from forkyard.stacks.patchfile import Trailers

AUTHOR = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")
TEXT = {f"f{number}": "".join(f"{number} {line}\n" for line in range(20)).encode() for number in range(6)}
Series = Sequence[tuple[str, str, Mapping[str, Any]]]


def series(forge: Any, *steps: tuple[str, str, Mapping[str, Any]], status: str = "Pending") -> Range:
    """A range of patches: name, subject, and files that change."""
    files: dict[str, Any] = dict(TEXT)
    tip = base = forge.store.commit(forge.tree(files), None, AUTHOR, b"base\n")
    patches = []
    for name, subject, changes in steps:
        files.update(changes)
        tip = forge.store.commit(forge.tree(files), tip, AUTHOR, f"{subject}\n\nUpstream-Status: {status}\n".encode())
        patches.append(AppliedPatch("part", name, "", subject, Trailers(status, (), ()), tip))
    return Range(Place("x", None, base, "2026-01-02"), base, tip, tuple(patches))


def change(number: int, word: str = "x") -> dict[str, bytes]:
    return {f"f{number}": TEXT[f"f{number}"] + f"{word}\n".encode()}


def shown(pairs: Sequence[Pair]) -> list[str]:
    return [
        f"{pair.old.name if pair.old else '-'}{pair.sign}{pair.new.name if pair.new else '-'}"
        + ("*" if pair.moved else "")
        + ("~" if pair.rewritten else "")
        for pair in pairs
    ]


def test_the_same(forge: Any) -> None:
    steps: Series = [("a", "a", change(0)), ("b", "b", change(1))]
    pairs, factor = pair_up(forge.store, series(forge, *steps), series(forge, *steps))
    assert (shown(pairs), factor) == (["a=a", "b=b"], 60)
    assert not any(pair.changed for pair in pairs)


def test_moved_renamed_dropped_added(forge: Any) -> None:
    old = series(forge, ("a", "a", change(0)), ("b", "b", change(1)), ("c", "c", change(2)), ("d", "d", change(3)))
    new = series(forge, ("d", "d", change(3)), ("a", "a", change(0)), ("cc", "c", change(2)), ("e", "e", change(4)))
    pairs, factor = pair_up(forge.store, old, new)
    assert (sorted(shown(pairs)), factor) == (sorted(["b<-", "d=d*", "a=a", "c=cc", "->e"]), 60)


def test_a_name_brings_together_what_git_splits(forge: Any) -> None:
    old = series(forge, ("a", "a", change(0)), ("b", "b", change(1)))
    new = series(forge, ("a", "a", change(0, "y")), ("b", "b", change(1)))
    pairs, factor = pair_up(forge.store, old, new)
    assert shown(pairs) == ["a!a", "b=b"]
    assert factor > 60
    pairs, factor = pair_up(forge.store, old, new, 60)
    assert (sorted(shown(pairs)), factor) == (sorted(["a<-~", "->a~", "b=b"]), 60)


def test_strangers_are_not_joined(forge: Any) -> None:
    old = series(forge, ("a", "a", change(0)), ("b", "b", change(1)))
    new = series(forge, ("a", "other", change(2)), ("c", "c", change(3)))
    pairs, factor = pair_up(forge.store, old, new)
    assert factor == 60
    assert sorted(shown(pairs)) == sorted(["a<-~", "b<-", "->a~", "->c"])


def test_one_side_is_empty(forge: Any) -> None:
    full, empty = series(forge, ("a", "a", change(0))), series(forge)
    assert shown(pair_up(forge.store, full, empty)[0]) == ["a<-"]
    assert shown(pair_up(forge.store, empty, full)[0]) == ["->a"]
    assert pair_up(forge.store, empty, empty) == ((), 60)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ({"x": b"\0one"}, {"x": b"\0two"}, ["binary file x"]),
        ({"x": ("100644", b"1\n")}, {"x": ("100755", b"1\n")}, ["mode of x"]),
        ({"x": ("100644", b"y")}, {"x": ("120000", b"y")}, ["mode of x"]),
        ({"x": ("100644", b"\0")}, {"x": ("100755", b"\0\0")}, ["binary file x", "mode of x"]),
        ({"x": b"\0one"}, {"x": b"\0one"}, []),
    ],
)
def test_what_git_does_not_show(
    forge: Any, old: Mapping[str, Any], new: Mapping[str, Any], what: Sequence[str]
) -> None:
    more = change(0)
    (pair,), _ = pair_up(forge.store, series(forge, ("a", "a", old | more)), series(forge, ("a", "a", new | more)))
    assert [fact.what for fact in pair.facts] == list(what)
    assert pair.sign == ("!" if what else "=")
    assert pair.header.split()[2] == pair.sign
    assert [line.text for line in pair.lines if any(line.text[1:].startswith(fact) for fact in what)] == [
        f"{mark}{fact.what}: {value}" for fact in pair.facts for mark, value in (("-", fact.old), ("+", fact.new))
    ]


def test_trailers_are_told(forge: Any) -> None:
    old = series(forge, ("a", "a", change(0)))
    new = series(forge, ("a", "a", change(0)), status="Denied https://example.invalid")
    (pair,), _ = pair_up(forge.store, old, new)
    assert [(fact.what, fact.old, fact.new) for fact in pair.facts] == [
        ("Upstream-Status", "Pending", "Denied https://example.invalid")
    ]
