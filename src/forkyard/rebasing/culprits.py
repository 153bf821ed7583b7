"""Which upstream commit made a patch conflict: found by merging the patch's file into upstream's file of each commit.

Only where the store has history between the two bases; registry packages carry none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.history import commits, touching
from forkyard.gitstore.merging import merge_texts


@dataclass(frozen=True)
class Culprit:
    """The first upstream commit with which a file of a patch conflicts."""

    path: str
    commit: str
    subject: str
    author: str
    date: str


def find_culprit(store: Store, old: str, new: str, path: str, before: str, patch: str) -> Culprit | None:
    """Bisect the commits of ``old..new`` that touch ``path``.

    Args:
        old, new: upstream commits; ``new`` descends from ``old``.
        before, patch: trees before and after the patch, on the old base.

    Returns:
        ``None`` if no single commit is to blame: the conflict comes and goes, or history is not known.
    """
    sides = [store.read_file(tree, path) for tree in (f"{old}^{{tree}}", before, patch)]
    try:
        candidates = touching(store, old, new, [path])
    except GitFailure:
        return None
    if not candidates:
        return None
    low, high = 0, len(candidates) - 1
    if not _conflicts(store, sides, candidates[high], path):
        return None
    while low < high:
        middle = (low + high) // 2
        if _conflicts(store, sides, candidates[middle], path):
            high = middle
        else:
            low = middle + 1
    (facts,) = commits(store, "-1", candidates[high])
    return Culprit(path, facts.commit, facts.subject, facts.author.name, facts.author.date)


def _conflicts(store: Store, sides: Sequence[bytes | None], commit: str, path: str) -> bool:
    """Whether the patch adds conflicts to those that the patches before it have with upstream's file at a commit."""
    base, before, patch = sides
    upstream = store.read_file(commit, path)
    if upstream is None or patch is None:
        return upstream is not base
    without = merge_texts(store, base or b"", upstream, before or b"").conflicts
    return merge_texts(store, base or b"", upstream, patch).conflicts > without
