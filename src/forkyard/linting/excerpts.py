"""The part of a C or C++ file that clang-format must see to format some of its lines as it would in the whole file.

clang-format reads everything it is given, at about five thousand lines a second; upstream's largest files would take
seconds each. What it does to a line depends on the declaration around it, on the preprocessor conditions that are
open, and on nothing else, because upstream's style fixes what could be derived from the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_END = re.compile(rb"^\}[;,]?\s*$")
_DIRECTIVE = re.compile(rb"^\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b")
SHORT = 400
"""Lines of a file that is not worth cutting up."""


def excerpt(lines: Sequence[bytes], wanted: Sequence[int]) -> list[tuple[bytes, int | None]]:
    """Lines to be formatted, each with its index in ``lines``, or ``None`` for one put in to keep conditions whole.

    Args:
        lines: the whole file.
        wanted: indexes of the lines that matter, ascending.
    """
    if len(lines) <= SHORT:
        return list(zip(lines, range(len(lines)), strict=True))
    found: list[tuple[bytes, int | None]] = []
    for start, end in _windows(lines, wanted):
        opened = [index for index in _open_at(lines, start) if not _guards(lines, index)]
        found += [(lines[index], None) for index in opened]
        found += [(lines[index], index) for index in range(start, end)]
        found += [(b"#endif", None)] * max(0, len(_open_at(lines, end, opened, start)))
    return found


def _windows(lines: Sequence[bytes], wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open ranges around the wanted lines, from the end of one top-level declaration to that of another."""
    windows: list[tuple[int, int]] = []
    for index in wanted:
        if windows and index < windows[-1][1]:
            continue
        # An empty line is judged by what it parts.
        beyond = not lines[index].strip()
        start = max(0, index - beyond)
        while start > 0 and not _boundary(lines, start):
            start -= 1
        end = min(index + 1 + beyond, len(lines))
        while end < len(lines) and not _boundary(lines, end):
            end += 1
        if windows and start < windows[-1][1]:
            start = windows.pop()[0]
        windows.append((start, end))
    return windows


def _boundary(lines: Sequence[bytes], index: int) -> bool:
    """Whether a top-level declaration ends right before a line, and an empty line parts it from the next."""
    return not lines[index].strip() and bool(_END.match(lines[index - 1]))


def _guards(lines: Sequence[bytes], index: int) -> bool:
    """Whether a condition is the include guard of a header, which does not count as a level."""
    words, defined = lines[index].split(), lines[index + 1].split() if index + 1 < len(lines) else []
    return words[:1] == [b"#ifndef"] and defined[:1] == [b"#define"] and words[1:2] == defined[1:2]


def _open_at(lines: Sequence[bytes], end: int, opened: Sequence[int] = (), start: int = 0) -> list[int]:
    """Indexes of the conditions that are open before line ``end``, given those that are before ``start``."""
    stack = list(opened)
    for index in range(start, end):
        directive = _DIRECTIVE.match(lines[index])
        if directive is None:
            continue
        if directive[1].startswith(b"if"):
            stack.append(index)
        elif directive[1] == b"endif" and stack:
            stack.pop()
    return stack
