"""The branch itself: a stack's patches, one commit each, carried over from home to the newest upstream commit."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forkyard.errors import PatchError, RecipeError, SourceError, UsageError
from forkyard.gitstore import Author, Store
from forkyard.gitstore.history import CommitFacts, is_ancestor
from forkyard.gitstore.merging import merge_trees, taken_back
from forkyard.gitstore.running import GitFailure
from forkyard.pullrequest.policy import branch_message
from forkyard.sources import Obtained
from forkyard.stacks.applying import AppliedPatch, apply_stacks, base_commit
from forkyard.stacks.combining import home_of
from forkyard.stacks.exporting import Exported, export_commits
from forkyard.stacks.model import Stack
from forkyard.stacks.retiring import parse_condition


@dataclass(frozen=True)
class Requirement:
    """A stack the prepared one needs, and what becomes of it."""

    stack: str
    merged: bool
    """Whether upstream has all of it by now; it is left out then."""
    why: str

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"stack": self.stack, "merged": self.merged, "why": self.why}


@dataclass(frozen=True)
class BranchCommit:
    """One commit of a branch."""

    stack: str
    patch: str
    subject: str
    """Of the patch as we keep it, for people here; the branch may not have it."""
    commit: str
    tree: str
    facts: CommitFacts
    """The commit as a build of ours has it: with the patch's own message."""
    retired: str | None
    """Why upstream seems to have it already; ``None`` if nothing says so."""
    whole_files: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "stack": self.stack,
            "patch": self.patch,
            "our_subject": self.subject,
            "commit": self.commit,
            "tree": self.tree,
            "retired": self.retired,
            "whole_files": list(self.whole_files),
        }


@dataclass(frozen=True)
class Prepared:
    """A branch in the object store."""

    family: str
    stack: str
    base: str
    """Upstream's commit, or one made from its tree where the source carried no commit."""
    adrift: bool
    """Whether ``base`` is not upstream's own commit."""
    base_tree: str
    commits: tuple[BranchCommit, ...]
    """Those of the stack; without any that upstream has."""
    beneath: tuple[BranchCommit, ...]
    """Those of the stacks it was asked to stand on."""
    empty: tuple[str, ...]
    """Patches that change nothing any more."""
    requirements: tuple[Requirement, ...]

    @property
    def below(self) -> str:
        """The commit the stack's own commits begin at."""
        return self.beneath[-1].commit if self.beneath else self.base

    @property
    def below_tree(self) -> str:
        """Its tree."""
        return self.beneath[-1].tree if self.beneath else self.base_tree

    @property
    def tip(self) -> str:
        """The last commit."""
        return self.commits[-1].commit

    @property
    def tree(self) -> str:
        """Its tree."""
        return self.commits[-1].tree

    @property
    def whole_files(self) -> frozenset[str]:
        """Paths of whole files of ours that the stack's commits add."""
        return frozenset(path for commit in self.commits for path in commit.whole_files)


def required_by(stack: Stack, family: str, known: dict[str, Stack]) -> list[Stack]:
    """The stacks a stack needs, directly or not, that have patches for the engine; in the order they apply."""
    wanted: dict[str, Stack] = {}
    todo = list(stack.about.requires)
    while todo:
        name = todo.pop()
        other = known.get(name)
        if other is None:
            msg = f"stack {stack.name!r} needs stack {name!r}, which is not there"
            raise RecipeError(msg, where=str(stack.folder / "stack.toml"))
        if name not in wanted:
            wanted[name] = other
            todo += other.about.requires
    chosen = [other for other in wanted.values() if family in other.about.engines and other.series(family).patches]
    return sorted(chosen, key=lambda other: (other.about.order, other.name))


def chosen_patches(stack: Stack, family: str, patches: Sequence[str]) -> list[str]:
    """File names of the patches asked for, in the order of the series; all of them for none.

    Raises:
        UsageError: a name is not in the series, or the stack has nothing for this engine.
    """
    names = [patch.name for patch in stack.series(family).patches]
    if not names:
        msg = f"stack {stack.name!r} has no patches for {family}"
        raise UsageError(msg, where=str(stack.folder), next_step=f"it is for {', '.join(stack.about.engines)}")
    if not patches:
        return names
    wanted = {name if name.endswith(".patch") else f"{name}.patch" for name in patches}
    for name in sorted(wanted - set(names)):
        near = difflib.get_close_matches(name, names, n=1)
        msg = f"{name} is not in the series of {stack.name}"
        raise UsageError(
            msg,
            where=str(stack.folder / family / "series"),
            why=f"it has {', '.join(names)}",
            next_step=f"did you mean {near[0]}?" if near else None,
        )
    return [name for name in names if name in wanted]


def prepare_branch(
    store: Store,
    family: str,
    home: Obtained,
    target: Obtained,
    stack: Stack,
    *,
    patches: Sequence[str],
    usual: Sequence[Stack],
    known: dict[str, Stack],
    on_top_of: Sequence[str],
    support: Sequence[str] = (),
) -> Prepared:
    """Make the commits of a branch.

    Args:
        home, target: where the patches are exact, and where they go; both in the store, whose lock is held.
        patches: names of patches; none for all.
        usual: the recipe's stacks, in order.
        known: every stack of the project by name.
        on_top_of: required stacks that are to be beneath the branch.
        support: stacks that are to be beneath it though it does not require them; those without patches for the engine
            are passed over.

    Raises:
        UsageError: it needs stacks that upstream does not have, or names lead nowhere.
        PatchError: a patch conflicts there, is not exact at home, or nothing is left of the stack.
        SourceError: the target is not there as a whole.
    """
    names = chosen_patches(stack, family, patches)
    _check_complete(store, target)
    required = required_by(stack, family, known)
    verdicts = [_requirement(store, family, target, other) for other in required]
    _check_requirements(stack, verdicts, on_top_of, required)
    base, adrift = target.commit, not store.has(target.commit, "commit")
    if adrift:
        base = base_commit(store, family, target.commit, target.date, target.tree)
    carrier = _Carrier(store, family, home, target, base, usual, known)
    beneath: list[BranchCommit] = []
    under = {name: known[name] for name in support}
    under |= {other.name: other for other in required if other.name in on_top_of}
    for other in sorted(under.values(), key=lambda other: (other.about.order, other.name)):
        if other.series(family).patches:
            beneath += carrier.carry(other, [patch.name for patch in other.series(family).patches])
    carrier.empty.clear()
    commits = carrier.carry(stack, names)
    if not commits:
        msg = f"nothing is left of {stack.name} on {target.commit[:12]}"
        raise PatchError(
            msg,
            why=f"{', '.join(carrier.empty)} change nothing there: upstream has them",
            next_step=f"run `forkyard rebase {family} --to {target.commit} --dry-run`: it says what can be retired",
        )
    return Prepared(
        family,
        stack.name,
        base,
        adrift,
        target.tree,
        tuple(commits),
        tuple(beneath),
        tuple(carrier.empty),
        tuple(verdicts),
    )


def _check_complete(store: Store, target: Obtained) -> None:
    missing = store.missing_blobs(target.tree)
    if missing:
        msg = f"the source that delivered {target.commit[:12]} lacks files of it, so no branch can be made from it"
        raise SourceError(
            msg,
            where=f"{target.kind}: {target.location}",
            why=f"{len(missing)} are missing, the first is {missing[0].path}",
            next_step="give a clone of upstream with --source PATH, or run it where upstream can be reached",
        )


def _check_requirements(
    stack: Stack, verdicts: Sequence[Requirement], on_top_of: Sequence[str], required: Sequence[Stack]
) -> None:
    names = [other.name for other in required]
    for name in on_top_of:
        if name not in names:
            msg = f"{stack.name} does not need stack {name!r}"
            raise UsageError(
                msg,
                why=f"it needs {', '.join(names) or 'none'} (of those with patches for this engine)",
                next_step="leave it out of --on-top-of: a pull request holds one feature",
            )
    missing = [one for one in verdicts if not one.merged and one.stack not in on_top_of]
    if missing:
        listed = ", ".join(one.stack for one in missing)
        msg = f"{stack.name} needs stacks that upstream does not have: {listed}"
        raise UsageError(
            msg,
            where=str(stack.folder / "stack.toml"),
            why="; ".join(f"{one.stack}: {one.why}" for one in missing),
            next_step=f"get {listed} merged first (a pull request holds one feature),"
            f" or prepare the branch on top of it with --on-top-of {','.join(one.stack for one in missing)}",
        )


def _requirement(store: Store, family: str, target: Obtained, stack: Stack) -> Requirement:
    """Whether upstream has all of a stack, by what its patches say."""
    for patch in stack.series(family).patches:
        _, message, _ = store.mail_info(patch.data)
        if retired(store, target, message.decode("utf-8", "replace"), str(patch.path)) is None:
            return Requirement(stack.name, False, f"nothing says that upstream has {patch.name}")
    return Requirement(stack.name, True, "the Retire-When or Upstream-Status of each of its patches says so")


def retired(store: Store, target: Obtained, message: str, where: str) -> str | None:
    """Why upstream seems to have a patch at the target; ``None`` if nothing says so.

    Where history is not known (a registry package carries single commits) an accepted commit proves nothing.
    """
    for line in message.splitlines():
        name, _, value = line.partition(": ")
        if name == "Upstream-Status" and value.startswith("Accepted "):
            commit = value.split()[1]
            if _reachable(store, commit, target):
                return f"Upstream-Status says Accepted {commit[:12]}"
        if name == "Retire-When":
            condition = parse_condition(value, where)
            holds = condition.holds(
                lambda path: store.read_file(target.tree, path),
                lambda commit: _reachable(store, commit, target),
            )
            if holds:
                return condition.describe()
    return None


def _reachable(store: Store, commit: str, target: Obtained) -> bool | None:
    """Whether upstream made a commit and did not take it back.

    ``None`` if it cannot be told: in a shallow store "no" only means that the way there is not known.
    """
    try:
        if not is_ancestor(store, commit, target.commit):
            return None
    except GitFailure:
        return None
    return not taken_back(store, commit, target.tree)


class _Carrier:
    """Carries patches over, each on top of what is there already."""

    def __init__(
        self,
        store: Store,
        family: str,
        home: Obtained,
        target: Obtained,
        base: str,
        usual: Sequence[Stack],
        known: dict[str, Stack],
    ) -> None:
        self._store, self._family, self._home, self._target = store, family, home, target
        self._usual, self._known = usual, known
        self._commit, self._tree = base, target.tree
        self._ours = base_commit(store, family, target.commit, target.date, target.tree)
        self.empty: list[str] = []

    def carry(self, stack: Stack, names: Sequence[str]) -> list[BranchCommit]:
        """Commit the named patches of a stack."""
        store, home = self._store, self._home
        before_stacks = home_of(stack, self._usual, [*required_by(stack, self._family, self._known), stack])
        patched = apply_stacks(store, self._family, home.commit, home.date, home.tree, [*before_stacks, stack])
        before = next((one.tree for one in reversed(patched.patches) if one.stack != stack.name), home.tree)
        made = []
        data = {patch.name: patch.data for patch in stack.series(self._family).patches}
        for patch in patched.patches:
            if patch.stack != stack.name:
                continue
            if patch.name in names:
                commit = self._one(stack, patch, before, data[patch.name])
                made += [commit] if commit else []
            before = patch.tree
        return made

    def _one(self, stack: Stack, patch: AppliedPatch, before: str, data: bytes) -> BranchCommit | None:
        store = self._store
        merge = merge_trees(store, before, self._tree, patch.tree)
        if merge.conflicts:
            first = merge.conflicts[0]
            others = len(merge.conflicts) - 1
            msg = f"{stack.name}/{patch.name} conflicts on {self._target.commit[:12]}"
            raise PatchError(
                msg,
                where=first.path + (f" and {others} more" if others else ""),
                why=first.message or first.kind,
                next_step=f"run `forkyard rebase {self._family} --to {self._target.commit} --stack {stack.name}` first;"
                " if the patch needs another one of the series, name that with --patches, too",
            )
        if merge.tree == self._tree:
            self.empty.append(patch.name)
            return None
        author, raw, _ = store.mail_info(data)
        message = raw.decode("utf-8", "surrogateescape")
        self._tree = merge.tree
        self._commit = self._made(self._commit, author, branch_message(self._family, patch.name, message))
        parent, self._ours = self._ours, self._made(self._ours, author, message)
        return BranchCommit(
            stack.name,
            patch.name,
            patch.subject,
            self._commit,
            merge.tree,
            CommitFacts(self._ours, merge.tree, (parent,), author, message),
            retired(store, self._target, message, patch.name),
            tuple(file.target for file in patch.trailers.adds_files),
        )

    def _made(self, parent: str, author: Author, message: str) -> str:
        return self._store.commit(self._tree, parent, author, message.encode("utf-8", "surrogateescape"))


def exported_series(store: Store, prepared: Prepared, target: Obtained) -> dict[str, Exported]:
    """The branch's commits as stacks a build can apply at the target: stack name -> its patches and whole files.

    Raises:
        PatchError: see :func:`forkyard.stacks.exporting.export_commits`.
    """
    parent = base_commit(store, prepared.family, target.commit, target.date, target.tree)
    found: dict[str, Exported] = {}
    commits = [*prepared.beneath, *prepared.commits]
    for name in dict.fromkeys(commit.stack for commit in commits):
        own = [commit for commit in commits if commit.stack == name]
        exported = export_commits(
            store, parent, [one.facts for one in own], [one.patch for one in own], whole_files=False
        )
        found[name] = exported
        parent = exported.patches[-1].commit
    return found
