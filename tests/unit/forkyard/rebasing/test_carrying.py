"""One change carried over to another tree: every kind of conflict, its record, and the record used again."""

from __future__ import annotations

from typing import Any

import pytest

from forkyard.gitstore.merging import has_markers
from forkyard.rebasing.carrying import Carried, carry, resolution_of
from forkyard.rebasing.resolutions import DELETED, EDITED, Resolution, Resolutions, parse

from .lab import Files, Lab, numbered, text

BINARY = bytes(range(256)) * 8
LINK = ("120000", b"a.c")


def records(known: Resolutions) -> list[Resolution]:
    """All there are."""
    return [record for of_key in known._known.values() for record in of_key.values()]


def resolve(lab: Lab, carried: Carried, changes: dict[str, Any]) -> Resolutions:
    """Resolve as a person would, from what they are shown; the records, written and read again."""
    files: dict[str, Any] = {
        entry.path: (entry.mode, lab.content(entry)) for entry in lab.upstream.entries(carried.marked)
    }
    for path, content in changes.items():
        if content is None:
            files.pop(path, None)
        else:
            files[path] = content
    made, left = resolution_of(lab.upstream, carried, lab.tree(files), "fix.patch", "1" * 12, "2" * 12)
    assert left == []
    known = Resolutions()
    for record in made:
        known.add(parse(record.render(), record.file_name))
    return known


def test_clean(lab: Lab) -> None:
    done = lab.carry({"a.c": numbered()}, {"a.c": numbered(l1="new")}, {"a.c": numbered(l20="mine")})
    assert (done.status, done.empty, done.conflicts) == ("clean", False, ())
    assert lab.files(done.tree) == {"a.c": numbered(l1="new", l20="mine")}


def test_same_change_on_both_sides_leaves_nothing(lab: Lab) -> None:
    done = lab.carry({"a.c": numbered()}, {"a.c": numbered(l5="x", l15="y")}, {"a.c": numbered(l5="x")})
    assert (done.status, done.empty) == ("clean", True)


def test_the_patch_follows_a_renamed_file(lab: Lab) -> None:
    done = lab.carry({"a.c": numbered()}, {"lib/b.c": numbered(l2="new")}, {"a.c": numbered(l18="mine")})
    assert done.status == "clean"
    assert lab.files(done.tree) == {"lib/b.c": numbered(l2="new", l18="mine")}


def test_a_mode_change_is_carried(lab: Lab) -> None:
    done = lab.carry({"a.sh": numbered()}, {"a.sh": numbered(l3="x")}, {"a.sh": ("100755", numbered())})
    assert done.status == "clean"
    (entry,) = lab.upstream.entries(done.tree)
    assert entry.mode == "100755"
    assert lab.files(done.tree)["a.sh"] == numbered(l3="x")


def test_a_mode_of_the_patch_survives_a_conflict_in_the_file(lab: Lab) -> None:
    done = lab.carry({"a.sh": text("a")}, {"a.sh": text("b")}, {"a.sh": ("100755", text("c"))})
    assert done.status == "conflict"
    for tree in (done.tree, done.marked):
        (entry,) = lab.upstream.entries(tree)
        assert entry.mode == "100755"


# What there was, upstream's, the patch's; kind of the conflict; what the provisional tree holds.
CONFLICTS: dict[str, tuple[Files, Files, Files, str, dict[str, bytes]]] = {
    "contents": (
        {"a.c": numbered()},
        {"a.c": numbered(l5="theirs")},
        {"a.c": numbered(l5="mine")},
        "contents",
        {"a.c": numbered(l5="mine")},
    ),
    "crlf": (
        {"a.c": b"a\r\nb\r\n"},
        {"a.c": b"a\r\nc\r\n"},
        {"a.c": b"a\r\nd\r\n"},
        "contents",
        {"a.c": b"a\r\nd\r\n"},
    ),
    "no final newline": ({"a.c": b"a"}, {"a.c": b"b"}, {"a.c": b"c"}, "contents", {"a.c": b"c"}),
    "added by both": ({}, {"a.c": text("theirs")}, {"a.c": text("mine")}, "contents", {"a.c": text("mine")}),
    "deleted upstream": ({"a.c": numbered()}, {}, {"a.c": numbered(l5="mine")}, "modify/delete", {}),
    "deleted by the patch": ({"a.c": numbered()}, {"a.c": numbered(l5="x")}, {}, "modify/delete", {}),
    "binary": (
        {"a.bin": BINARY},
        {"a.bin": BINARY + b"\0theirs"},
        {"a.bin": BINARY + b"\0mine"},
        "binary",
        {"a.bin": BINARY + b"\0mine"},
    ),
    "link against file": (
        {"a.c": text("a"), "l": text("x")},
        {"a.c": text("a"), "l": LINK},
        {"a.c": text("a"), "l": text("y")},
        "distinct types",
        {},
    ),
    "links to different places": (
        {"l": ("120000", b"a")},
        {"l": ("120000", b"b")},
        {"l": ("120000", b"c")},
        "contents",
        {"l": b"c"},
    ),
    "file where upstream has a folder": ({}, {"p/a.c": text("a")}, {"p": text("mine")}, "file/directory", {}),
    "folder where upstream has a file": ({}, {"p": text("theirs")}, {"p/a.c": text("a")}, "file/directory", {}),
    "renamed to two names": (
        {"a.c": numbered()},
        {"b.c": numbered()},
        {"c.c": numbered()},
        "rename/rename",
        {},
    ),
    "renamed upstream, deleted by the patch": (
        {"a.c": numbered(), "z": b""},
        {"b.c": numbered(l3="x"), "z": b""},
        {"z": b""},
        "rename/delete",
        {},
    ),
    "two renamed to one": (
        {"a.c": numbered(), "b.c": numbered(30, l1="other", l9="one")},
        {"x.c": numbered(), "b.c": numbered(30, l1="other", l9="one")},
        {"a.c": numbered(), "x.c": numbered(30, l1="other", l9="one")},
        "",
        {},
    ),
    "a submodule moved by both": (
        {"s": ("160000", "1" * 40)},
        {"s": ("160000", "2" * 40)},
        {"s": ("160000", "3" * 40)},
        "",
        {},
    ),
}


@pytest.mark.parametrize("what", CONFLICTS)
def test_conflicts(lab: Lab, what: str) -> None:
    before, upstream, patch, kind, provisional = CONFLICTS[what]
    done = lab.carry(before, upstream, patch)
    assert done.status == "conflict"
    assert not done.empty
    assert done.open == done.conflicts
    if kind:
        assert {one.conflict.kind for one in done.conflicts} & {kind, "distinct modes"}, done.conflicts
    found = lab.files(done.tree)
    for path, data in provisional.items():
        assert found[path] == data
    # Later patches are tried on it, so it holds no markers.
    assert not any(has_markers(data) for data in found.values())
    textual = [one for one in done.conflicts if one.regions]
    for one in textual:
        assert has_markers(lab.files(done.marked)[one.path])


@pytest.mark.parametrize("what", CONFLICTS)
def test_any_resolution_is_taken_and_used_again(lab: Lab, what: str) -> None:
    before, upstream, patch, _, _ = CONFLICTS[what]
    done = lab.carry(before, upstream, patch)
    changes: dict[str, Any] = {one.path: None for one in done.open}
    changes["resolved/it.c"] = text("this way")
    known = resolve(lab, done, changes)
    again = lab.carry(before, upstream, patch, known)
    assert again.status == "resolved"
    assert again.open == ()
    assert not set(lab.files(again.tree)) & {one.path for one in done.open}
    assert lab.files(again.tree)["resolved/it.c"] == text("this way")


def test_a_resolution_moves_with_its_lines(lab: Lab) -> None:
    before, patch = {"a.c": numbered()}, {"a.c": numbered(l15="mine")}
    done = lab.carry(before, {"a.c": numbered(l15="theirs")}, patch)
    known = resolve(lab, done, {"a.c": numbered(l15="both")})
    assert [record.result for record in records(known)] == [EDITED]
    further = {"a.c": numbered(l1="a\nb\nc", l15="theirs")}
    again = lab.carry(before, further, patch, known)
    assert again.status == "resolved"
    assert lab.files(again.tree) == {"a.c": numbered(l1="a\nb\nc", l15="both")}


def test_a_resolution_follows_a_renamed_file(lab: Lab) -> None:
    before, patch = {"a.c": numbered()}, {"a.c": numbered(l15="mine")}
    known = resolve(lab, lab.carry(before, {"a.c": numbered(l15="theirs")}, patch), {"a.c": numbered(l15="both")})
    again = lab.carry(before, {"lib/b.c": numbered(l15="theirs")}, patch, known)
    assert again.status == "resolved"
    assert lab.files(again.tree) == {"lib/b.c": numbered(l15="both")}


def test_a_resolution_is_not_used_where_a_side_differs(lab: Lab) -> None:
    before, patch = {"a.c": numbered()}, {"a.c": numbered(l15="mine")}
    known = resolve(lab, lab.carry(before, {"a.c": numbered(l15="theirs")}, patch), {"a.c": numbered(l15="both")})
    again = lab.carry(before, {"a.c": numbered(l15="theirs, changed")}, patch, known)
    assert again.status == "conflict"


def test_a_record_whose_diff_does_not_apply_is_no_resolution(lab: Lab) -> None:
    before, patch = {"a.c": numbered(), "h": numbered()}, {"a.c": numbered(l15="mine"), "h": numbered()}
    first = {"a.c": numbered(l15="theirs"), "h": numbered()}
    known = resolve(lab, lab.carry(before, first, patch), {"a.c": numbered(l15="both"), "h": numbered(l3="too")})
    assert lab.files(lab.carry(before, first, patch, known).tree)["h"] == numbered(l3="too")
    # The other file that had to change is another one now.
    again = lab.carry(before, {**first, "h": numbered(l3="not this")}, patch, known)
    assert again.status == "conflict"
    assert has_markers(lab.files(again.marked)["a.c"])


def test_a_resolution_may_delete_the_file(lab: Lab) -> None:
    sides = ({"a.c": numbered()}, {"a.c": numbered(l5="x")}, {"a.c": numbered(l5="y")})
    known = resolve(lab, lab.carry(*sides), {"a.c": None})
    (record,) = records(known)
    # Upstream's text has no place in our repository.
    assert (record.result, record.diff) == (DELETED, b"")
    again = lab.carry(*sides, known)
    assert (again.status, lab.files(again.tree)) == ("resolved", {})


def test_keeping_upstreams_side_leaves_nothing_of_the_patch(lab: Lab) -> None:
    sides = ({"a.c": numbered()}, {"a.c": numbered(l5="x")}, {"a.c": numbered(l5="y")})
    known = resolve(lab, lab.carry(*sides), {"a.c": numbered(l5="x")})
    again = lab.carry(*sides, known)
    assert (again.status, again.empty) == ("resolved", True)


def test_one_of_two_conflicts_known(lab: Lab) -> None:
    def both(word: str) -> Files:
        return {"a.c": numbered(l5=word), "b.c": numbered(l7=word)}

    done = lab.carry(both("old"), both("theirs"), both("mine"))
    assert [one.path for one in done.open] == ["a.c", "b.c"]
    known = resolve(lab, done, {"a.c": numbered(l5="A"), "b.c": numbered(l7="B")})
    # The second record alone, as after a kill between the two.
    second = Resolutions()
    (record,) = (one for one in records(known) if one.path == "b.c")
    second.add(record)
    half = lab.carry(both("old"), both("theirs"), both("mine"), second)
    assert (half.status, [one.path for one in half.open]) == ("conflict", ["a.c"])
    assert lab.files(half.marked)["b.c"] == numbered(l7="B")
    rest = resolve(lab, half, {"a.c": numbered(l5="A")})
    for one in records(rest):
        assert b"b.c" not in one.diff
        second.add(one)
    assert lab.carry(both("old"), both("theirs"), both("mine"), second).status == "resolved"


def test_the_same_conflict_in_two_files_resolved_differently(lab: Lab) -> None:
    def both(word: str) -> Files:
        return {"a.c": numbered(l5=word), "b.c": numbered(l5=word)}

    sides = (both("old"), both("theirs"), both("mine"))
    done = lab.carry(*sides)
    assert len({one.key for one in done.open}) == 1
    wanted = {"a.c": numbered(l5="A"), "b.c": numbered(l5="B")}
    known = resolve(lab, done, wanted)
    assert len({record.file_name for record in records(known)}) == 2
    again = lab.carry(*sides, known)
    assert (again.status, lab.files(again.tree)) == ("resolved", wanted)


def test_markers_that_are_left_are_named(lab: Lab) -> None:
    done = lab.carry({"a.c": numbered()}, {"a.c": numbered(l5="x")}, {"a.c": numbered(l5="y")})
    assert resolution_of(lab.upstream, done, done.marked, "p", "1", "2") == ([], ["a.c"])


def test_a_strange_path(lab: Lab) -> None:
    path = 'a folder/ü "quoted"\t.c'
    sides = ({path: numbered()}, {path: numbered(l5="x")}, {path: numbered(l5="y")})
    known = resolve(lab, lab.carry(*sides), {path: numbered(l5="z")})
    again = lab.carry(*sides, known)
    assert (again.status, lab.files(again.tree)) == ("resolved", {path: numbered(l5="z")})


@pytest.mark.parametrize(
    ("before", "upstream", "patch", "both"),
    [
        (numbered(), ("theirs",), ("mine", "mine too"), ("theirs", "mine", "mine too")),
        # Lines that are the same on both sides are on both sides.
        (numbered(), ("theirs", "}"), ("mine", "}"), None),
    ],
)
def test_what_both_add_in_one_place_is_kept(
    lab: Lab, before: bytes, upstream: tuple[str, ...], patch: tuple[str, ...], both: tuple[str, ...] | None
) -> None:
    head, tail = numbered().split(b"line 11\n")
    sides = [head + text(*lines, "line 11") + tail for lines in (upstream, patch)]
    trees = [lab.tree({"a.c": data}) for data in (before, *sides)]
    assert carry(lab.upstream, *trees).status == "conflict"
    done = carry(lab.upstream, *trees, additive=True)
    assert (done.status, done.conflicts[0].additive) == ("resolved", True)
    data = lab.files(done.tree)["a.c"]
    if both is not None:
        assert data == head + text(*both, "line 11") + tail
    # No line of either side is lost, and taking either side's away leaves the other's file.
    lines = data.splitlines()
    assert [line for line in lines if line.decode() not in patch] == [
        line for line in sides[0].splitlines() if line.decode() not in patch
    ]
    assert all(lines.count(line) >= side.splitlines().count(line) for side in sides for line in side.splitlines())


@pytest.mark.parametrize(
    ("before", "upstream", "patch"),
    [
        (numbered(), numbered(l5="theirs"), numbered(l5="mine")),
        (numbered(), numbered(l5="theirs\nmore"), numbered(l5=None)),
        (b"a\n", b"a\ntheirs", b"a\nmine"),
    ],
    ids=["changed", "deleted", "no end of line"],
)
def test_what_is_more_than_adding_is_for_a_person(lab: Lab, before: bytes, upstream: bytes, patch: bytes) -> None:
    trees = [lab.tree({"a.c": data}) for data in (before, upstream, patch)]
    assert carry(lab.upstream, *trees, additive=True).status == "conflict"


def test_two_new_files_of_one_name_are_for_a_person(lab: Lab) -> None:
    trees = [lab.tree(files) for files in ({}, {"a.c": text("theirs")}, {"a.c": text("mine")})]
    assert carry(lab.upstream, *trees, additive=True).status == "conflict"
