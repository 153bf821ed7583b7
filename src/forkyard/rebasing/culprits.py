"""Which upstream commit made a patch conflict: found by carrying the patch to upstream's commits, one after another.

Only where the store has history between the two bases; registry packages carry none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.history import commits, touching
from forkyard.gitstore.merging import Conflict, merge_texts, merge_trees

_MOST_TRIED = 32
"""Commits that are tried one by one where history is no line."""


@dataclass(frozen=True)
class Culprit:
    """The first upstream commit with which a file of a patch conflicts."""

    path: str
    commit: str
    subject: str
    author: str
    date: str


def find_culprit(store: Store, old: str, new: str, conflict: Conflict, before: str, patch: str) -> Culprit | None:
    """Bisect the commits of ``old..new``, those that touch the file if that is enough.

    Args:
        old, new: upstream commits; ``new`` descends from ``old``.
        conflict: what is to be explained, as the patch was carried to ``new``.
        before, patch: trees before and after the patch, on the old base.

    Returns:
        ``None`` if no single commit is to blame: the conflict comes and goes, or history is not known.
    """
    sides = (None if one is None else (one.mode, one.oid) for one in (conflict.before, conflict.patch))
    question = ("culprit", old, new, conflict.path, *sides, before, patch)
    found = store.answers.ask(question, lambda: _find(store, old, new, conflict, before, patch))
    return None if found is None else Culprit(*found)


def _find(store: Store, old: str, new: str, conflict: Conflict, before: str, patch: str) -> list[str] | None:
    search = _Search(store, store.tree_of(old), conflict, before, patch)
    try:
        likely = touching(store, old, new, search.paths)
        # The file may have had a third name on its way; and history is not always a line.
        found = (
            _bisect(search, likely)
            or _bisect(search, touching(store, old, new, []))
            or next((one for one in likely[-_MOST_TRIED:] if search.begins(one)), None)
        )
        if found is None:
            return None
        (facts,) = commits(store, "-1", found)
    except GitFailure:
        return None
    return [conflict.path, facts.commit, facts.subject, facts.author.name, facts.author.date]


def _bisect(search: _Search, candidates: Sequence[str]) -> str | None:
    if not candidates or not search.conflicts(candidates[-1]):
        return None
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if search.conflicts(candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return candidates[low] if search.begins(candidates[low]) else None


class _Search:
    """Whether a patch conflicts with upstream as of some commit, in the file a conflict is about."""

    def __init__(self, store: Store, base: str, conflict: Conflict, before: str, patch: str) -> None:
        self._store, self._base, self._before, self._patch = store, base, before, patch
        self._content = conflict.patch.oid if conflict.patch is not None else None
        self._was = conflict.before.oid if conflict.before is not None else None
        self.paths = {conflict.path}
        if self._was is not None:
            # Upstream may have renamed it; on the old side it is found by its content.
            names = {entry.path for entry in store.entries(before) if entry.oid == self._was}
            self.paths |= set() if conflict.path in names else names
        self._known: dict[str, bool] = {}

    def conflicts(self, commit: str) -> bool:
        """Whether the patch adds conflicts to those that the patches before it have with upstream at ``commit``."""
        if commit not in self._known:
            tree = self._store.tree_of(commit)
            self._known[commit] = self._count(tree, self._patch, self._content) > self._count(
                tree, self._before, self._was
            )
        return self._known[commit]

    def begins(self, commit: str) -> bool:
        """Whether the conflict begins with ``commit``: what precedes it is free of it."""
        return self.conflicts(commit) and not self.conflicts(f"{commit}^")

    def _count(self, upstream: str, side: str, content: str | None) -> int:
        """Conflicts between upstream and a side in the file: hunks, or one where lines cannot be merged."""
        count = 0
        conflicts = merge_trees(self._store, self._base, upstream, side).conflicts
        about = [one for one in conflicts if (one.patch.oid if one.patch is not None else None) == content]
        named = [one for one in about if one.path in self.paths]
        # The content tells it under a third name; but two files may have the same one.
        elsewhere = content is not None and not any(self._store.has(f"{upstream}:{path}") for path in self.paths)
        for one in about if elsewhere else named:
            if not one.textual:
                count += 1
                continue
            assert one.upstream is not None
            assert one.patch is not None
            sides = (
                self._store._git("cat-file", "blob", entry.oid) if entry is not None and entry.mode != "160000" else b""
                for entry in (one.before, one.upstream, one.patch)
            )
            count += merge_texts(self._store, *sides).conflicts
        return count
