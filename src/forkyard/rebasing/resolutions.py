"""Conflicts that a person resolved once, kept in the repository so that nobody resolves them again.

git's own ``rerere`` keeps whole files of upstream, on one machine. A record here is a small text file under
``patches/<stack>/<engine>/resolutions/``: which conflict it answers, and a diff from the file with its conflict markers
to the file as the person left it. It is used only where all three sides of every conflict in the file are the same,
byte for byte, and its diff applies without fuzz.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from forkyard.errors import PatchError
from forkyard.gitstore.merging import Conflict

FOLDER = "resolutions"
_SUFFIX = ".resolution"
_HEAD = "forkyard-resolution 1"
_FIELDS = ("key", "path", "kind", "patch", "from", "to", "result")
EDITED, DELETED = "edited", "deleted"
LARGEST = 4 << 20
"""Bytes a record may have."""


@dataclass(frozen=True)
class Resolution:
    """How one conflict was resolved."""

    key: str
    path: str
    kind: str
    patch: str
    """Name of the patch it arose for."""
    old: str
    new: str
    """The upstream commits it arose between: for people, not compared."""
    result: str
    """``edited``, or ``deleted``: what became of the file at ``path``."""
    diff: bytes
    """From the file with markers (or the patch's version, where lines cannot be merged) to the resolved file; may
    change other files of the tree as well. Empty where what the merge left is right."""

    @property
    def file_name(self) -> str:
        """Name of its file."""
        where = hashlib.sha256(self.path.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{self.key[:20]}-{where[:8]}{_SUFFIX}"

    def render(self) -> bytes:
        """The record as it is kept."""
        values = (self.key, self.path, self.kind, self.patch, self.old, self.new, self.result)
        lines = [_HEAD, *(f"{name} {value}" for name, value in zip(_FIELDS, values, strict=True)), "", ""]
        return "\n".join(lines).encode("utf-8", "surrogateescape") + self.diff


def parse(data: bytes, where: str) -> Resolution:
    """Read a record.

    Raises:
        PatchError: it is none.
    """
    head, blank, diff = data.partition(b"\n\n")
    lines = head.decode("utf-8", "surrogateescape").split("\n")
    fields = dict(line.partition(" ")[::2] for line in lines[1:])
    ok = (
        bool(blank)
        and lines[0] == _HEAD
        and set(fields) == set(_FIELDS)
        and re.fullmatch("[0-9a-f]{64}", fields["key"])
    )
    if not ok or len(data) > LARGEST:
        msg = "not a recorded resolution"
        raise PatchError(
            msg, where=where, why=f"it begins with {data[:40]!r}", next_step="delete the file; the conflict comes back"
        )
    key, path, kind, patch, old, new, result = (fields[name] for name in _FIELDS)
    return Resolution(key, path, kind, patch, old, new, result, diff)


def structural_key(conflict: Conflict) -> str:
    """Identity of a conflict that is not about lines: what happened to which file, and all its versions."""
    sides = [entry.oid + entry.mode if entry else "-" for entry in (conflict.before, conflict.upstream, conflict.patch)]
    return hashlib.sha256("\0".join(["structure", conflict.kind, conflict.path, *sides]).encode()).hexdigest()


class Resolutions:
    """All records that may be used, found by key; folders that come first win.

    Raises:
        PatchError: a file in one of the folders is no record.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._known: dict[str, dict[str, Resolution]] = {}
        for folder in folders:
            for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else ():
                found = parse(path.read_bytes(), str(path))
                self._known.setdefault(found.key, {}).setdefault(found.path, found)

    def add(self, resolution: Resolution) -> None:
        """Know one more; it wins over an older one of its key and path."""
        self._known.setdefault(resolution.key, {})[resolution.path] = resolution

    def candidates(self, key: str, path: str) -> list[Resolution]:
        """Records for a conflict: its own first, then those of other files with the same conflict.

        A file may have been renamed since; and the same change to two files may conflict alike in both, to be resolved
        differently in each.
        """
        found = self._known.get(key, {})
        return sorted(found.values(), key=lambda one: (one.path != path, one.path))

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))
