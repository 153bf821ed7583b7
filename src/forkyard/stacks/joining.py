"""Bringing two states of one series together that both came from a third, patch by patch.

Each patch is taken from the side that changed it. Where both did, or the result does not merge, a person has to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forkyard.errors import PatchError
from forkyard.gitstore import Store
from forkyard.gitstore.history import CommitFacts
from forkyard.gitstore.merging import merge_trees
from forkyard.stacks.comparing import bare
from forkyard.stacks.exporting import OldPatch, match_names


@dataclass(frozen=True)
class Chain:
    """A series as commits."""

    tree: str
    """Tree it is made on."""
    commits: Sequence[CommitFacts]


@dataclass(frozen=True)
class _Version:
    """One patch on one side."""

    before: str
    facts: CommitFacts
    change: bytes


def join(store: Store, old: Chain, mine: Chain, theirs: Chain, next_step: str) -> list[CommitFacts]:
    """The series with the changes of both sides, on the ground of ``theirs``; the commits have no ids of their own yet.

    Args:
        old: what both come from.
        next_step: what a person can do where the two contradict each other.

    Raises:
        PatchError: they do; names the patches.
    """
    names = [f"{number}" for number in range(len(old.commits))]
    was = dict(zip(names, _versions(store, old), strict=True))
    known = [
        OldPatch(name, one.subject, one.author.email, one.author.date)
        for name, one in zip(names, old.commits, strict=True)
    ]
    sides = [
        dict(zip(_names(side, known, prefix), _versions(store, side), strict=True))
        for side, prefix in ((mine, "mine "), (theirs, "theirs "))
    ]
    ours, other = sides

    def changed(name: str, side: dict[str, _Version]) -> bool:
        return name not in was or name not in side or side[name].change != was[name].change

    both = [name for name in names if changed(name, ours) and changed(name, other)]
    clash = [
        was[name].facts.subject
        for name in both
        if (name in ours) != (name in other) or (name in ours and ours[name].change != other[name].change)
    ]
    if clash:
        raise _refused("both sides changed " + "; ".join(repr(subject) for subject in clash), next_step)
    order = _order(list(was), list(ours), list(other), next_step)
    kept = [name for name in order if not any(name in was and name not in side for side in sides)]
    current = theirs.tree
    joined = []
    for name in kept:
        version = ours[name] if name in ours and changed(name, ours) else other.get(name) or ours[name]
        merge = merge_trees(store, version.before, current, version.facts.tree)
        if merge.conflicts:
            paths = ", ".join(conflict.path for conflict in merge.conflicts)
            raise _refused(f"{version.facts.subject!r} conflicts with the other side's changes of {paths}", next_step)
        current = merge.tree
        joined.append(replace(version.facts, tree=current))
    return joined


def _versions(store: Store, chain: Chain) -> list[_Version]:
    before, found = chain.tree, []
    for one in chain.commits:
        found.append(_Version(before, one, bare(store.export(one.commit))))
        before = one.tree
    return found


def _names(side: Chain, known: Sequence[OldPatch], prefix: str) -> list[str]:
    """The number each commit has in the old series; for a new one something of its side's own."""
    names = match_names(known, side.commits)
    return [prefix + name if name.endswith(".patch") else name for name in names]


def _order(old: list[str], mine: list[str], theirs: list[str], next_step: str) -> list[str]:
    """One order of everything: of the side that changed it, the other's new patches after those they followed."""

    def moved(side: list[str]) -> bool:
        return [name for name in side if name in old] != [name for name in old if name in side]

    if moved(mine) and moved(theirs):
        raise _refused("both sides changed the order of the patches", next_step)
    leading, other = (mine, theirs) if moved(mine) else (theirs, mine)
    order = list(leading)
    for number, name in enumerate(other):
        if name not in order:
            earlier = [one for one in other[:number] if one in order]
            order.insert(order.index(earlier[-1]) + 1 if earlier else 0, name)
    return order


def _refused(why: str, next_step: str) -> PatchError:
    msg = "the two states of the series cannot be brought together"
    return PatchError(msg, why=why, next_step=next_step)
