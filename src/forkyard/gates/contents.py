"""A wheel read into memory once: names, modes and bytes for the gates to look at."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    # zipfile looks at the last character of a name, and a damaged name may be empty.
    IndexError,
)
_LARGEST_WHEEL = 8 << 30


class UnreadableWheelError(Exception):
    """The file is no zip archive, or an entry of it cannot be unpacked."""


@dataclass(frozen=True)
class Entry:
    """One entry of the archive's directory."""

    name: str
    mode: int
    """Unix mode bits with the file type, 0 if the archive has none."""
    date_time: tuple[int, int, int, int, int, int]
    is_dir: bool

    @property
    def permissions(self) -> int:
        """The permission bits alone."""
        return stat.S_IMODE(self.mode)


@dataclass(frozen=True)
class WheelContents:
    """Everything in a wheel."""

    path: Path
    entries: tuple[Entry, ...]
    """In the archive's order; a name may be there twice, which a gate refuses."""
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """The wheel's file name."""
        return self.path.name


def read_wheel(path: Path) -> WheelContents:
    """Read the wheel at *path*; raises :class:`UnreadableWheelError` saying which entry is broken."""
    place = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > _LARGEST_WHEEL:
                msg = f"{path.name} would unpack to more than {_LARGEST_WHEEL} bytes"
                raise UnreadableWheelError(msg)
            files = {}
            for info in infos:
                place = info.filename
                if not info.is_dir():
                    files[info.filename] = archive.read(info)
    except _READ_ERRORS as error:
        msg = f"{place} cannot be read: {error}"
        raise UnreadableWheelError(msg) from None
    entries = tuple(Entry(i.filename, i.external_attr >> 16, i.date_time, i.is_dir()) for i in infos)
    return WheelContents(path, entries, files)
