"""Turning pin + series into commits: the same ids on every machine, and nothing applied that is not exact.

The chain starts at a parentless commit made from the pin's tree, not at upstream's own commit, so that a
partial source (which has the tree but no history) and a full clone give the same ids. After each patch the
commit is exported again and must be the patch file byte for byte. That one comparison refuses offsets, fuzz,
truncated hunks and files a patch forgot to declare.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from forkyard.errors import PatchError
from forkyard.gitstore import Author, GitFailure, Store
from forkyard.stacks.model import Patch, Stack, WholeFile
from forkyard.stacks.patchfile import Trailers, check_hunks, parse_trailers

_BASE_AUTHOR = "Forkyard"
_BASE_EMAIL = "forkyard@users.noreply.invalid"


@dataclass(frozen=True)
class AppliedPatch:
    """A patch that became a commit."""

    stack: str
    name: str
    sha256: str
    subject: str
    trailers: Trailers
    commit: str


@dataclass(frozen=True)
class PatchedTree:
    """The result of applying stacks to a pin."""

    base: str
    """Commit made from the pin's tree."""
    commit: str
    """Commit after the last patch."""
    tree: str
    patches: tuple[AppliedPatch, ...] = ()
    files: dict[str, tuple[WholeFile, ...]] = field(default_factory=dict)
    """Stack name -> whole files of ours its patches added, by path in the tree."""


def base_commit(store: Store, family: str, pin: str, date: str, tree: str) -> str:
    """The parentless commit every series of a pin starts at: a function of its arguments alone."""
    author = Author(_BASE_AUTHOR, _BASE_EMAIL, f"{date}T00:00:00+00:00")
    return store.commit(tree, None, author, f"{family} {pin}\n".encode())


def apply_stacks(store: Store, family: str, pin: str, date: str, tree: str, stacks: Sequence[Stack]) -> PatchedTree:
    """Apply every series in order.

    Raises:
        PatchError: a patch is malformed, does not apply, or applies anywhere but exactly where it says.
    """
    base = base_commit(store, family, pin, date, tree)
    commit, applied = base, list[AppliedPatch]()
    files: dict[str, tuple[WholeFile, ...]] = {}
    for stack in stacks:
        added: list[WholeFile] = []
        for patch in stack.series(family).patches:
            done, new = _apply(store, commit, stack, patch)
            commit = done.commit
            applied.append(done)
            added += new
        files[stack.name] = tuple(added)
    return PatchedTree(base, commit, store.tree_of(commit), tuple(applied), files)


def _apply(store: Store, parent: str, stack: Stack, patch: Patch) -> tuple[AppliedPatch, list[WholeFile]]:
    where = str(patch.path)
    author, message, diff = store.mail_info(patch.data)
    text = message.decode("utf-8", "replace")
    trailers = parse_trailers(text, where)
    check_hunks(diff, where)
    added: list[WholeFile] = []
    with store.index(store.tree_of(parent)) as index:
        if diff.strip():
            try:
                store.apply_diff(index, diff)
            except GitFailure as error:
                msg = f"{stack.name}/{patch.name} does not apply"
                raise PatchError(
                    msg,
                    where=where,
                    why=error.text.strip().replace("\n", "\n         "),
                    next_step="the stack was made for another base: rebase it, or take it out of the recipe",
                ) from error
        for file in trailers.adds_files:
            data = stack.whole_file(file.source)
            if store.index_has(index, file.target):
                msg = f"{stack.name}/{patch.name} would overwrite {file.target}"
                raise PatchError(
                    msg,
                    where=where,
                    why="the base has a file of that name",
                    next_step="choose another path in its Adds-Files trailer",
                )
            executable = bool((stack.src / file.source).stat().st_mode & 0o100)
            store.add_file(index, file.target, data, executable=executable)
            added.append(WholeFile(file.target, hashlib.sha256(data).hexdigest()))
        try:
            commit = store.commit(store.write_index(index), parent, author, message)
        except GitFailure as error:
            msg = f"{stack.name}/{patch.name} cannot be committed"
            raise PatchError(
                msg, where=where, why=error.text.strip(), next_step="look at its From and Date lines; export it again"
            ) from error
    exported = store.export(commit, exclude=[file.target for file in trailers.adds_files])
    if exported != patch.data:
        raise PatchError(
            f"{stack.name}/{patch.name} does not apply exactly where it says",
            where=where,
            why="exporting the applied patch gives other bytes; first difference:\n"
            + _first_difference(patch.data, exported),
            next_step="refresh the patch on this base: offsets, fuzz and hand-edited hunks are not accepted",
        )
    return AppliedPatch(stack.name, patch.name, patch.sha256, text.splitlines()[0], trailers, commit), added


def _first_difference(expected: bytes, got: bytes) -> str:
    lines = difflib.unified_diff(
        expected.decode("utf-8", "replace").splitlines(),
        got.decode("utf-8", "replace").splitlines(),
        "the file",
        "exported again",
        lineterm="",
        n=0,
    )
    return "\n".join("         " + line for line in list(lines)[:8])
