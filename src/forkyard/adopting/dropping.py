"""Commits of a fork that need not become patches: upstream has the same change, or a later commit takes it back.

Two changes are the same if git's patch id says so and no binary file hides behind it, for which a patch id is blind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from forkyard.adopting.linearising import Line, Lineariser
from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.forks import (
    FileChange,
    binary_paths,
    changes_of,
    commits_touching,
    shared_ancestor,
)
from forkyard.gitstore.history import CommitFacts, changed_paths, is_ancestor, patch_ids

_REVERTS = re.compile(r"^This reverts commit ([0-9a-f]{40})\b", re.MULTILINE)


@dataclass(frozen=True)
class Twins:
    """Which commits of a fork say the same as others, or the opposite."""

    upstream: Mapping[str, str] = field(default_factory=dict)
    """Commit -> upstream's commit of the same change."""
    undone: frozenset[str] = frozenset()
    """Those of upstream's commits that upstream took back."""
    pairs: tuple[tuple[str, str], ...] = ()
    """A commit and the later one that takes exactly it back."""
    claimed: tuple[tuple[str, str], ...] = ()
    """The same, where only the later one's message says so."""
    against: Mapping[str, str] = field(default_factory=dict)
    """Commit -> upstream's commit that it takes back."""


def find_twins(
    store: Store, own: Sequence[CommitFacts], everything: Sequence[CommitFacts], upstream: Sequence[str]
) -> Twins:
    """Compare a fork's commits with each other and with upstream's.

    Args:
        own: commits that are no merges, parents before children.
        everything: merges too.
        upstream: commits whose history is upstream's.
    """
    names = [one.commit for one in own]
    changes = changes_of(store, names)
    ids = patch_ids(store, names)
    backwards = patch_ids(store, names, reverse=True)
    pairs, claimed = _pairs(store, own, changes, ids, backwards)
    candidates = _upstream_commits(store, everything, changes, upstream)
    theirs = changes_of(store, candidates)
    paths = {frozenset(change) for change in changes.values()}
    candidates = [one for one in candidates if frozenset(theirs[one]) in paths]
    their_ids = patch_ids(store, candidates)
    by_id: dict[str, list[str]] = {}
    for commit, patch in their_ids.items():
        by_id.setdefault(patch, []).append(commit)
    same: dict[str, str] = {}
    for name in names:
        found = (one for one in by_id.get(ids.get(name, ""), ()) if _same(store, name, changes[name], theirs[one]))
        first = next(found, None)
        if first is not None:
            same[name] = first
    undone = {same[name] for name in same if any(by_id.get(backwards.get(name, ""), ()))}
    known = {one.commit for one in everything}
    against = {}
    for one in own:
        said = _REVERTS.search(one.message)
        if said and said[1] not in known and _is_upstream(store, said[1], upstream):
            against[one.commit] = said[1]
        elif (found_id := backwards.get(one.commit)) in by_id and one.commit not in same:
            against[one.commit] = by_id[str(found_id)][0]
    return Twins(same, frozenset(undone), pairs, claimed, against)


def _is_upstream(store: Store, commit: str, upstream: Sequence[str]) -> bool:
    return store.has(commit, "commit") and any(is_ancestor(store, commit, tip) for tip in upstream)


def _pairs(
    store: Store,
    own: Sequence[CommitFacts],
    changes: Mapping[str, dict[str, FileChange]],
    ids: Mapping[str, str],
    backwards: Mapping[str, str],
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Each commit that takes an earlier one back, with the nearest such one that is still standing."""
    pairs, claimed, taken = list[tuple[str, str]](), list[tuple[str, str]](), set[str]()
    for number, later in enumerate(own):
        standing = [one for one in reversed(own[:number]) if one.commit not in taken]
        wanted = backwards.get(later.commit)
        exact = (
            one.commit
            for one in standing
            if wanted is not None
            and ids.get(one.commit) == wanted
            and _same(store, later.commit, _reversed(changes[later.commit]), changes[one.commit])
        )
        found = next(exact, None)
        if found is not None:
            pairs.append((found, later.commit))
            taken |= {found, later.commit}
            continue
        said = _REVERTS.search(later.message)
        if said and any(one.commit == said[1] for one in standing):
            claimed.append((said[1], later.commit))
            taken |= {said[1], later.commit}
    return tuple(pairs), tuple(claimed)


def _reversed(change: Mapping[str, FileChange]) -> dict[str, FileChange]:
    return {path: one.reversed for path, one in change.items()}


def _same(store: Store, commit: str, one: Mapping[str, FileChange], other: Mapping[str, FileChange]) -> bool:
    """Whether two changes of one patch id agree in what patch ids do not look at: modes, and binary content."""
    if one.keys() != other.keys() or any(one[path].modes != other[path].modes for path in one):
        return False
    differing = {path for path in one if one[path].oids != other[path].oids}
    return not differing or not differing & binary_paths(store, commit)


def _upstream_commits(
    store: Store,
    everything: Sequence[CommitFacts],
    changes: Mapping[str, dict[str, FileChange]],
    upstream: Sequence[str],
) -> list[str]:
    """Upstream's commits since the fork left it that touch a file the fork's commits touch."""
    own = {one.commit for one in everything}
    edge = sorted({parent for one in everything for parent in one.parents if parent not in own})
    first = {min(change) for change in changes.values() if change}
    if not edge or not first or not upstream:
        return []
    since = shared_ancestor(store, edge)
    try:
        return commits_touching(store, upstream, [since] if since else [], first)
    except GitFailure:
        # Upstream's files may not be here, as in a fork whose history is cut off.
        return []


@dataclass(frozen=True)
class Reduced:
    """A branch in a line, less what need not be in it."""

    line: Line
    upstream: dict[str, str]
    """Commits left out -> upstream's commit of the same change, which the base has."""
    pairs: tuple[tuple[str, str], ...]
    """Commits left out together with what took them back."""
    kept_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs that could not be left out, because what is between them builds on the first."""


def reduce_line(
    store: Store, lineariser: Lineariser, twins: Twins, in_base: Mapping[str, str], tip_tree: str
) -> Reduced:
    """Leave out what need not be there.

    Args:
        in_base: as ``twins.upstream``, those alone that the base contains.
        tip_tree: the branch's files.
    """
    paired = {commit for pair in (*twins.pairs, *twins.claimed) for commit in pair}
    upstream = {
        own: theirs
        for own, theirs in in_base.items()
        if theirs not in twins.undone and own not in paired and lineariser.in_base(own)
    }
    whole = lineariser.line(upstream)
    if not paired:
        return Reduced(whole, upstream, ())
    measure = _Measure(store, tip_tree, whole)
    chosen: list[tuple[str, str]] = [*twins.pairs, *twins.claimed]
    best = _without(lineariser, upstream, chosen)
    if not measure.as_good(best, exactly=bool(twins.claimed)):
        chosen, best = [], whole
        for pair in (*twins.pairs, *twins.claimed):
            tried = _without(lineariser, upstream, [*chosen, pair])
            if measure.as_good(tried, exactly=pair in twins.claimed):
                chosen, best = [*chosen, pair], tried
    kept = tuple(pair for pair in (*twins.pairs, *twins.claimed) if pair not in chosen)
    return Reduced(best, upstream, tuple(chosen), kept)


def _without(lineariser: Lineariser, upstream: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> Line:
    return lineariser.line({*upstream, *(commit for pair in pairs for commit in pair)})


class _Measure:
    """Whether a shorter line is as good as the whole one: no clash that was not there, nothing more left over."""

    def __init__(self, store: Store, tip_tree: str, whole: Line) -> None:
        self._store, self._tip, self._whole = store, tip_tree, whole
        self._left = set(changed_paths(store, whole.tree, tip_tree))

    def as_good(self, line: Line, *, exactly: bool) -> bool:
        if line.tree == self._whole.tree:
            return line.clashes <= self._whole.clashes
        if exactly or not line.clashes <= self._whole.clashes:
            return False
        return set(changed_paths(self._store, line.tree, self._tip)) <= self._left
