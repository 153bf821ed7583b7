"""Reading conflict markers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkyard.gitstore import Store
from forkyard.gitstore.merging import MARKER_SIZE, has_markers, merge_texts
from forkyard.rebasing.regions import Region, identity, located, regions

from .lab import numbered, text

OPEN, BEFORE, MIDDLE, CLOSE = (mark * MARKER_SIZE for mark in "<|=>")


def test_one_region(store: Store) -> None:
    merged = merge_texts(store, numbered(), numbered(l5="theirs"), numbered(l5="ours"))
    (found,) = regions(merged.data)
    assert found == Region(5, b"theirs\n", b"line 5\n", b"ours\n")
    assert found.span == "5"


def test_lines_are_those_of_the_upstream_file(store: Store) -> None:
    upstream = numbered(30, l2="a\nb\nc", l10="x\ny", l20=None)
    # What the patch adds or deletes above a conflict moves nothing in upstream's file.
    patch = numbered(30, l4="line 4\nmine\nmine", l7=None, l10="p", l20="q", l28="z")
    merged = merge_texts(store, numbered(30), upstream, patch)
    assert b"mine" in merged.data
    first, second = located(store, merged.data, upstream)
    assert (first.line, first.span) == (12, "12-13")
    assert upstream.splitlines()[11:13] == [b"x", b"y"]
    # Where upstream has no line, it is told after which one.
    assert (second.upstream, second.span) == (b"", "after 22")
    assert upstream.splitlines()[21] == b"line 19"


def test_lines_of_a_conflict_at_either_end(store: Store) -> None:
    upstream, patch = numbered(9, l1="x", l9="y"), numbered(9, l1="p", l5=None, l9="q")
    merged = merge_texts(store, numbered(9), upstream, patch)
    assert [region.span for region in located(store, merged.data, upstream)] == ["1", "9"]


def test_no_final_newline(store: Store) -> None:
    merged = merge_texts(store, b"a\nb", b"a\nc", b"a\nd")
    (found,) = regions(merged.data)
    assert (found.line, found.span) == (2, "2")
    assert found.upstream.strip() == b"c"


def test_crlf(store: Store) -> None:
    old, new, patch = (text("a", word, "c").replace(b"\n", b"\r\n") for word in ("b", "x", "y"))
    merged = merge_texts(store, old, new, patch)
    assert has_markers(merged.data)
    (found,) = regions(merged.data)
    assert (found.upstream, found.before, found.patch) == (b"x\r\n", b"b\r\n", b"y\r\n")


def test_a_carriage_return_inside_a_line_ends_no_line(store: Store) -> None:
    merged = merge_texts(store, b"p\rq\na\n", b"p\rq\nb\n", b"p\rq\nc\n")
    (found,) = regions(merged.data)
    assert found.line == 2


@pytest.mark.parametrize("size", [7, 15, MARKER_SIZE - 1, MARKER_SIZE + 1])
def test_underlines_are_no_markers(store: Store, size: int) -> None:
    line = "=" * size
    old, new, patch = (text("Title", line, word, line) for word in ("b", "x", "y"))
    merged = merge_texts(store, old, new, patch)
    (found,) = regions(merged.data)
    assert (found.line, found.upstream) == (3, b"x\n")
    assert not has_markers(old)


@pytest.mark.parametrize(
    "mark", [OPEN + " upstream", BEFORE + " before", MIDDLE, MIDDLE + "\r", CLOSE + " patch", OPEN]
)
def test_any_marker_that_is_left_is_seen(mark: str) -> None:
    assert has_markers(f"a\n{mark}\nb\n".encode())
    assert not has_markers(f"a\n {mark}\nb\n".encode())


def test_unfinished_markers_are_no_region() -> None:
    assert regions(f"a\n{OPEN} upstream\nb\n".encode()) == []
    assert regions(f"{MIDDLE}\n{CLOSE} patch\n".encode()) == []


def test_identity_is_about_what_the_sides_say() -> None:
    one = Region(5, b"a\n", b"b\n", b"c\n")
    assert identity([one]) == identity([Region(500, b"a\n", b"b\n", b"c\n")])
    others = [
        [Region(5, b"a\n", b"b\n", b"d\n")],
        [Region(5, b"a\nb\n", b"", b"c\n")],
        [one, one],
        [],
    ]
    assert len({identity(found) for found in [[one], *others]}) == 5


LINES = st.lists(st.sampled_from(["a", "b", "c", "d\r", "=======", ""]), max_size=8).map(lambda lines: text(*lines))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("regions") / "store.git")
    store.ensure()
    return store


@settings(max_examples=30, deadline=None)
@given(old=LINES, new=LINES, patch=LINES)
def test_every_conflict_is_a_region(kept: Store, old: bytes, new: bytes, patch: bytes) -> None:
    merged = merge_texts(kept, old, new, patch)
    found = regions(merged.data)
    assert len(found) == merged.conflicts
    assert has_markers(merged.data) == bool(found)


EDITS = st.dictionaries(st.integers(1, 12), st.sampled_from([None, "x", "y", "more\nof it"]), max_size=5)


@settings(max_examples=30, deadline=None)
@given(upstream=EDITS, patch=EDITS)
def test_lines_hold_what_upstream_says(
    kept: Store, upstream: dict[int, str | None], patch: dict[int, str | None]
) -> None:
    def made(edits: dict[int, str | None], who: str) -> bytes:
        # No two lines alike: where they are, a diff may choose among them.
        return numbered(12, **{f"l{n}": value and f"{who} {n} {value} {n}" for n, value in edits.items()})

    new = made(upstream, "upstream")
    merged = merge_texts(kept, numbered(12), new, made(patch, "patch"))
    lines = new.split(b"\n")
    for region in located(kept, merged.data, new):
        count = region.upstream.count(b"\n")
        assert lines[region.line - 1 : region.line - 1 + count] == region.upstream.split(b"\n")[:-1]
