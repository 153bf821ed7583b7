from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkyard.archives import unpack_below
from forkyard.errors import SourceError

ALL = PurePosixPath()
MakeTar = Callable[..., Path]


def member(name: str, data: bytes = b"x", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, b"", type=kind, linkname=target)


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    def make(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
        path = tmp_path / "source.tar.gz"
        path.write_bytes(tar_bytes(*members, mode=mode))
        return path

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "room" / "out"


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_only_what_is_below_the_prefix_comes_out(make_tar: MakeTar, out: Path) -> None:
    archive = make_tar(
        member("p-1/setup.py"),
        member("p-1/vendor/engine/a.c", b"a"),
        member("p-1/vendor/engine/sub/b.c", b"b"),
        member("p-1/vendor/engine-other/c.c"),
        member("p-1/vendor/engine", b"", type=tarfile.DIRTYPE),
    )
    assert unpack_below(archive, PurePosixPath("vendor/engine"), out) == 2
    assert everything_in(out) == ["a.c", "sub", "sub/b.c"]
    assert (out / "sub" / "b.c").read_bytes() == b"b"


def test_wanted_chooses_by_the_path_below_the_prefix(make_tar: MakeTar, out: Path) -> None:
    archive = make_tar(member("p-1/v/keep/x"), member("p-1/v/drop/x"))
    seen: list[str] = []

    def wanted(path: PurePosixPath) -> bool:
        seen.append(str(path))
        return path.parts[0] == "keep"

    assert unpack_below(archive, PurePosixPath("v"), out, wanted=wanted) == 1
    assert seen == ["keep/x", "drop/x"]
    assert everything_in(out) == ["keep", "keep/x"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression_tar_knows(make_tar: MakeTar, out: Path, mode: str) -> None:
    assert unpack_below(make_tar(member("p/a"), mode=mode), ALL, out) == 1


def test_modes_keep_the_executable_bit_and_nothing_dangerous(make_tar: MakeTar, out: Path) -> None:
    archive = make_tar(member("p/run", mode=0o6777), member("p/plain", mode=0o644), member("p/odd", mode=0o444))
    unpack_below(archive, ALL, out)
    assert stat.S_IMODE((out / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "plain").stat().st_mode) == 0o644
    assert not (out / "odd").stat().st_mode & 0o111
    assert (out / "run").stat().st_uid == os.getuid()


def test_symbolic_links_inside_are_kept_as_links(make_tar: MakeTar, out: Path) -> None:
    archive = make_tar(member("p/d/a"), link("p/d/l", "../d/a"))
    assert unpack_below(archive, ALL, out) == 2
    assert os.readlink(out / "d" / "l") == "../d/a"


HOSTILE = {
    "up": [member("p/../../evil")],
    "up-hidden": [member("p/a/../../../evil")],
    "absolute": [member("/etc/evil")],
    "symlink-up": [link("p/l", "../../evil")],
    "symlink-absolute": [link("p/l", "/etc/passwd")],
    "through-symlink": [link("p/l", ".."), member("p/l/evil")],
    "hardlink-up": [link("p/l", "../../evil", tarfile.LNKTYPE)],
    "hardlink-absolute": [link("p/l", "/etc/passwd", tarfile.LNKTYPE)],
    "fifo": [member("p/f", b"", type=tarfile.FIFOTYPE)],
    "character-device": [member("p/null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "block-device": [member("p/disk", b"", type=tarfile.BLKTYPE, devmajor=8, devminor=0)],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused_and_write_nothing_outside(make_tar: MakeTar, out: Path, case: str) -> None:
    out.parent.mkdir()
    archive = make_tar(member("p/good"), *HOSTILE[case])
    with pytest.raises(SourceError) as caught:
        unpack_below(archive, ALL, out)
    assert caught.value.where == str(archive)
    assert caught.value.why
    assert everything_in(out.parent) in (["out"], ["out", "out/good"], ["out", "out/good", "out/l"], [])
    assert not (out / "l").exists() or (out / "l").is_symlink()


CLASHES = {
    "file-then-folder": [member("p/a"), member("p/a/b")],
    "folder-then-file": [member("p/a/b"), member("p/a")],
    "link-to-nothing-in-the-archive": [link("p/l", "p/nowhere", tarfile.LNKTYPE)],
    "link-to-itself": [link("p/l", "l"), member("p/l/x")],
    "name-too-long": [member("p/" + "n" * 300)],
}


@pytest.mark.parametrize("case", CLASHES)
def test_members_that_contradict_each_other_are_an_error_for_people(make_tar: MakeTar, out: Path, case: str) -> None:
    with pytest.raises(SourceError):
        unpack_below(make_tar(*CLASHES[case]), ALL, out)


def test_a_hard_link_inside_becomes_the_file(make_tar: MakeTar, out: Path) -> None:
    archive = make_tar(member("p/a", b"content"), link("p/b", "p/a", tarfile.LNKTYPE))
    assert unpack_below(archive, ALL, out) == 2
    assert (out / "b").read_bytes() == b"content"


def test_too_many_bytes(make_tar: MakeTar, out: Path) -> None:
    archive = make_tar(member("p/a", bytes(600)), member("p/b", bytes(600)))
    assert unpack_below(archive, ALL, out, max_bytes=1200) == 2
    with pytest.raises(SourceError, match="more than 1199 bytes"):
        unpack_below(archive, ALL, out, max_bytes=1199)


def test_too_many_members(make_tar: MakeTar, out: Path) -> None:
    archive = make_tar(*(member(f"p/{number}") for number in range(10)))
    assert unpack_below(archive, ALL, out, max_members=10) == 10
    with pytest.raises(SourceError, match="more than 9 members"):
        unpack_below(archive, ALL, out, max_members=9)


def test_nothing_below_the_prefix_is_an_error(make_tar: MakeTar, out: Path) -> None:
    with pytest.raises(SourceError, match="nothing below vendor/x") as caught:
        unpack_below(make_tar(member("p/a")), PurePosixPath("vendor/x"), out)
    assert "recipe" in str(caught.value.next_step)


# Random bytes do not compress, so a cut or a flip lands in the middle of a member.
NOISE = random.Random(1).randbytes(60_000)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_truncated_archives(tmp_path: Path, out: Path, share: float, mode: str) -> None:
    whole = tar_bytes(member("p/a", NOISE), member("p/b", NOISE[::-1]), mode=mode)
    archive = tmp_path / "cut.tar.gz"
    archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SourceError):
        unpack_below(archive, ALL, out)


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 0.999), flip=st.integers(1, 255), mode=st.sampled_from(["w:gz", "w:xz", "w:bz2", "w"]))
def test_a_flipped_byte_is_an_error_for_people_or_changes_what_comes_out(
    tmp_path_factory: pytest.TempPathFactory, position: float, flip: int, mode: str
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    damaged = bytearray(tar_bytes(member("p/a", NOISE), link("p/l", "a"), mode=mode))
    damaged[int(position * len(damaged))] ^= flip
    (folder / "a.tar.gz").write_bytes(damaged)
    with contextlib.suppress(SourceError):
        unpack_below(folder / "a.tar.gz", ALL, folder / "room" / "out")
    assert set(everything_in(folder)) <= {"a.tar.gz", "room", "room/out"} | {
        f"room/out/{path.name}" for path in (folder / "room" / "out").glob("*")
    }


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=1600), st.booleans())
def test_random_bytes_are_an_error_for_people(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("random")
    (folder / "a.tar.gz").write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(SourceError):
        unpack_below(folder / "a.tar.gz", ALL, folder / "out")


def test_a_missing_archive_is_not_called_damaged(tmp_path: Path, out: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unpack_below(tmp_path / "none.tar.gz", ALL, out)
