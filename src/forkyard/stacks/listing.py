"""The ``series`` file: names in order, with the comments people write between them kept where they belong."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_LONGEST_NAME = 60


@dataclass(frozen=True)
class Listed:
    """A name of the series file with the lines above it, and its own line as written."""

    name: str
    line: str
    above: tuple[str, ...]


def read_listing(text: str) -> tuple[list[Listed], tuple[str, ...]]:
    """The names of a series file, and the lines after the last one."""
    found: list[Listed] = []
    above: list[str] = []
    for line in text.splitlines():
        name = line.split("#", 1)[0].strip()
        if name:
            found.append(Listed(name, line, tuple(above)))
            above = []
        else:
            above.append(line)
    return found, tuple(above)


def write_listing(text: str, names: Sequence[str], renamed: dict[str, str] | None = None) -> str:
    """A series file with other names, as near to the old text as can be; the same text for the same names.

    Comments above a patch stay with it; those above a patch that is gone stay where they are.

    Args:
        renamed: new name -> old name.
    """
    old, tail = read_listing(text)
    if [item.name for item in old] == list(names):
        return text
    renamed = renamed or {}
    by_name = {item.name: item for item in old}
    kept = {renamed.get(name, name) for name in names}
    orphans: dict[str, tuple[str, ...]] = {}
    pending: tuple[str, ...] = ()
    for item in old:
        if item.name in kept:
            orphans[item.name] = pending
            pending = ()
        else:
            pending += item.above
    lines: list[str] = []
    for name in names:
        before = by_name.get(renamed.get(name, name))
        if before is None:
            lines.append(name)
            continue
        lines += [*orphans.get(before.name, ()), *before.above]
        lines.append(before.line if before.name == name else name)
    lines += [*pending, *tail]
    return "".join(f"{line}\n" for line in lines)


def file_name(subject: str, taken: Collection[str]) -> str:
    """A file name for a patch from its subject: lower case ASCII words, no number, not one of ``taken``."""
    plain = unicodedata.normalize("NFKD", subject).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if len(words) > _LONGEST_NAME:
        words = words[:_LONGEST_NAME].rsplit("-", 1)[0]
    words = words or "patch"
    # Two fine changes that number their patches collide; the order is the series file's alone.
    words = re.sub(r"^\d+-(?=[a-z])", "", words)
    name, number = f"{words}.patch", 2
    while name in taken:
        name, number = f"{words}-{number}.patch", number + 1
    return name
