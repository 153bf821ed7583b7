from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from forkyard.errors import ForkyardError, StorageError
from forkyard.packing import retag

EPOCH = 1_767_571_200  # 2026-01-05
INFO = "forkyard_x_avx2-2026.1.5+g1.dist-info"
RAW = "forkyard_x_avx2-2026.1.5+g1-py3-none-linux_x86_64.whl"
Make = Callable[..., Path]


def program() -> bytes:
    """Some real program of this machine."""
    return Path(os.path.realpath("/bin/true")).read_bytes()


FILES: dict[str, tuple[int, bytes]] = {
    "forkyard_x_avx2/bin/tool": (0o755, program()),
    "forkyard_x_avx2/__init__.py": (0o644, b'"""x"""\n'),
    "forkyard_x_avx2/empty": (0o644, b""),
    f"{INFO}/METADATA": (0o644, b"Name: x\n"),
    f"{INFO}/WHEEL": (
        0o644,
        b"Wheel-Version: 1.0\nGenerator: g\nRoot-Is-Purelib: false\nTag: py3-none-linux_x86_64\n\n",
    ),
    f"{INFO}/sboms/sbom.json": (0o644, b"{}"),
    f"{INFO}/RECORD": (0o644, b"stale,,\n"),
}


@pytest.fixture
def make_wheel(tmp_path: Path) -> Make:
    def make(
        folder: str = "raw",
        *,
        backwards: bool = False,
        umask: int = 0o022,
        date: tuple[int, int, int, int, int, int] = (2026, 11, 1, 2, 3, 4),
        folders: bool = False,
        compression: int = zipfile.ZIP_DEFLATED,
        files: Mapping[str, tuple[int, bytes]] = FILES,
    ) -> Path:
        path = tmp_path / folder / RAW
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w", compression) as archive:
            if folders:
                archive.writestr(zipfile.ZipInfo("forkyard_x_avx2/", date), b"")
            for name in sorted(files, reverse=backwards):
                mode, data = files[name]
                info = zipfile.ZipInfo(name, date)
                info.external_attr = (stat.S_IFREG | mode & ~umask) << 16
                archive.writestr(info, data, compression)
        return path

    return make


def test_what_comes_out(make_wheel: Make) -> None:
    raw = make_wheel()
    wheel = retag(raw, EPOCH)
    assert not raw.exists()
    assert wheel.parent == raw.parent
    assert [path.name for path in raw.parent.iterdir()] == [wheel.name]
    tag = wheel.name.removeprefix("forkyard_x_avx2-2026.1.5+g1-").removesuffix(".whl")
    assert tag.startswith("py3-none-manylinux_")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        lines = archive.read(f"{INFO}/WHEEL").decode().splitlines()
        assert lines == ["Wheel-Version: 1.0", "Generator: g", "Root-Is-Purelib: false", f"Tag: {tag}"]
        for name, (mode, data) in FILES.items():
            if name not in (f"{INFO}/WHEEL", f"{INFO}/RECORD"):
                assert archive.read(name) == data
            assert (archive.getinfo(name).external_attr >> 16) & 0o777 == mode
        assert {info.date_time for info in archive.infolist()} == {(2026, 1, 5, 0, 0, 0)}
        names = archive.namelist()
    assert names[-1] == f"{INFO}/RECORD"
    assert [name.startswith(INFO) for name in names] == sorted(name.startswith(INFO) for name in names)


def test_record_is_true_and_complete(make_wheel: Make) -> None:
    with zipfile.ZipFile(retag(make_wheel(), EPOCH)) as archive:
        rows = list(csv.reader(io.StringIO(archive.read(f"{INFO}/RECORD").decode())))
        assert sorted(row[0] for row in rows) == sorted(archive.namelist())
        assert rows[-1] == [f"{INFO}/RECORD", "", ""]
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={expected}", str(len(data)))


@pytest.mark.parametrize(
    "differently",
    [
        {"backwards": True},
        {"umask": 0o077},
        {"umask": 0},
        {"date": (1999, 12, 31, 23, 59, 58)},
        {"folders": True},
        {"compression": zipfile.ZIP_STORED},
    ],
)
def test_order_umask_date_and_compression_leave_no_trace(make_wheel: Make, differently: dict[str, object]) -> None:
    expected = retag(make_wheel("one"), EPOCH)
    previous = os.umask(0o077)
    try:
        found = retag(make_wheel("two", **differently), EPOCH)
    finally:
        os.umask(previous)
    assert found.name == expected.name
    assert found.read_bytes() == expected.read_bytes()


def test_doing_it_again_changes_nothing(make_wheel: Make) -> None:
    wheel = retag(make_wheel(), EPOCH)
    before = wheel.read_bytes()
    assert retag(wheel, EPOCH) == wheel
    assert wheel.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_damaged_wheel(make_wheel: Make, keep: int) -> None:
    raw = make_wheel()
    raw.write_bytes(raw.read_bytes()[:keep])
    with pytest.raises(ForkyardError):
        retag(raw, EPOCH)
    assert [path.name for path in raw.parent.iterdir()] == [RAW]


def test_a_full_disk_keeps_the_raw_wheel(make_wheel: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_wheel()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forkyard.packing.zipfile.ZipFile.writestr", full)
    with pytest.raises(StorageError):
        retag(raw, EPOCH)
    assert raw.exists()
