"""Whether a patch is still wanted on a new base, with what speaks for it.

- ``merged``: nothing of it is left to do there, or upstream made the same change and did not take it back.
- ``merged-modified``: its Retire-When holds there and did not before, or a person resolved it to nothing, or its tests
  pass without it.
- ``superseded``: its Retire-When names what replaced it.
- ``needed``: its tests fail without it.
- ``unknown``: nothing was found out; its tests were not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forkyard.errors import PatchError
from forkyard.gitstore import Store
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
    """A later commit that undid it."""


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
) -> Verdict:
    """The verdict that needs no build.

    Args:
        conditions: the patch's Retire-When trailers.
        old_tree, new_tree: upstream's own trees, without any patch.
        empty: carrying the patch over left nothing to do.
        resolved: there were conflicts, which a person resolved.
        upstreamed: an upstream commit between the two that makes the same change.
        reachable, was_reachable: whether upstream's history contains a commit at the new and at the old base.
    """
    evidence: list[str] = []
    if upstreamed is not None:
        same = f"upstream commit {upstreamed.commit} makes the same change (same patch id)"
        if upstreamed.reverted is None:
            return Verdict(MERGED, (same,))
        evidence.append(f"{same}, but {upstreamed.reverted} took it back")
    if empty and resolved:
        return Verdict(MODIFIED, ("as its conflicts were resolved, nothing of it is left",))
    if empty:
        return Verdict(MERGED, ("merging it into the new base changes nothing: all of it is there",))
    for text in conditions:
        try:
            condition = parse_condition(text)
        except PatchError as error:
            evidence.append(f"its Retire-When cannot be read: {error.why}")
            continue
        now, before = _holds(store, condition, new_tree, reachable), _holds(store, condition, old_tree, was_reachable)
        if now and before:
            evidence.append(f"{condition.describe()}, but so it was on the old base: the condition tells nothing")
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
