"""The archive a kernel unpacks into its first file system: cpio in the "newc" format.

The format is described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: for each entry a
header of ASCII digits, the name with a final zero byte, padding to four bytes, the content, padding to four bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_LARGEST = 0xFFFF_FFFF
"""Every number is eight hexadecimal digits."""


@dataclass(frozen=True)
class Entry:
    """One entry: a file, folder, symbolic link (``content`` is where it leads) or character device."""

    path: str
    """Relative, with slashes, without ``.`` and ``..``."""
    mode: int
    """Type and permissions as in ``st_mode``."""
    content: bytes = b""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""


def file(path: str, content: bytes, *, program: bool = False) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | (0o755 if program else 0o644), content)


def folder(path: str) -> Entry:
    """A folder."""
    return Entry(path, stat.S_IFDIR | 0o755)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def console(path: str) -> Entry:
    """The character device /dev/console: without it the first program has no standard output."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(5, 1))


def archive(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The bytes of an archive, in pieces: what is in it depends on the entries alone.

    Folders that no entry names are made before what is in them. Everything belongs to user 0 and has the date 0.

    Raises:
        ValueError: a path is absolute, empty, steps upwards or comes twice; a content is too large.
    """
    seen: set[str] = set()
    for number, entry in enumerate(_with_folders(entries, seen), 1):
        yield from _entry(entry, number)
    yield from _entry(Entry(_TRAILER, 0), 0)


def _with_folders(entries: Iterable[Entry], seen: set[str]) -> Iterator[Entry]:
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != entry.path or "\0" in entry.path:
            msg = f"{entry.path!r} is no path for an archive"
            raise ValueError(msg)
        if entry.path == _TRAILER or (entry.path in seen and not stat.S_ISDIR(entry.mode)):
            msg = f"{entry.path!r} comes twice, or is the name of the archive's end"
            raise ValueError(msg)
        for parent in reversed(path.parents[:-1]):
            if str(parent) not in seen:
                seen.add(str(parent))
                yield folder(str(parent))
        if entry.path not in seen:
            seen.add(entry.path)
            yield entry


def _entry(entry: Entry, number: int) -> Iterator[bytes]:
    if len(entry.content) > _LARGEST:
        msg = f"{entry.path} is larger than the format can say"
        raise ValueError(msg)
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # inode, mode, user, group, links, date, size, the device it is on (2), the device it is (2), name's size, checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, major, minor, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % value for value in fields) + name
    yield head + bytes(-len(head) % 4)
    yield entry.content
    yield bytes(-len(entry.content) % 4)
