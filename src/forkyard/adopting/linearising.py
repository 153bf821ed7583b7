"""Putting a branch with merges into one line: each commit that is no merge is carried onto those before it.

The line starts at the upstream state the branch contains. A commit that does not go onto it as it is keeps its own side
where the two disagree, which is remembered; what merges decided otherwise is left over at the end, and is what the
branch's real files differ in from the line's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from forkyard.adopting.mailing import EMPTY_TREE
from forkyard.errors import SourceError
from forkyard.gitstore import Entry, GitFailure, Store
from forkyard.gitstore.forks import cut_off, trees_of
from forkyard.gitstore.history import CommitFacts, commits
from forkyard.gitstore.merging import standing
from forkyard.rebasing.carrying import Carried, carry


@dataclass(frozen=True)
class Clash:
    """Where a change and what it is carried onto disagree."""

    path: str
    kind: str
    """git's word for it."""
    hunks: tuple[str, ...] = ()
    """Lines of what it is carried onto, as ``12-15``; none where it is not about lines."""
    message: str = ""


@dataclass(frozen=True)
class Placed:
    """A change on another tree."""

    tree: str
    """With the change's own side wherever there is a clash."""
    clashes: tuple[Clash, ...] = ()


def place(store: Store, before: str, onto: str, after: str) -> Placed:
    """Carry the change from tree ``before`` to tree ``after`` over to tree ``onto``, whatever it takes.

    Raises:
        GitFailure: a tree is not in the store.
    """
    if before == after:
        return Placed(onto)
    try:
        carried = carry(store, before, onto, after)
    except GitFailure as error:
        # A file where the other has a folder, or content that no source delivered.
        tree, paths = _overwrite(store, before, onto, after)
        last = (error.text.strip().splitlines() or [""])[-1]
        return Placed(tree, tuple(Clash(path, "not mergeable", message=last) for path in paths))
    return Placed(carried.tree, _clashes(carried))


def _clashes(carried: Carried) -> tuple[Clash, ...]:
    return tuple(
        Clash(one.path, one.conflict.kind, tuple(region.span for region in one.regions), one.conflict.message)
        for one in carried.open
    )


def _overwrite(store: Store, before: str, onto: str, after: str) -> tuple[str, list[str]]:
    """``onto`` with every path that differs between the other two as it is in ``after``, and those paths."""
    old, new = ({entry.path: entry for entry in store.entries(tree)} for tree in (before, after))
    files: dict[str, Entry] = {entry.path: entry for entry in store.entries(onto)}
    changed = sorted(path for path in old.keys() | new.keys() if _facts(old.get(path)) != _facts(new.get(path)))
    for path in changed:
        files.pop(path, None)
    for path in changed:
        if path in new:
            parts = path.split("/")
            for end in range(1, len(parts)):
                files.pop("/".join(parts[:end]), None)
            for below in [name for name in files if name.startswith(f"{path}/") and name not in new]:
                del files[below]
            files[path] = new[path]
    return store.write_tree(files.values()), changed


def _facts(entry: Entry | None) -> tuple[str, str] | None:
    return (entry.mode, entry.oid) if entry is not None else None


@dataclass(frozen=True)
class OwnCommits:
    """What a branch has beyond its base."""

    plain: tuple[CommitFacts, ...]
    """Commits that are no merges, parents before children."""
    merges: tuple[CommitFacts, ...]
    before: dict[str, str]
    """Tree each plain commit was made on."""


def own_commits(store: Store, tip: str, base: str) -> OwnCommits:
    """The commits of a branch that its base does not have.

    Raises:
        SourceError: history is cut off in the middle of them.
    """
    found = commits(store, tip, f"^{base}")
    cut = cut_off(store)
    for one in found:
        if one.commit in cut:
            msg = "the fork's history is cut off before it reaches what it is made on"
            raise SourceError(
                msg,
                where=f"commit {one.commit[:12]} {one.subject!r}",
                why="it is a shallow clone",
                next_step="run `git fetch --unshallow` in it, or give a full clone or its URL",
            )
    plain = tuple(one for one in found if len(one.parents) < 2)
    trees = trees_of(store, [one.parents[0] for one in plain if one.parents])
    before = {one.commit: trees[one.parents[0]] if one.parents else EMPTY_TREE for one in plain}
    return OwnCommits(plain, tuple(one for one in found if len(one.parents) > 1), before)


@dataclass(frozen=True)
class Link:
    """One commit in the line."""

    commit: CommitFacts
    tree: str
    """After it, in the line."""
    clashes: tuple[Clash, ...] = ()


@dataclass(frozen=True)
class Line:
    """Commits in a line."""

    links: tuple[Link, ...]
    empty: tuple[Link, ...]
    """Those that change nothing there; one with a clash wanted to."""
    tree: str
    """After the last one."""

    @property
    def clashes(self) -> set[tuple[str, str]]:
        """Commit and path of each."""
        return {(link.commit.commit, clash.path) for link in self.links for clash in link.clashes}


class Lineariser:
    """Makes lines of one branch's commits; what was merged once is not merged again."""

    def __init__(self, store: Store, base_tree: str, own: OwnCommits) -> None:
        self._store, self._base, self._own = store, base_tree, own
        self._known: dict[tuple[str, str, str], Placed] = {}

    def in_base(self, commit: str) -> bool:
        """Whether the base has what a plain commit did, or went on from there; it may have taken it back."""
        own = next(one for one in self._own.plain if one.commit == commit)
        return standing(self._store, self._own.before[commit], own.tree, self._base) in ("whole", "changed")

    def line(
        self, left_out: Collection[str] = (), progress: Callable[[int, int | None, str], None] | None = None
    ) -> Line:
        """All commits in a line, less some."""
        tree, links, empty = self._base, list[Link](), list[Link]()
        chosen: Sequence[CommitFacts] = [one for one in self._own.plain if one.commit not in left_out]
        for number, one in enumerate(chosen):
            if progress is not None:
                progress(number, len(chosen), one.subject[:40])
            key = (self._own.before[one.commit], tree, one.tree)
            if key not in self._known:
                self._known[key] = place(self._store, *key)
            placed = self._known[key]
            (empty if placed.tree == tree else links).append(Link(one, placed.tree, placed.clashes))
            tree = placed.tree
        return Line(tuple(links), tuple(empty), tree)
