"""The archive: round trips through a reader written here, and through busybox where it is."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.guest.cpio import Entry, archive, console, file, folder, link

FIELDS = ("ino", "mode", "uid", "gid", "nlink", "mtime", "size", "dmaj", "dmin", "rmaj", "rmin", "namesize", "check")


def read(data: bytes) -> list[Entry]:
    """All entries up to the trailer, read as the kernel's description of the format says."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        raw = data[at + 6 : at + 110]
        head = {name: int(raw[8 * n : 8 * n + 8], 16) for n, name in enumerate(FIELDS)}
        end = at + 110 + head["namesize"]
        name = data[at + 110 : end]
        assert name.endswith(b"\0")
        end += -end % 4
        content = data[end : end + head["size"]]
        assert len(content) == head["size"]
        at = end + head["size"]
        at += -at % 4
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found
        assert (head["uid"], head["gid"], head["mtime"]) == (0, 0, 0)
        found.append(Entry(name[:-1].decode(), head["mode"], content, (head["rmaj"], head["rmin"])))


def test_an_entry_of_every_kind() -> None:
    entries = [folder("dev"), console("dev/console"), file("init", b"#!/bin/sh\n", program=True), link("sh", "init")]
    found = read(b"".join(archive(entries)))
    assert found == entries
    assert [stat.filemode(entry.mode) for entry in found] == ["drwxr-xr-x", "crw-------", "-rwxr-xr-x", "lrwxrwxrwx"]


def test_folders_come_before_what_is_in_them_and_once() -> None:
    found = read(b"".join(archive([file("a/b/c", b"1"), file("a/b/d", b"2"), folder("a"), file("e", b"")])))
    assert [entry.path for entry in found] == ["a", "a/b", "a/b/c", "a/b/d", "e"]


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..", "TRAILER!!!")
)
files = st.dictionaries(names, st.binary(max_size=70), max_size=8)


@given(files, st.text("abc", min_size=1, max_size=5))
def test_what_goes_in_comes_out(contents: dict[str, bytes], parent: str) -> None:
    entries = [file(f"{parent}/{name}", content) for name, content in contents.items()]
    data = b"".join(archive(entries))
    assert len(data) % 4 == 0
    assert [entry for entry in read(data) if stat.S_ISREG(entry.mode)] == entries
    assert data == b"".join(archive(entries))


@pytest.mark.parametrize("path", ["", "/etc", "a/../b", "..", "a//b", "./a", "a/", "a\0b", "TRAILER!!!"])
def test_paths_that_mean_something_else_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        b"".join(archive([file(path, b"")]))


def test_a_file_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        b"".join(archive([file("a", b"1"), file("a", b"2")]))


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not on this machine")
def test_busybox_reads_it(tmp_path) -> None:
    entries = [file("bin/tool", b"\x7fELF" + bytes(1001), program=True), link("sh", "bin/tool"), file("empty", b"")]
    subprocess.run(["busybox", "cpio", "-i"], input=b"".join(archive(entries)), cwd=tmp_path, check=True, timeout=1800)
    assert (tmp_path / "bin/tool").read_bytes() == b"\x7fELF" + bytes(1001)
    assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "sh").readlink().as_posix() == "bin/tool"
    assert (tmp_path / "empty").read_bytes() == b""
