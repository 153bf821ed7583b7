"""Where each line of a patched file comes from: upstream, or a line of a patch or whole file of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from forkyard.linting.pin import PinTree
from forkyard.linting.reading import FileDiff
from forkyard.linting.subject import Case, LintedPatch, OwnFile


@dataclass(frozen=True)
class Origin:
    """A line that is ours."""

    place: LintedPatch | OwnFile
    line: int
    """Line of the patch file or of the whole file."""

    @property
    def stack(self) -> str:
        """Whose line it is."""
        return self.place.stack if isinstance(self.place, LintedPatch) else self.place.patch.stack


Origins = list[Origin | None]


def trace(cases: Iterable[Case], pin: PinTree, wanted: Callable[[str], bool]) -> dict[str, Origins]:
    """The origin of every line of the files a combination touches, ``None`` for upstream's.

    Only true of a combination that applies exactly; a file whose hunks do not fit is left out.

    Args:
        wanted: which paths are of interest.
    """
    cases = list(cases)
    touched = {file.path for case in cases for patch in case.patches for file in patch.text.files if wanted(file.path)}
    pin.load(touched)
    traced: dict[str, Origins] = {}
    lost: set[str] = set()
    for case in cases:
        for patch in case.patches:
            for file in patch.text.files:
                if file.path in touched and file.path not in lost:
                    _follow(traced, lost, patch, file, pin)
            for own in case.whole:
                if own.patch is patch and wanted(own.target):
                    lines = range(1, _count(own.data) + 1)
                    traced[own.target] = [Origin(own, number) for number in lines]
    return {path: origins for path, origins in traced.items() if path not in lost and any(origins)}


def _follow(traced: dict[str, Origins], lost: set[str], patch: LintedPatch, file: FileDiff, pin: PinTree) -> None:
    before = traced.get(file.path)
    if before is None and not file.new:
        try:
            data = pin.read(file.path)
        except LookupError:
            data = None
        before = [None] * _count(data) if data is not None else None
    if file.deleted:
        traced.pop(file.path, None)
        return
    after = None if file.binary else _edited(before or [], patch, file)
    if after is None or (before is None and not file.new):
        lost.add(file.path)
    else:
        traced[file.path] = after


def _edited(before: Origins, patch: LintedPatch, file: FileDiff) -> Origins | None:
    after: Origins = []
    position = 0
    for hunk in file.hunks:
        # A hunk that removes nothing counts from the line before it.
        start = hunk.old_start - any(line.kind != "+" for line in hunk.lines)
        if not position <= start <= len(before):
            return None
        after += before[position:start]
        position = start
        for line in hunk.lines:
            if line.kind == "+":
                after.append(Origin(patch, line.number))
                continue
            if position >= len(before):
                return None
            if line.kind == " ":
                after.append(before[position])
            position += 1
    return after + before[position:]


def _count(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n") if data else 0)
