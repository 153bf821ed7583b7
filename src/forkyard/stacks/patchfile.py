"""Reading one ``.patch`` file strictly: its form, its trailers, and whether its hunks hold what their headers promise.

A patch that was converted, coloured, saved as a web page or cut on its way is named as that: git only says of such a
file that it does not apply. ``git apply`` believes a hunk header that under-counts its lines and then treats the rest
as commentary, which truncates the change without a word. So all this is looked at before git sees the file.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn

from forkyard.errors import PatchError

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_TRAILER = re.compile(r"^([A-Za-z][A-Za-z-]*): (.*)$")
_SECTION = re.compile(rb"^diff --git (.*)$", re.MULTILINE)
_COLOUR = re.compile(rb"^\x1b\[[0-9;]*m(diff |index |--- |\+\+\+ |@@ |\+|-|From )", re.MULTILINE)
_INDEX = re.compile(rb"^index ([0-9a-f]+)\.\.([0-9a-f]+)", re.MULTILINE)
_CONTENT = re.compile(rb"^(@@ |GIT binary patch|Binary files )", re.MULTILINE)
_PLAIN_HEADS = re.compile(rb"^--- ([^\t\n]+)(?:\t[^\n]*)?\n\+\+\+ ([^\t\n]+)", re.MULTILINE)
_EMPTY = b"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
_AGAIN = "if git knows it: delete it, then `git checkout -- FILE`"
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


def check_form(data: bytes, where: str, *, ours: bool = True) -> None:
    """See that a file is a patch as git writes it, and whole as far as that can be told.

    Args:
        where: names the file in messages.
        ours: it must be as ``git format-patch`` writes it for a series; else only what ``git apply`` would misread is
            refused.

    Raises:
        PatchError: says what became of the file, and what to do.
    """

    def refuse(what: str, why: str, next_step: str) -> NoReturn:
        raise PatchError(what, where=where, why=why, next_step=next_step.replace("FILE", shlex.quote(where)))

    back = f"put it back ({_AGAIN}), or export it again" if ours else "get it again"
    if not data.strip():
        refuse("the file is empty, and so not a patch", "it holds nothing", f"{back}, or leave it out")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:200].count(b"\0") > len(data[:200]) // 3:
        why = "a shell or an editor converted it from what git wrote"
        refuse("the patch is UTF-16 text", why, "write it again with `git format-patch -o FOLDER`, without a `>`")
    if data.startswith(b"\xef\xbb\xbf"):
        why = "an editor put three bytes before its first line"
        refuse("the patch begins with a byte order mark", why, "save it as UTF-8 without one")
    head = data.lstrip()[:100].lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        refuse("the patch is a web page", "it begins with HTML", "download the patch itself: the raw file")
    if head.startswith(b"version https://git-lfs"):
        refuse("the patch is a pointer of Git LFS", "its content was not fetched", "run `git lfs pull`")
    if b"\n" in data and data.split(b"\n", 1)[0].endswith(b"\r"):
        why = "its lines end in carriage return and line feed: git (core.autocrlf) or an editor converted it"
        refuse("the patch has the line ends of Windows", why, f"{_AGAIN}; else convert it: sed -i 's/\\r$//' FILE")
    if _COLOUR.search(data):
        why = "it was written by a git that was told to colour always"
        refuse("the patch is full of colour codes", why, "write it again with `git -c color.ui=false format-patch`")
    _check_names(data, refuse, ours=ours)
    if ours and not data.endswith(b"\n"):
        why = "the file ends in the middle of a line"
        refuse("the patch is cut off", why, back)
    _check_whole(data, refuse, back)


def _check_names(data: bytes, refuse: Callable[[str, str, str], NoReturn], *, ours: bool) -> None:
    step = "write it again with `git -c diff.noprefix=false -c diff.mnemonicPrefix=false format-patch`"
    heads = [match[1] for match in _SECTION.finditer(data)]
    for names in heads:
        middle = len(names) // 2
        shown = names.decode("utf-8", "replace")[:200]
        if names[middle : middle + 1] == b" " and names[:middle] == names[middle + 1 :]:
            why = f"it says {shown!r}: the git that wrote it has diff.noprefix set"
            refuse("the paths of the patch have no a/ and b/ before them (-p0)", why, step)
        if ours and not names.startswith((b"a/", b'"a/')):
            why = f"it says {shown!r}: the git that wrote it has diff.mnemonicPrefix or diff.srcPrefix set"
            refuse("the paths of the patch do not begin with a/ and b/", why, step)
    match = None if heads else _PLAIN_HEADS.search(data)
    if match is not None and match[1].strip() == match[2].strip():
        why = f"it says {match[1].decode('utf-8', 'replace')!r} of the old and of the new file"
        refuse("the paths of the patch have no a/ and b/ before them (-p0)", why, "make it a -p1 patch")


def _check_whole(data: bytes, refuse: Callable[[str, str, str], NoReturn], back: str) -> None:
    """A file's section that names another content must hold the change."""
    for match, following in itertools.pairwise([*_SECTION.finditer(data), None]):
        assert match is not None
        section = data[match.end() : following.start() if following is not None else len(data)]
        if _CONTENT.search(section):
            continue
        index = _INDEX.search(section)
        sides = (
            {side for side in index.groups() if side.strip(b"0") and not _EMPTY.startswith(side)} if index else set()
        )
        if sides or not section.strip():
            name = match[1].decode("utf-8", "replace")[:200]
            line = data.count(b"\n", 0, match.start()) + 1
            why = f"line {line} begins the change of {name!r}, and the change is not there"
            refuse("the patch is cut off", why, back)


def as_git_wrote(data: bytes) -> tuple[bytes, str | None]:
    """Undo what mail programs, shells and editors do to a whole patch file, where that is exactly safe.

    Returns:
        the bytes, and what was undone.
    """
    undone = []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        with contextlib.suppress(UnicodeError):
            # Other characters went through a code page nobody knows.
            data = data.decode("utf-16").encode("ascii")
            undone.append("UTF-16")
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
        undone.append("a byte order mark")
    if b"\r\n" in data and data.count(b"\r\n") == data.count(b"\n") and data.count(b"\r") == data.count(b"\r\n"):
        # Also the headers, which git ends with line feeds alone.
        data = data.replace(b"\r\n", b"\n")
        undone.append("the line ends of Windows")
    return data, " and ".join(undone) or None


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
