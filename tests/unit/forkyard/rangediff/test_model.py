"""Reading git's words, and what the model says of them."""

from __future__ import annotations

import itertools
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forkyard.errors import ToolchainError
from forkyard.gitstore import Author, Store
from forkyard.gitstore.comparing import RANGE_CONFIG, RANGE_OPTIONS, range_diff
from forkyard.rangediff.model import Fact, Line, Pair, RawPair, Side, differing, moved_numbers, read_range_diff

AUTHOR = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")
COMMITS = st.text("0123456789abcdef", min_size=40, max_size=40)
# No line of git's has a line feed in it; all else it may.
WORDS = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30)
LINES = st.builds(lambda sign, rest: Line(sign + rest), st.sampled_from([" ", "+", "-", "@@ "]), WORDS)


@st.composite
def outputs(draw: st.DrawFn) -> list[RawPair]:
    count = draw(st.integers(0, 12))
    width = len(str(count + 1))
    pairs = []
    for _ in range(count):
        sign = draw(st.sampled_from("=!<>"))
        numbers: list[tuple[str, int | None, str | None]] = []
        for there in (sign != ">", sign != "<"):
            number = draw(st.integers(1, count)) if there else None
            numbers.append((" " * (width - len(str(number or "-"))), number, draw(COMMITS) if there else None))
        lines = tuple(draw(st.lists(LINES, max_size=6))) if sign == "!" else ()
        subject = draw(WORDS.map(str.strip))
        pairs.append(RawPair(*numbers[0], sign, *numbers[1], subject, lines))  # type: ignore[arg-type]
    return pairs


def written(pairs: Sequence[RawPair]) -> bytes:
    """As git writes them, with full ids."""
    text = ""
    for pair in pairs:
        old = f"{pair.gap}{pair.old or '-'}:  {pair.old_commit or '-' * 40}"
        new = f"{pair.new_gap}{pair.new or '-'}:  {pair.new_commit or '-' * 40}"
        text += f"{old} {pair.sign} {new}" + (f" {pair.subject}" if pair.subject else "") + "\n"
        text += "".join(f"    {line.text}\n" for line in pair.lines)
    return text.encode()


@given(outputs())
def test_whatever_git_writes_is_read(pairs: list[RawPair]) -> None:
    assert list(read_range_diff(written(pairs))) == pairs


@given(st.binary(max_size=200))
@example(b"1:  abc = 1:  abc x\n")
@example(b"    a line of nothing\n")
@example(b"\n")
def test_anything_else_is_refused_or_read_whole(output: bytes) -> None:
    try:
        pairs = read_range_diff(output)
    except ToolchainError as error:
        assert "not understood" in str(error)
    else:
        assert written(pairs).rstrip(b"\n") == output.rstrip(b"\n")


def test_bytes_that_are_no_text() -> None:
    head = f"1:  {'a' * 40} ! 1:  {'b' * 40} s\n".encode()
    (pair,) = read_range_diff(head + b"    ++\xff\xc3\xa9\r\n")
    assert pair.lines[0].text == "++\\xff\u00e9\r"


@pytest.mark.parametrize(
    ("text", "outer", "inner"),
    [
        ("@@ a.c: int f()", "@", "@"),
        (" @@ a.c: int f()", " ", "@"),
        ("-@@ a.c", "-", "@"),
        ("  ## a.c (new) ##", " ", "#"),
        (" +added", " ", "+"),
        ("--removed", "-", "-"),
        ("+ context", "+", " "),
        ("-    message", "-", " "),
        (" Author: A", " ", " "),
        (" ", " ", " "),
        ("", " ", " "),
        ("+", "+", " "),
    ],
)
def test_signs_of_a_line(text: str, outer: str, inner: str) -> None:
    line = Line(text)
    assert (line.outer, line.inner) == (outer, inner)
    said = line.as_json()
    assert text in ("", said["text"], said["outer"] + said["text"])


def test_a_header_with_short_ids() -> None:
    pair = RawPair(" ", 1, "a" * 40, "=", "", 12, "b" * 40, "do it")
    assert pair.header() == f" 1:  {'a' * 12} = 12:  {'b' * 12} do it"
    assert pair.header("!") == f" 1:  {'a' * 12} ! 12:  {'b' * 12} do it"
    assert RawPair("", None, None, ">", "", 2, "b" * 40, "").header() == f"-:  {'-' * 12} > 2:  {'b' * 12}"


def made_series(store: Store, forge: Any, seed: int) -> tuple[str, str]:
    """A chain of commits with random small changes; base and tip."""
    chance = random.Random(seed)
    lines = [f"line {number}" for number in range(30)]
    files: dict[str, Any] = {"a.c": "\n".join(lines).encode() + b"\n"}
    tip = base = store.commit(forge.tree(files), None, AUTHOR, b"base\n")
    for number in range(chance.randrange(1, 6)):
        kind = chance.randrange(5)
        if kind < 3:
            lines[chance.randrange(30)] = chance.choice(
                ["x", "\ty\r", "- z", "@@ -1 +1 @@", "\u00fc <b>", "1:  a = 1:  b"]
            )
        elif kind == 3:
            files[f"new {number}.txt"] = chance.choice([b"", b"\n", b"## x ##\n", b"\0bin", b"caf\xe9", b"no end"])
        else:
            files["tool"] = (chance.choice(["100644", "100755"]), b"#!/bin/sh\n")
        files["a.c"] = "\n".join(lines).encode() + (b"\n" if chance.randrange(4) else b"")
        subject = chance.choice(["part : change it", "- : <i>x</i>", "1:  a ! 2:  b", "\u00fcber \u2713"])
        message = f"{subject}\n\n    indented\n-- \n@@ x\n {chance.randrange(3)}\n".encode()
        tip = store.commit(forge.tree(files), tip, AUTHOR, message)
    return base, tip


@pytest.mark.parametrize("seed", range(12))
def test_what_git_really_prints(store: Store, forge: Any, seed: int) -> None:
    """Read and written again it is byte for byte what git prints with ids of twelve digits."""
    old, new = made_series(store, forge, seed), made_series(store, forge, seed // 2 * 7 + 1000)
    for factor in (10, 60, 300):
        pairs = read_range_diff(range_diff(store, old, new, creation_factor=factor))
        text = "".join(
            "\n".join([pair.header(), *(f"    {line.text}" for line in pair.lines)]) + "\n" for pair in pairs
        )
        words = [f"--creation-factor={factor}", *RANGE_OPTIONS, f"{old[0]}..{old[1]}", f"{new[0]}..{new[1]}"]
        said = store._git("range-diff", *words, config={**RANGE_CONFIG, "core.abbrev": "12"})
        assert text == said.decode("utf-8", "backslashreplace")
        numbers = [pair.old for pair in pairs if pair.old], [pair.new for pair in pairs if pair.new]
        assert sorted(numbers[0]) == list(range(1, len(numbers[0]) + 1))
        assert numbers[1] == list(range(1, len(numbers[1]) + 1))


def test_more_than_a_thousand_patches(tmp_path: Path) -> None:
    """The numbers of that many are as far in as a line of a difference is."""
    store = Store(tmp_path / "many.git")
    store.ensure()
    feed = ["blob\nmark :1\ndata 1\n0\n"]
    for number in range(1001):
        feed.append(
            f"commit refs/heads/x\nmark :{number + 2}\ncommitter A <a@x> {1700000000 + number} +0000\ndata 2\nc\n"
            f"M 100644 inline f{number}\ndata {len(str(number))}\n{number}\n"
        )
    subprocess.run(
        ["git", "fast-import", "--quiet"], cwd=store.path, input="".join(feed).encode(), check=True, timeout=1800
    )
    ids = store._git("rev-list", "--reverse", "refs/heads/x").decode().split()
    pairs = read_range_diff(range_diff(store, (ids[0], ids[0]), (ids[0], ids[-1])))
    assert [pair.new for pair in pairs] == list(range(1, 1001))
    assert {pair.sign for pair in pairs} == {">"}


@given(st.permutations(range(1, 7)))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_as_few_as_can_be_have_moved(order: Sequence[int]) -> None:
    pairs = list(enumerate(order, start=1))
    moved = moved_numbers(pairs)
    left = [new for _, new in pairs if new not in moved]
    assert left == sorted(left)
    longest = max(
        count for count in range(7) for some in itertools.combinations(order, count) if list(some) == sorted(some)
    )
    assert len(left) == longest


def test_nothing_moves_where_nothing_is() -> None:
    assert moved_numbers([]) == set()
    assert moved_numbers([(1, 1), (3, 2), (4, 7)]) == set()
    assert moved_numbers([(1, 3), (2, 1), (3, 2)]) == {3}


def test_a_pair_knows_what_became_of_it() -> None:
    old, new = Side(1, "a.patch", "1" * 40, "s"), Side(2, "b.patch", "2" * 40, "s")
    same = Pair("=", old, Side(1, "a.patch", "2" * 40, "s"), "")
    assert not same.changed
    assert same.renamed_from is None
    assert Pair("=", old, new, "").renamed_from == "a.patch"
    assert all(
        pair.changed
        for pair in (
            Pair("=", old, new, ""),
            Pair("!", old, old, ""),
            Pair("=", old, old, "", moved=True),
            Pair("=", old, old, "", facts=(Fact("Date", "1", "2"),)),
            Pair("<", old, None, ""),
        )
    )
    assert Pair("!", old, new, "", (Line("+x"), Line("-y"), Line("-z"), Line("@@ q"))).counts == (1, 2)
    assert Pair("<", old, None, "").name == "a.patch"
    assert "lines" not in same.as_json(lines=False)


def test_keys_that_differ() -> None:
    assert list(differing({"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "4", "d": "5"})) == [
        Fact("a", "1", None),
        Fact("c", "3", "4"),
        Fact("d", None, "5"),
    ]
