"""Which patch of one revision is which of the other: git's matching, told apart by what stacks know besides.

git compares texts alone. For a small patch a small change is already a large part of it, and with its usual creation
factor git calls that one patch dropped and another added. A patch of a stack has a name: where git splits one that kept
its name and subject, higher factors are tried, and taken if they put it together without joining strangers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forkyard.gitstore import Store
from forkyard.gitstore.comparing import CREATION_FACTOR, Change, changes_of, range_diff
from forkyard.gitstore.history import CommitFacts, commits
from forkyard.rangediff.model import (
    SHORT,
    Fact,
    Line,
    Pair,
    Place,
    RawPair,
    Side,
    differing,
    moved_numbers,
    read_range_diff,
)
from forkyard.stacks.applying import AppliedPatch

HIGHER_FACTORS = (100, 200, 400, 999)
"""Tried one after the other."""


@dataclass(frozen=True)
class Range:
    """One side, in the store."""

    place: Place
    base: str
    tip: str
    patches: tuple[AppliedPatch, ...]
    """The stack's own, oldest first; each with its commit in the range."""

    @property
    def by_commit(self) -> Mapping[str, AppliedPatch]:
        """The patches by their commits."""
        return {patch.commit: patch for patch in self.patches}


def pair_up(store: Store, was: Range, now: Range, factor: int | None = None) -> tuple[tuple[Pair, ...], int]:
    """The patches of both ranges in git's order, and the creation factor they were matched with.

    Args:
        factor: the only one to use.

    Raises:
        GitFailure, ToolchainError: see :func:`forkyard.gitstore.comparing.range_diff`.
    """

    def ask(percent: int) -> tuple[RawPair, ...]:
        said = range_diff(store, (was.base, was.tip), (now.base, now.tip), creation_factor=percent)
        return read_range_diff(said)

    best = factor if factor is not None else CREATION_FACTOR
    raw = ask(best)
    split, strangers = _doubts(raw, was, now)
    for higher in HIGHER_FACTORS if factor is None else ():
        if not split:
            break
        other = ask(higher)
        fewer, more_strangers = _doubts(other, was, now)
        if fewer < split and more_strangers <= strangers:
            best, raw, split = higher, other, fewer
    return _pairs(store, raw, was, now), best


def _doubts(raw: Sequence[RawPair], was: Range, now: Range) -> tuple[int, int]:
    """How many patches were dropped and added with one name and subject, and how many pairs share neither."""
    old, new = was.by_commit, now.by_commit
    dropped = {_title(old[one.old_commit]) for one in raw if one.old_commit and not one.new_commit}
    added = {_title(new[one.new_commit]) for one in raw if one.new_commit and not one.old_commit}
    both = [(old[one.old_commit], new[one.new_commit]) for one in raw if one.old_commit and one.new_commit]
    return len(dropped & added), sum(a.name != b.name and a.subject != b.subject for a, b in both)


def _title(patch: AppliedPatch) -> tuple[str, str]:
    return patch.name, patch.subject


def _pairs(store: Store, raw: Sequence[RawPair], was: Range, now: Range) -> tuple[Pair, ...]:
    """git's pairs with the names of the patch files, and what git does not look at."""
    old_names, new_names = was.by_commit, now.by_commit
    both = [(one.old, one.new) for one in raw if one.old is not None and one.new is not None]
    moved = moved_numbers(both)
    ids = {commit for one in raw for commit in (one.old_commit, one.new_commit) if commit is not None}
    changes = changes_of(store, sorted(ids))
    facts = {
        one.commit: one for side in (was, now) if side.patches for one in commits(store, f"{side.base}..{side.tip}")
    }
    dropped = {old_names[one.old_commit].name for one in raw if one.sign == "<" and one.old_commit}
    added = {new_names[one.new_commit].name for one in raw if one.sign == ">" and one.new_commit}
    found = []
    for one in raw:
        old = old_names[one.old_commit] if one.old_commit else None
        new = new_names[one.new_commit] if one.new_commit else None
        left = Side(one.old or 0, old.name, old.commit, old.subject) if old else None
        right = Side(one.new or 0, new.name, new.commit, new.subject) if new else None
        sign, lines = one.sign, one.lines
        notes: list[Fact] = []
        if old and new:
            hidden = list(_hidden(changes.get(old.commit, ()), changes.get(new.commit, ())))
            if hidden:
                sign = "!"
                lines += tuple(
                    Line(f"{mark}{fact.what}: {value}")
                    for fact in hidden
                    for mark, value in (("-", fact.old), ("+", fact.new))
                    if value is not None
                )
            notes = [*_trailer_facts(old, new, facts), *hidden]
        rewritten = (one.sign == "<" and left is not None and left.name in added) or (
            one.sign == ">" and right is not None and right.name in dropped
        )
        is_moved = one.old is not None and one.new in moved
        found.append(Pair(sign, left, right, one.header(sign), lines, tuple(notes), is_moved, rewritten))
    return tuple(found)


def _trailer_facts(old: AppliedPatch, new: AppliedPatch, facts: dict[str, CommitFacts]) -> list[Fact]:
    sides = []
    for patch in (old, new):
        trailers = patch.trailers
        sides.append(
            {
                "Upstream-Status": trailers.upstream_status,
                "Retire-When": "; ".join(trailers.retire_when),
                "Adds-Files": "; ".join(f"{file.source} -> {file.target}" for file in trailers.adds_files),
                "Date": facts[patch.commit].author.date,
            }
        )
    return list(differing(*({key: value for key, value in side.items() if value} for side in sides)))


def _hidden(old: Sequence[Change], new: Sequence[Change]) -> list[Fact]:
    """What two commits do differently to a path that shows in no line of their differences.

    git shows that a binary file is there, not what is in it; and the mode of a file only where it changes.
    """
    before, after = ({change.path: change for change in side} for side in (old, new))
    found = []
    for path in sorted(before.keys() & after.keys()):
        one, other = before[path], after[path]
        if one.binary and other.binary and one.oid != other.oid:
            found.append(Fact(f"binary file {path}", one.oid[:SHORT], other.oid[:SHORT]))
        if one.status == other.status == "A" and one.mode != other.mode:
            found.append(Fact(f"mode of {path}", one.mode, other.mode))
    return found
