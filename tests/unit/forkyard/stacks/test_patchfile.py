from __future__ import annotations

import contextlib
import difflib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from forkyard.errors import PatchError
from forkyard.stacks.patchfile import AddedFile, check_hunks, parse_trailers

HEADER = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", re.MULTILINE)

UNDER_COUNTING = b"""\
diff --git a/f b/f
--- a/f
+++ b/f
@@ -1,2 +1,3 @@
 one
+first addition
 two
+second addition
"""


def write_diff(old: list[str], new: list[str], name: str = "f") -> bytes:
    lines = list(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm=""))
    return "".join(f"{line}\n" for line in lines).encode()


line = st.sampled_from(["", "a", "b", "-- ", "--- a/f", "+++ b/f", "@@ -1 +1 @@", "-", "+", " ", "\\ x", "diff --git"])
text = st.lists(line, max_size=14)


def test_git_truncates_an_under_counting_hunk_in_silence_and_we_do_not(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\ntwo\n")
    done = subprocess.run(
        ["git", "apply", "-"], cwd=tmp_path, input=UNDER_COUNTING, capture_output=True, check=False, timeout=1800
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "f").read_text() == "one\nfirst addition\ntwo\n", "the second addition is gone"
    with pytest.raises(PatchError) as caught:
        check_hunks(UNDER_COUNTING, "f.patch")
    assert caught.value.where == "f.patch: diff line 4"
    assert "line 8" in str(caught.value.why)


@given(text, text)
def test_true_counts_pass(old: list[str], new: list[str]) -> None:
    diff = write_diff(old, new)
    assert check_hunks(diff, "x") == sum(1 for _ in difflib.SequenceMatcher(None, old, new).get_grouped_opcodes(3))


@given(text, text, st.sampled_from([2, 4]), st.integers(1, 3), st.integers(0, 5))
def test_a_hunk_that_promises_more_is_refused(old: list[str], new: list[str], which: int, more: int, hunk: int) -> None:
    diff = write_diff(old, new)
    headers = list(HEADER.finditer(diff))
    assume(headers)
    chosen = headers[hunk % len(headers)]
    counts = {2: int(chosen[2] or 1), 4: int(chosen[4] or 1)}
    counts[which] += more
    header = b"@@ -%s,%d +%s,%d @@" % (chosen[1], counts[2], chosen[3], counts[4])
    with pytest.raises(PatchError) as caught:
        check_hunks(diff[: chosen.start()] + header + diff[chosen.end() :], "x")
    assert str(caught.value.where).startswith("x: diff line ")


plain = st.lists(st.sampled_from(["a", "b", "c"]), max_size=14)


@given(plain, plain, st.sampled_from([2, 4]), st.integers(0, 5))
def test_a_hunk_that_promises_less_is_refused(old: list[str], new: list[str], which: int, hunk: int) -> None:
    diff = write_diff(old, new)
    headers = list(HEADER.finditer(diff))
    assume(headers)
    chosen = headers[hunk % len(headers)]
    counts = {2: int(chosen[2] or 1), 4: int(chosen[4] or 1)}
    assume(counts[which] > 0)
    counts[which] -= 1
    header = b"@@ -%s,%d +%s,%d @@" % (chosen[1], counts[2], chosen[3], counts[4])
    with pytest.raises(PatchError):
        check_hunks(diff[: chosen.start()] + header + diff[chosen.end() :], "x")


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(data: bytes) -> None:
    where = "x: diff line 1"
    try:
        assert check_hunks(data, "x") >= 0
    except PatchError as error:
        where = str(error.where)
    assert where.startswith("x: diff line ")


@given(
    st.lists(st.sampled_from([b"@@ -1,2 +1,2 @@", b"@@ -1 +1 @@", b" a", b"-a", b"+a", b"", b"\\ No newline", b"-- "]))
)
def test_any_lines_are_judged(lines: list[bytes]) -> None:
    with contextlib.suppress(PatchError):
        assert check_hunks(b"\n".join(lines), "x") <= len(lines)


@pytest.mark.parametrize("header", [b"@@ -1,2 1,2 @@", b"@@ -a +b @@", b"@@-1 +1 @@", b"@@ @@"])
def test_an_unreadable_header_is_refused(header: bytes) -> None:
    with pytest.raises(PatchError, match="cannot be read"):
        check_hunks(b"--- a/f\n+++ b/f\n" + header + b"\n-a\n+b\n", "x")


def test_two_files_and_a_missing_last_line_break() -> None:
    first = write_diff(["a", "-- b"], ["a"], "one").replace(b"--- b\n", b"--- b\n\\ No newline at end of file\n")
    assert check_hunks(first + write_diff(["x"], ["y"], "two"), "x") == 2


# -- trailers ------------------------------------------------------------------------------------------


def message(*trailers: str) -> str:
    return "part : change\n\nWhy: because of a: b\n\n" + "\n".join(trailers) + "\n"


STATUSES = [
    "Pending",
    "Submitted https://example.org/1",
    "Accepted 0c1e57098",
    "Denied https://example.org/1",
    "Inappropriate it is ours alone",
]


@pytest.mark.parametrize("status", STATUSES)
def test_every_documented_status(status: str) -> None:
    found = parse_trailers(message(f"Upstream-Status: {status}", "Retire-When: a b", "Retire-When: c"), "x")
    assert (found.upstream_status, found.retire_when, found.adds_files) == (status, ("a b", "c"), ())


@pytest.mark.parametrize(
    "trailers",
    [
        [],
        ["Upstream-Status:"],
        ["Upstream-Status: pending"],
        ["Upstream-Status: Submitted"],
        ["Upstream-Status: Accepted soon"],
        ["Upstream-Status: Inappropriate"],
        ["Upstream-Status: Pending", "Upstream-Status: Pending"],
        ["Upstream-Status : Pending"],
    ],
)
def test_a_missing_or_unknown_status_is_refused(trailers: list[str]) -> None:
    with pytest.raises(PatchError) as caught:
        parse_trailers(message(*trailers), "x.patch")
    assert caught.value.where == "x.patch"
    assert "Pending" in str(caught.value.next_step)


def test_only_the_last_paragraph_counts() -> None:
    with pytest.raises(PatchError):
        parse_trailers("a\n\nUpstream-Status: Pending\n\nthe end\n", "x")


def test_added_files_with_and_without_another_name() -> None:
    found = parse_trailers(message("Upstream-Status: Pending", "Adds-Files: a/b.c -> src/b.c", "Adds-Files: d.h"), "x")
    assert found.adds_files == (AddedFile("a/b.c", "src/b.c"), AddedFile("d.h", "d.h"))


@pytest.mark.parametrize(
    "value", ["/etc/x", "a -> /etc/x", "../a", "a -> b/../../c", "a -> .git/config", "-> a", "a ->", "x/.git/y -> z"]
)
def test_added_files_stay_in_the_tree(value: str) -> None:
    with pytest.raises(PatchError, match="outside"):
        parse_trailers(message("Upstream-Status: Pending", f"Adds-Files: {value}"), "x")


@given(st.text())
def test_any_message_is_judged(value: str) -> None:
    try:
        found: Any = parse_trailers(value, "x")
    except PatchError:
        return
    assert found.upstream_status.split()[0] in {status.split()[0] for status in STATUSES}
