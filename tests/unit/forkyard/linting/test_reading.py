from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.linting.reading import read_patch

REPOSITORY = Path(__file__).parents[4]
REAL = sorted((REPOSITORY / "patches").glob("*/*/*.patch"))


def test_the_parts_and_their_lines(forge: Any) -> None:
    old = {"a.c": b"".join(b"%d\n" % n for n in range(30)), "b": b"x\n", "gone": b"g\n", "m": b"m\n"}
    new = {
        "a.c": old["a.c"].replace(b"5\n", b"", 1).replace(b"20\n", b"20\nmore\n"),
        "b": b"x",
        "m": ("100755", b"m\n"),
        "n e\twü": b"n\n",
    }
    message = "part : ünï\n\nWhy.\n\nUpstream-Status: Pending\n".encode()
    data = forge.patch(old, new, message)
    text = read_patch(data)
    lines = data.split(b"\n")
    assert text.subject == "part : ünï"
    assert lines[text.subject_line - 1].startswith(b"Subject: ")
    assert lines[text.message_line - 1] == b"Why."
    assert lines[text.line_of("Upstream-Status:") - 1] == b"Upstream-Status: Pending"
    assert lines[text.diff_line - 1].startswith(b"diff --git a/a.c")
    by_path = {file.path: file for file in text.files}
    assert set(by_path) == {"a.c", "b", "gone", "m", "n e\twü"}
    assert by_path["gone"].deleted
    assert by_path["m"].modes
    assert not by_path["m"].hunks
    assert by_path["n e\twü"].new
    first, second = by_path["a.c"].hunks
    assert (first.old_start, second.new_start) == (3, 18)
    (added,) = by_path["a.c"].added()
    assert lines[added.number - 1] == b"+more"
    (cut,) = by_path["b"].added()
    assert cut.cut
    assert first.groups() == [(3, 4)]


def test_a_long_subject_is_folded(forge: Any) -> None:
    subject = "part : " + "word " * 40 + "end"
    text = read_patch(forge.patch({"a": b"1\n"}, {"a": b"2\n"}, f"{subject}\n\nWhy.\n".encode()))
    assert text.subject == subject


def test_binary_files(forge: Any) -> None:
    (file,) = read_patch(forge.patch({"a": b"1\0"}, {"a": b"2\0"})).files
    assert file.binary
    assert file.path == "a"


def test_removed_lines_that_look_like_headers(forge: Any) -> None:
    (file,) = read_patch(forge.patch({"a": b"-- x\n++ y\n"}, {"a": b"++ z\n"})).files
    assert file.path == "a"
    assert [line.kind for line in file.hunks[0].lines] == ["-", "-", "+"]


@given(st.binary(max_size=400))
def test_any_bytes_can_be_read(data: bytes) -> None:
    read_patch(data)
    read_patch(b"From " + b"0" * 40 + b" Mon\nSubject: " + data)
    read_patch(b"diff --git a/x b/x\n@@ -1 +1 @@\n" + data)
    read_patch(b'diff --git "a/' + data + b'\n--- "a/\\' + data)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_a_real_patch_cut_anywhere_can_be_read(path: Path) -> None:
    data = path.read_bytes()
    for end in range(0, len(data), 7):
        read_patch(data[:end])
        read_patch(data[end:])


def test_a_giant_line_is_read_soon() -> None:
    line = b"x" * 20_000_000
    text = read_patch(
        b"Subject: a\n\nb\n\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-" + line + b"\n+" + line + b"\n"
    )
    assert len(text.files[0].hunks[0].lines) == 2
