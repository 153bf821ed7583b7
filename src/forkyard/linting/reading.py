"""A ``.patch`` file taken apart with the line number of everything, whatever its bytes are: nothing here fails.

What git makes of the file is decided by applying it; this is only for saying where in the file something stands.
"""

from __future__ import annotations

import email.errors
import email.header
import re
from dataclasses import dataclass, field

_FROM = re.compile(rb"^From [0-9a-f]{40} ")
_HEADER = re.compile(rb"^([A-Za-z][A-Za-z-]*):[ \t]*(.*)$")
_HUNK = re.compile(rb"^@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_MODE = re.compile(rb"^(old mode|new mode|new file mode|deleted file mode) (\d{6})$")


@dataclass(frozen=True)
class DiffLine:
    """One line of a hunk."""

    kind: str
    """Space for context, ``-`` removed, ``+`` added."""
    text: bytes
    """Without the line feed."""
    number: int
    """Line of the patch file, from 1."""
    cut: bool = False
    """Whether the file ends here without a line feed."""


@dataclass(frozen=True)
class Hunk:
    """One hunk, with as many lines as its header counts or the file has."""

    number: int
    """Line of the patch file its header is on."""
    old_start: int
    new_start: int
    lines: tuple[DiffLine, ...]

    def groups(self) -> list[tuple[int, int]]:
        """The runs of changed lines, as half-open ranges of ``lines``."""
        found: list[tuple[int, int]] = []
        start: int | None = None
        for place, line in enumerate(self.lines):
            if line.kind == " ":
                if start is not None:
                    found.append((start, place))
                start = None
            elif start is None:
                start = place
        if start is not None:
            found.append((start, len(self.lines)))
        return found


@dataclass
class FileDiff:
    """What a patch does to one file."""

    path: str
    number: int
    """Line of the patch file its ``diff --git`` is on."""
    new: bool = False
    deleted: bool = False
    modes: bool = False
    """Whether the mode of a file that stays changes."""
    binary: bool = False
    hunks: list[Hunk] = field(default_factory=list)

    def added(self) -> list[DiffLine]:
        """Every line it adds."""
        return [line for hunk in self.hunks for line in hunk.lines if line.kind == "+"]


@dataclass(frozen=True)
class PatchText:
    """A patch file taken apart."""

    subject: str
    subject_line: int
    message: str
    """Subject, an empty line, and the rest of the message."""
    message_line: int
    """Line of the patch file the message's body starts on."""
    diff: bytes
    diff_line: int
    files: tuple[FileDiff, ...]

    def line_of(self, start: str) -> int:
        """Line of the patch file of the last line of the message that starts so; else that of the subject."""
        found = self.subject_line
        for offset, line in enumerate(self.message.split("\n")[2:]):
            if line.startswith(start):
                found = self.message_line + offset
        return found


def read_patch(data: bytes) -> PatchText:
    """Take a patch file apart."""
    lines = data.split(b"\n")
    position, subject, subject_line = _headers(lines)
    body = position
    while position < len(lines) and not _ends_message(lines[position]):
        position += 1
    text = b"\n".join(lines[body:position]).decode("utf-8", "replace")
    diff = b"\n".join(lines[position:])
    files = _files(lines, position)
    return PatchText(subject, subject_line, f"{subject}\n\n{text}", body + 1, diff, position + 1, tuple(files))


def _ends_message(line: bytes) -> bool:
    # As git's mailinfo.c decides it.
    return line.startswith((b"diff -", b"--- a/", b"Index: ")) or line.rstrip() == b"---"


def _headers(lines: list[bytes]) -> tuple[int, str, int]:
    """Where the message starts, the subject, and its line."""
    position = 1 if lines and _FROM.match(lines[0]) else 0
    subject, subject_line, last = b"", 1, b""
    while position < len(lines) and lines[position].strip():
        match = _HEADER.match(lines[position])
        if match:
            last = match[1].lower()
            if last == b"subject":
                subject, subject_line = match[2], position + 1
        elif last == b"subject" and lines[position][:1] in (b" ", b"\t"):
            subject += b" " + lines[position].strip()
        elif lines[position][:1] not in (b" ", b"\t"):
            return position, _decoded(subject), subject_line
        position += 1
    return min(position + 1, len(lines)), _decoded(subject), subject_line


def _decoded(subject: bytes) -> str:
    text = subject.decode("utf-8", "replace")
    if "=?" not in text:
        return text
    try:
        return " ".join(str(email.header.make_header(email.header.decode_header(text))).splitlines())
    except (email.errors.HeaderParseError, LookupError, ValueError):
        return text


def _files(lines: list[bytes], position: int) -> list[FileDiff]:
    files: list[FileDiff] = []
    while position < len(lines):
        line = lines[position]
        if line.startswith(b"diff --git "):
            files.append(FileDiff(_git_path(line[11:]), position + 1))
        elif files:
            current = files[-1]
            hunk = _HUNK.match(line)
            if hunk:
                read, position = _hunk(lines, position, hunk)
                current.hunks.append(read)
                continue
            _describe(current, line)
        position += 1
    return files


def _describe(current: FileDiff, line: bytes) -> None:
    mode = _MODE.match(line)
    if mode:
        current.new = current.new or mode[1] == b"new file mode"
        current.deleted = current.deleted or mode[1] == b"deleted file mode"
        current.modes = current.modes or mode[1] in (b"old mode", b"new mode")
    elif line.startswith(b"GIT binary patch") or (line.startswith(b"Binary files ") and line.endswith(b" differ")):
        current.binary = True
    elif line.startswith((b"--- ", b"+++ ")) and not current.hunks:
        path = _side(line[4:])
        if path is not None:
            current.path = path


def _hunk(lines: list[bytes], position: int, header: re.Match[bytes]) -> tuple[Hunk, int]:
    old = int(header[2]) if header[2] is not None else 1
    new = int(header[4]) if header[4] is not None else 1
    found: list[DiffLine] = []
    number, position = position + 1, position + 1
    while position < len(lines):
        line = lines[position]
        kind = line[:1] or b" "
        if kind == b"\\" and found:
            last = found[-1]
            found[-1] = DiffLine(last.kind, last.text, last.number, cut=True)
        elif (kind == b" " and old and new) or (kind == b"-" and old) or (kind == b"+" and new):
            found.append(DiffLine(kind.decode(), line[1:], position + 1))
            old -= kind != b"+"
            new -= kind != b"-"
        else:
            break
        position += 1
    return Hunk(number, int(header[1]), int(header[3]), tuple(found)), position


def _git_path(names: bytes) -> str:
    """The path in ``a/x b/x``, where both sides are the same but for their first letter."""
    if names.startswith(b'"'):
        return _side(names[: len(names) // 2]) or ""
    return _side(names[len(names) // 2 + 1 :]) or ""


def _side(name: bytes) -> str | None:
    """The path in ``a/x`` or ``b/x``, unquoted; ``None`` for ``/dev/null``."""
    name = name.rstrip(b"\t\r")
    if name == b"/dev/null":
        return None
    if len(name) >= 2 and name.startswith(b'"') and name.endswith(b'"'):
        name = re.sub(rb"\\([0-7]{3}|.)", _unescape, name[1:-1], flags=re.DOTALL)
    return (name[2:] if name[:2] in (b"a/", b"b/") else name).decode("utf-8", "surrogateescape")


def _unescape(match: re.Match[bytes]) -> bytes:
    # As git's quote.c writes them.
    code = match[1]
    if len(code) == 3:
        return bytes([int(code, 8) & 0xFF])
    return {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}.get(code, code)
