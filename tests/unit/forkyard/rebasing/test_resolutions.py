"""Records of resolved conflicts: written, read, refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.errors import PatchError
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.merging import Conflict
from forkyard.rebasing.resolutions import DELETED, EDITED, LARGEST, Resolution, Resolutions, parse, structural_key

KEY = "ab" * 32
RECORD = Resolution(KEY, "src/a b.c", "contents", "fix.patch", "1" * 12, "2" * 12, EDITED, b"diff --git a/x b/x\n")


def test_round_trip() -> None:
    assert parse(RECORD.render(), "here") == RECORD
    assert re.fullmatch(rf"{KEY[:20]}-[0-9a-f]{{8}}\.resolution", RECORD.file_name)


WORDS = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\x85\u2028\u2029"), min_size=1)


@given(
    path=WORDS,
    kind=st.sampled_from(["contents", "modify/delete", "binary"]),
    patch=WORDS,
    result=st.sampled_from([EDITED, DELETED]),
    diff=st.binary(max_size=200),
)
def test_any_record_comes_back(path: str, kind: str, patch: str, result: str, diff: bytes) -> None:
    record = Resolution(KEY, path, kind, patch, "1" * 12, "2" * 12, result, diff)
    assert parse(record.render(), "here") == record


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"forkyard-resolution 2\n\n",
        RECORD.render().replace(b"key", b"kee"),
        RECORD.render().replace(KEY.encode(), b"short"),
        RECORD.render()[:60],
        RECORD.render().replace(b"result edited\n", b""),
        b"\xff\xfe" + RECORD.render(),
        RECORD.render() + b"x" * LARGEST,
    ],
)
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(PatchError, match="not a recorded resolution") as error:
        parse(data, "patches/part/llama.cpp/resolutions/x.resolution")
    assert "x.resolution" in str(error.value.where)
    assert "delete the file" in str(error.value.next_step)


def write(folder: Path, record: Resolution) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / record.file_name).write_bytes(record.render())


def test_folders_that_come_first_win(tmp_path: Path) -> None:
    mine = Resolution(KEY, RECORD.path, "contents", "fix.patch", "1" * 12, "2" * 12, EDITED, b"mine")
    write(tmp_path / "project", RECORD)
    write(tmp_path / "local", mine)
    known = Resolutions([tmp_path / "local", tmp_path / "project", tmp_path / "missing"])
    assert known.candidates(KEY, RECORD.path) == [mine]
    assert known.candidates("cd" * 32, RECORD.path) == []
    assert len(known) == 1


def test_the_record_of_the_file_itself_comes_first(tmp_path: Path) -> None:
    for path in ("z.c", "a.c", "m.c"):
        write(tmp_path, Resolution(KEY, path, "contents", "fix.patch", "1" * 12, "2" * 12, EDITED, b""))
    found = Resolutions([tmp_path]).candidates(KEY, "m.c")
    assert [record.path for record in found] == ["m.c", "a.c", "z.c"]


def test_a_half_written_file_beside_them_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, RECORD)
    (tmp_path / f".{RECORD.file_name}.x1y2").write_bytes(b"half")
    assert len(Resolutions([tmp_path])) == 1


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    write(tmp_path, RECORD)
    (tmp_path / RECORD.file_name).write_bytes(b"\0" * 50)
    with pytest.raises(PatchError) as error:
        Resolutions([tmp_path])
    assert error.value.where == str(tmp_path / RECORD.file_name)


def test_structural_keys_tell_every_side_apart() -> None:
    one, other = (Entry("100644", "blob", letter * 40, "f") for letter in "ab")
    executable = Entry("100755", "blob", "a" * 40, "f")
    conflicts = [
        Conflict("f", "modify/delete", one, other, None, ""),
        Conflict("f", "modify/delete", one, None, other, ""),
        Conflict("f", "modify/delete", executable, other, None, ""),
        Conflict("g", "modify/delete", one, other, None, ""),
        Conflict("f", "rename/delete", one, other, None, ""),
    ]
    assert len({structural_key(conflict) for conflict in conflicts}) == len(conflicts)
    # What git says about it is for people.
    assert structural_key(conflicts[0]) == structural_key(Conflict("f", "modify/delete", one, other, None, "said"))
