"""Reading one ``.patch`` file strictly: its trailers, and whether its hunks hold what their headers promise.

``git apply`` believes a hunk header that under-counts its lines and then treats the rest as commentary, which
truncates the change without a word. So the counts are checked here before git sees the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from forkyard.errors import PatchError

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_TRAILER = re.compile(r"^([A-Za-z][A-Za-z-]*): (.*)$")
_STATUS = re.compile(r"^(Pending|Submitted \S+|Accepted [0-9a-f]{7,40}|Denied \S+|Inappropriate .+)$")


@dataclass(frozen=True)
class AddedFile:
    """One ``Adds-Files`` trailer: a whole file of ours that the patch's commit puts into the tree."""

    source: str
    """Path below ``patches/<stack>/src``."""
    target: str
    """Path in the engine's tree."""


@dataclass(frozen=True)
class Trailers:
    """The machine-readable end of a patch's message."""

    upstream_status: str
    retire_when: tuple[str, ...]
    adds_files: tuple[AddedFile, ...]


def parse_trailers(message: str, where: str) -> Trailers:
    """Read the last paragraph of a commit message.

    Raises:
        PatchError: a trailer is missing, unknown in its value, or points outside the tree.
    """
    paragraphs = [part for part in re.split(r"\n\s*\n", message.strip()) if part.strip()]
    found: list[tuple[str, str]] = []
    for line in paragraphs[-1].splitlines() if paragraphs else []:
        match = _TRAILER.match(line.strip())
        if match:
            found.append((match[1], match[2].strip()))
    statuses = [value for name, value in found if name == "Upstream-Status"]
    if len(statuses) != 1 or not _STATUS.match(statuses[0]):
        msg = "the patch does not say where it stands upstream"
        raise PatchError(
            msg,
            where=where,
            why=f"Upstream-Status is {statuses[0]!r}" if statuses else "it has no Upstream-Status trailer",
            next_step="end the message with `Upstream-Status: Pending` (CONTRIBUTING.md lists the others)",
        )
    added = tuple(_added_file(value, where) for name, value in found if name == "Adds-Files")
    return Trailers(statuses[0], tuple(value for name, value in found if name == "Retire-When"), added)


def _added_file(value: str, where: str) -> AddedFile:
    source, arrow, target = (part.strip() for part in value.partition("->"))
    target = target if arrow else source
    for path in (source, target):
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or ".git" in parts:
            msg = "an Adds-Files trailer points outside the tree"
            raise PatchError(
                msg, where=where, why=f"{value!r}", next_step="write `Adds-Files: <path in src> -> <path in the tree>`"
            )
    return AddedFile(source, target)


def added_file_sources(patch: bytes) -> tuple[str, ...]:
    """Paths below ``src`` that a patch file's trailers name, without checking anything else about it."""
    found = re.findall(rb"^Adds-Files: (.*?)(?:->|$)", patch.split(b"\ndiff --git ", 1)[0], re.MULTILINE)
    return tuple(value.strip().decode("utf-8", "replace") for value in found)


def check_hunks(diff: bytes, where: str) -> int:
    """Check that every hunk holds exactly the lines its header counts.

    Args:
        diff: the diff part of a mailed patch.
        where: names the file in messages.

    Returns:
        the number of hunks.

    Raises:
        PatchError: a hunk is longer or shorter than its header says; names the line.
    """
    lines = diff.split(b"\n")
    count = 0
    number = 0
    while number < len(lines):
        match = _HUNK.match(lines[number])
        if match is None:
            if lines[number].startswith((b"@@ ", b"@@-")):
                msg = "a hunk header cannot be read"
                raise PatchError(msg, where=f"{where}: diff line {number + 1}", why=repr(lines[number][:80]))
            number += 1
            continue
        start = number
        old = int(match[2]) if match[2] is not None else 1
        new = int(match[4]) if match[4] is not None else 1
        number += 1
        while old > 0 or new > 0:
            line = lines[number] if number < len(lines) else b"@@"
            first = line[:1]
            if first in (b" ", b"") and old and new and number < len(lines) - (first == b""):
                old, new = old - 1, new - 1
            elif first == b"-" and old:
                old -= 1
            elif first == b"+" and new:
                new -= 1
            elif first != b"\\":
                _bad_hunk(where, start, f"{old} old and {new} new lines are missing from it")
            number += 1
        while number < len(lines) and lines[number].startswith(b"\\"):
            number += 1
        if number < len(lines) and lines[number][:1] in (b" ", b"+", b"-") and not _starts_file(lines, number):
            _bad_hunk(where, start, f"line {number + 1} follows the hunk but is not counted by it")
        count += 1
    return count


def _starts_file(lines: list[bytes], number: int) -> bool:
    """Whether a line that looks like a removal is really the next file's ``--- a/...`` header or the mail's end."""
    line = lines[number]
    following = lines[number + 1] if number + 1 < len(lines) else b""
    return line == b"-- " or (line.startswith(b"--- ") and following.startswith(b"+++ "))


def _bad_hunk(where: str, start: int, why: str) -> None:
    msg = "a hunk does not hold what its header counts"
    raise PatchError(
        msg,
        where=f"{where}: diff line {start + 1}",
        why=why,
        next_step="export the patch again; do not edit hunks by hand",
    )
