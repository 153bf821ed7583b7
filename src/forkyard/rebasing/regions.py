"""Reading conflict markers: which lines of which side disagree, and an identity that survives moves within the file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from forkyard.gitstore import Store
from forkyard.gitstore.merging import MARKER_SIZE, Hunk, changed_lines

_OPEN, _BEFORE, _MIDDLE, _CLOSE = (character * MARKER_SIZE for character in (b"<", b"|", b"=", b">"))


@dataclass(frozen=True)
class Region:
    """One conflict of a file."""

    line: int
    """Line of the upstream file it begins at, counted from 1."""
    upstream: bytes
    before: bytes
    patch: bytes

    @property
    def span(self) -> str:
        """Its lines in the upstream file, as ``12`` or ``12-15``; ``after 11`` where upstream has none."""
        count = self.upstream.count(b"\n") + (not self.upstream.endswith(b"\n") if self.upstream else 0)
        if count == 0:
            return f"after {self.line - 1}"
        return str(self.line) if count == 1 else f"{self.line}-{self.line + count - 1}"


def regions(marked: bytes) -> list[Region]:
    """The conflicts of a file as :func:`forkyard.gitstore.merging.merge_texts` marks them.

    Their lines are those of the marked file with upstream's side everywhere; :func:`located` gives upstream's own.
    """
    return _read(marked)[0]


def located(store: Store, marked: bytes, upstream: bytes) -> list[Region]:
    """As :func:`regions`, with the lines they have in upstream's file, whatever the patch adds above them."""
    found, merged = _read(marked)
    if merged == upstream:
        return found
    hunks = changed_lines(store, upstream, merged)
    return [replace(region, line=_line_in_old(hunks, region.line)) for region in found]


def _line_in_old(hunks: Sequence[Hunk], line: int) -> int:
    shift = 0
    for hunk in hunks:
        if hunk.new_start + hunk.new_count > line:
            break
        shift = hunk.old_start + hunk.old_count - hunk.new_start - hunk.new_count
    return max(1, line + shift)


def _read(marked: bytes) -> tuple[list[Region], bytes]:
    """The conflicts, and the file with upstream's side of each."""
    found: list[Region] = []
    sides: list[list[bytes]] = []
    merged: list[bytes] = []
    state, start = 0, 1
    # Only a line feed ends a line for git; splitlines() sees more.
    for line in re.findall(rb"[^\n]*\n|[^\n]+$", marked):
        if state == 0 and _is(line, _OPEN):
            sides, state, start = [[], [], []], 1, len(merged) + 1
        elif state == 1 and _is(line, _BEFORE):
            state = 2
        elif state in (1, 2) and _is(line, _MIDDLE):
            state = 3
        elif state == 3 and _is(line, _CLOSE):
            upstream, before, patch = (b"".join(side) for side in sides)
            found.append(Region(start, upstream, before, patch))
            state = 0
        else:
            if state:
                sides[state - 1].append(line)
            if state < 2:
                merged.append(line)
    return found, b"".join(merged)


def _is(line: bytes, mark: bytes) -> bool:
    return line.startswith(mark) and line[MARKER_SIZE : MARKER_SIZE + 1] in (b"", b" ", b"\n", b"\r")


def both_added(marked: bytes) -> bytes | None:
    """The file with what both sides added in the same places, upstream's lines first; ``None`` if that is not all.

    Nothing that was there is changed, and no line of either side is lost: the rest of the file is the merge's.
    """
    found, upstream = _read(marked)
    pure = (not one.before and one.upstream.endswith(b"\n") and one.patch.endswith(b"\n") for one in found)
    if not found or not all(pure):
        return None
    lines = re.findall(rb"[^\n]*\n|[^\n]+$", upstream)
    for one in reversed(found):
        place = one.line - 1 + one.upstream.count(b"\n")
        lines[place:place] = [one.patch]
    return b"".join(lines)


def identity(found: Sequence[Region]) -> str:
    """sha256 over what the sides say, in order; neither path nor line numbers nor what lies between takes part."""
    whole = hashlib.sha256(b"regions\0")
    for region in found:
        for side in (region.upstream, region.before, region.patch):
            whole.update(len(side).to_bytes(8, "little"))
            whole.update(side)
    return whole.hexdigest()
