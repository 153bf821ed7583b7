"""Whether a patch is still wanted on a new base, with what speaks for it.

- ``merged``: nothing of it is left to do there. That upstream once made the same change is not enough.
- ``merged-modified``: its Retire-When holds there and did not before, or a person resolved it to nothing, or its tests
  pass without it.
- ``superseded``: its Retire-When names what replaced it.
- ``needed``: its tests fail without it.
- ``unknown``: nothing was found out; its tests were not run.

History says what upstream did, content says what is there: a verdict that a patch can go always needs the content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forkyard.errors import PatchError
from forkyard.gitstore import Store
from forkyard.gitstore.merging import Standing
from forkyard.stacks.retiring import Condition, parse_condition

MERGED, MODIFIED, SUPERSEDED, NEEDED, UNKNOWN = "merged", "merged-modified", "superseded", "needed", "unknown"
Reachable = Callable[[str], "bool | None"]


@dataclass(frozen=True)
class Verdict:
    """A verdict and its evidence, as sentences without a full stop."""

    word: str
    evidence: tuple[str, ...] = ()

    @property
    def retires(self) -> bool:
        """Whether it says that the patch can go."""
        return self.word in (MERGED, MODIFIED, SUPERSEDED)


@dataclass(frozen=True)
class Upstreamed:
    """That upstream made the same change."""

    commit: str
    reverted: str | None = None
    """A later commit, after which not all of it is there any more; ``None`` if there is none or it is not known."""
    standing: Standing = "whole"
    """How much of it is there now."""

    def describe(self) -> str:
        """What it says about the patch, as a sentence without a full stop."""
        same = f"upstream commit {self.commit} makes the same change (same patch id)"
        if self.standing == "whole":
            return same
        now = {
            "none": "it is not there now",
            "part": "not all of it is there now",
            "changed": "its lines are others now, so look whether what it gives is still there",
        }[self.standing]
        return f"{same}, but {now}" + (f": {self.reverted} took it back" if self.reverted else "")


def judge(
    store: Store,
    conditions: Sequence[str],
    old_tree: str,
    new_tree: str,
    *,
    empty: bool,
    resolved: bool,
    upstreamed: Upstreamed | None,
    reachable: Reachable,
    was_reachable: Reachable,
    taken_back: Callable[[str], bool] = lambda _commit: False,
    brought: Callable[[], str | None] = lambda: None,
) -> Verdict:
    """The verdict that needs no build.

    Args:
        conditions: the patch's Retire-When trailers.
        old_tree, new_tree: upstream's own trees, without any patch.
        empty: carrying the patch over left nothing to do.
        resolved: there were conflicts, which a person resolved.
        upstreamed: an upstream commit between the two that makes the same change.
        reachable, was_reachable: whether upstream's history contains a commit at the new and at the old base.
        taken_back: whether the new base plainly lacks what a commit in its history did.
        brought: the upstream commit since which nothing is left of the patch, as far as that is known.
    """
    evidence: list[str] = []
    if upstreamed is not None:
        evidence.append(upstreamed.describe())
    if empty and resolved:
        return Verdict(MODIFIED, (*evidence, "as its conflicts were resolved, nothing of it is left"))
    if empty:
        since = brought() if upstreamed is None else None
        all_there = "merging it into the new base changes nothing: all of it is there"
        return Verdict(MERGED, (*evidence, all_there + (f" since upstream commit {since}" if since else "")))
    for text in conditions:
        try:
            condition = parse_condition(text)
        except PatchError as error:
            evidence.append(f"its Retire-When cannot be read: {error.why}")
            continue
        now, before = _holds(store, condition, new_tree, reachable), _holds(store, condition, old_tree, was_reachable)
        if now and before:
            evidence.append(f"{condition.describe()}, but so it was on the old base: the condition tells nothing")
        elif now and condition.kind == "commit-reachable" and taken_back(condition.subject):
            evidence.append(f"{condition.describe()}, but what that commit did is not there now, or not all of it")
        elif now and condition.superseded_by:
            return Verdict(SUPERSEDED, (condition.describe(), "this was not so on the old base"))
        elif now:
            return Verdict(MODIFIED, (condition.describe(), "this was not so on the old base"))
        elif now is None:
            evidence.append(f"not known here whether {condition.describe()}")
        else:
            evidence.append(f"not so: {condition.describe()}")
    return Verdict(UNKNOWN, (*evidence, "its tests were not run without it"))


def _holds(store: Store, condition: Condition, tree: str, reachable: Reachable) -> bool | None:
    return condition.holds(lambda path: store.read_file(tree, path), reachable)
