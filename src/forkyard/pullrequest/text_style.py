"""Upstream's rules for the text of added lines: ASCII, spaces, line ends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from forkyard.gitstore.differences import ChangedFile

_CODE = {".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".m", ".metal", ".comp", ".cl", ".py", ".cmake", ".sh"}
_MARKDOWN = {".md"}


def _lines(files: Iterable[ChangedFile], suffixes: set[str] | None) -> Iterable[tuple[str, str, bytes]]:
    for file in files:
        suffix = PurePosixPath(file.path).suffix
        if file.binary or (suffixes is not None and suffix not in suffixes):
            continue
        for number, line in file.added:
            yield f"{file.path}:{number}", suffix, line


def not_ascii(files: Iterable[ChangedFile]) -> list[str]:
    """Added lines of code that hold anything but ASCII, as ``path:line: the characters``."""
    found = []
    for where, _, line in _lines(files, _CODE):
        if not line.isascii():
            strange = dict.fromkeys(character for character in line.decode("utf-8", "replace") if ord(character) > 127)
            found.append(f"{where}: {' '.join(f'U+{ord(character):04X}' for character in strange)}")
    return found


def untidy(files: Iterable[ChangedFile]) -> list[str]:
    """Added lines that break the whitespace rules, as ``path:line: what is wrong``."""
    found = []
    for where, suffix, line in _lines(files, None):
        if line.endswith(b"\r"):
            found.append(f"{where}: CRLF line end")
            continue
        if suffix not in _MARKDOWN and re.search(rb"[ \t]$", line):
            found.append(f"{where}: trailing whitespace")
        if suffix in _CODE and re.match(rb" *\t", line):
            found.append(f"{where}: tab in the indentation")
    for file in files:
        if file.no_final_newline and not file.binary and file.status in ("A", "M"):
            found.append(f"{file.path}: no line feed at the end")
    return found
