"""What became of each patch of a series when it was exported again."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forkyard.stacks.exporting import Exported

_PLACE = re.compile(rb"^(index [0-9a-f]+\.\.[0-9a-f]+|@@ -[0-9,]+ \+[0-9,]+ @@.*$)", re.MULTILINE)


@dataclass(frozen=True)
class PatchOutcome:
    """One patch before and after."""

    name: str
    status: tuple[str, ...]
    """``unchanged`` or ``new`` or ``dropped``, or some of ``changed``, ``moved`` (only line numbers, context or object
    ids are others), ``renamed`` (its subject is another), ``reordered``."""
    subject: str
    was: str | None = None
    """Its subject before, where that was another."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"name": self.name, "status": list(self.status), "subject": self.subject, "was": self.was}


def compare_series(old: Mapping[str, tuple[str, bytes]], exported: Exported) -> list[PatchOutcome]:
    """What became of each patch, in the new order, and then those that are gone.

    Args:
        old: name -> subject and bytes, in order.
    """
    moved = _out_of_order(list(old), [patch.name for patch in exported.patches])
    found = []
    for patch in exported.patches:
        if patch.name not in old:
            found.append(PatchOutcome(patch.name, ("new",), patch.subject))
            continue
        subject, data = old[patch.name]
        status = []
        if data != patch.data:
            status.append("moved" if bare(data) == bare(patch.data) else "changed")
        if subject != patch.subject:
            status.append("renamed")
        if patch.name in moved:
            status.append("reordered")
        was = subject if subject != patch.subject else None
        found.append(PatchOutcome(patch.name, tuple(status) or ("unchanged",), patch.subject, was))
    gone = [name for name in old if name not in exported.names]
    return [*found, *(PatchOutcome(name, ("dropped",), old[name][0]) for name in gone)]


def bare(data: bytes) -> bytes:
    """A patch file without what changes when something else does: line numbers, function headings, ids, context."""
    message, mark, diff = data.partition(b"\ndiff --git ")
    lines = [line for line in _PLACE.sub(b"", diff).split(b"\n") if not line.startswith(b" ")]
    return message + mark + b"\n".join(lines)


def _out_of_order(old: Sequence[str], new: Sequence[str]) -> set[str]:
    """The fewest names that have to move to turn one order into the other."""
    kept = [name for name in new if name in old]
    places = [list(old).index(name) for name in kept]
    # The longest run that rises (patience sorting) stays; the rest moved.
    piles: list[int] = []
    holders: list[int] = []
    back: list[int | None] = []
    for number, place in enumerate(places):
        pile = bisect.bisect_left(piles, place)
        back.append(holders[pile - 1] if pile else None)
        if pile == len(piles):
            piles.append(place)
            holders.append(number)
        else:
            piles[pile], holders[pile] = place, number
    staying = set()
    last = holders[-1] if holders else None
    while last is not None:
        staying.add(kept[last])
        last = back[last]
    return set(kept) - staying
