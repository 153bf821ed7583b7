"""Turning pin + series into commits: the same ids on every machine, and nothing applied that is not exact.

The chain starts at a parentless commit made from the pin's tree, not at upstream's own commit, so that a
partial source (which has the tree but no history) and a full clone give the same ids. Every commit is exported
again and must be the patch file byte for byte. That one comparison refuses offsets, fuzz, truncated hunks and
files a patch forgot to declare.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forkyard.errors import PatchError
from forkyard.gitstore import Author, GitFailure, Store
from forkyard.stacks.model import Patch, Stack, WholeFile
from forkyard.stacks.patchfile import AddedFile, Trailers, check_form, check_hunks, parse_trailers

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
    tree: str = ""
    """Tree of that commit."""


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


def patched_tree(facts: Mapping[str, Any]) -> PatchedTree:
    """A result as ``asdict`` takes it apart, put together again."""
    patches = []
    for one in facts["patches"]:
        trailers = one["trailers"]
        added = tuple(AddedFile(**file) for file in trailers["adds_files"])
        said = Trailers(trailers["upstream_status"], tuple(trailers["retire_when"]), added)
        patches.append(AppliedPatch(**{**one, "trailers": said}))
    files = {name: tuple(WholeFile(**file) for file in found) for name, found in facts["files"].items()}
    return PatchedTree(facts["base"], facts["commit"], facts["tree"], tuple(patches), files)


def base_commit(store: Store, engine: str, pin: str, date: str, tree: str) -> str:
    """The parentless commit every series of a pin starts at: a function of its arguments alone."""
    author = Author(_BASE_AUTHOR, _BASE_EMAIL, f"{date}T00:00:00+00:00")
    return store.commit(tree, None, author, f"{engine} {pin}\n".encode())


def apply_stacks(store: Store, engine: str, pin: str, date: str, tree: str, stacks: Sequence[Stack]) -> PatchedTree:
    """Apply every series in order.

    Raises:
        PatchError: a patch is malformed, does not apply, or applies anywhere but exactly where it says.
    """
    base = base_commit(store, engine, pin, date, tree)
    applied: list[AppliedPatch] = []
    files: dict[str, tuple[WholeFile, ...]] = {}
    with Chain.on(store, base, tree) as chain:
        for stack in stacks:
            added: list[WholeFile] = []
            for patch in stack.series(engine).patches:
                done, new = chain.add_patch(stack, patch)
                applied.append(done)
                added += new
            files[stack.name] = tuple(added)
        chain.check_exports()
        return PatchedTree(base, chain.commit, chain.tree, tuple(applied), files)


def read_mail(store: Store, data: bytes, label: str, where: str) -> tuple[Author, bytes, bytes]:
    """Author, message and diff of a patch of a series.

    Raises:
        PatchError: it is none; names the file.
    """
    check_form(data, where)
    try:
        return store.mail_info(data)
    except PatchError as error:
        msg = f"{label} is {error.what}"
        step = "put it back from git, or export it again: `forkyard stack export`"
        raise PatchError(msg, where=where, why=error.why, next_step=step) from error


@dataclass(frozen=True)
class _Link:
    """A commit of the chain, with what its export must be."""

    label: str
    where: str
    data: bytes
    parent: str
    commit: str
    whole: tuple[str, ...]
    """Paths of whole files of ours, which its patch does not hold."""


class Chain:
    """Commits made from patches one after the other, on one private index; made by :meth:`on`."""

    def __init__(self, store: Store, commit: str, tree: str, index: Path) -> None:
        self._store, self._index = store, index
        self._links: list[_Link] = []
        self._indexed = tree
        """The tree the index holds: it stays behind while results are known already."""
        self.commit, self.tree = commit, tree

    @classmethod
    @contextmanager
    def on(cls, store: Store, commit: str, tree: str) -> Iterator[Chain]:
        """A chain that starts at ``commit``, for the length of the block."""
        with store.index(tree) as index:
            yield cls(store, commit, tree, index)

    def add_patch(self, stack: Stack, patch: Patch) -> tuple[AppliedPatch, list[WholeFile]]:
        """Apply a patch of a stack. That it was exact is known only after :meth:`check_exports`.

        Raises:
            PatchError: it is malformed or does not apply, or an earlier one was not exact.
        """
        label = f"{stack.name}/{patch.name}"

        def whole(source: str) -> tuple[bytes, bool]:
            return stack.whole_file(source), bool((stack.src / source).stat().st_mode & 0o100)

        try:
            text, trailers, added = self.add(patch.data, label=label, where=str(patch.path), whole_file=whole)
        except PatchError:
            # The cause may be a patch before, applied at another place than it says.
            self.check_exports()
            raise
        subject = text.splitlines()[0]
        done = AppliedPatch(stack.name, patch.name, patch.sha256, subject, trailers, self.commit, self.tree)
        return done, added

    def add(
        self, data: bytes, *, label: str, where: str, whole_file: Callable[[str], tuple[bytes, bool]]
    ) -> tuple[str, Trailers, list[WholeFile]]:
        """Apply one patch file.

        Args:
            whole_file: content of a whole file of ours, and whether it is executable, by its path in ``src``.

        Returns:
            the commit message, its trailers, and the whole files added, by path in the tree.

        Raises:
            PatchError: it is malformed or does not apply.
        """
        store, parent = self._store, self.commit
        author, message, diff = read_mail(store, data, label, where)
        text = message.decode("utf-8", "replace")
        trailers = parse_trailers(text, where)
        check_hunks(diff, where)
        files = [(file, *whole_file(file.source)) for file in trailers.adds_files]
        added = [WholeFile(file.target, hashlib.sha256(content).hexdigest()) for file, content, _ in files]
        modes = tuple(executable for _, _, executable in files)
        key = (self.tree, hashlib.sha256(diff).digest(), tuple(added), modes)
        known = store.applied.get(key)
        if known is None:
            known = store.applied[key] = self._apply(label, where, diff, files)
        try:
            commit = store.commit(known, parent, author, message)
        except GitFailure as error:
            msg = f"{label} cannot be committed"
            raise PatchError(
                msg, where=where, why=error.text.strip(), next_step="look at its From and Date lines; export it again"
            ) from error
        self.commit, self.tree = commit, known
        whole = tuple(file.target for file in trailers.adds_files)
        self._links.append(_Link(label, where, data, parent, commit, whole))
        return text, trailers, added

    def _apply(self, label: str, where: str, diff: bytes, files: Sequence[tuple[AddedFile, bytes, bool]]) -> str:
        """Tree id of the present tree with a diff and whole files."""
        store = self._store
        if self._indexed != self.tree:
            store.read_tree(self._index, self.tree)
        # Whatever goes wrong below, the index is no tree's any more.
        self._indexed = ""
        if diff.strip():
            try:
                store.apply_diff(self._index, diff)
            except GitFailure as error:
                msg = f"{label} does not apply"
                raise PatchError(
                    msg,
                    where=where,
                    why=error.text.strip().replace("\n", "\n         "),
                    next_step="the stack was made for another base: rebase it, or take it out of the recipe",
                ) from error
        for file, content, executable in files:
            if store.index_has(self._index, file.target):
                msg = f"{label} would overwrite {file.target}"
                raise PatchError(
                    msg,
                    where=where,
                    why="the base has a file of that name",
                    next_step="choose another path in its Adds-Files trailer",
                )
            store.add_file(self._index, file.target, content, executable=executable)
        try:
            self._indexed = store.write_index(self._index)
        except GitFailure as error:
            msg = f"{label} cannot be committed"
            raise PatchError(msg, where=where, why=error.text.strip(), next_step="export it again") from error
        return self._indexed

    def check_exports(self) -> None:
        """Export every commit again and compare it with its patch, byte for byte.

        Raises:
            PatchError: one differs; shows the first lines.
        """
        links, self._links = self._links, []
        for link, exported in zip(links, _exports(self._store, links), strict=True):
            if exported != link.data:
                raise PatchError(
                    f"{link.label} does not apply exactly where it says",
                    where=link.where,
                    why="exporting the applied patch gives other bytes; first difference:\n"
                    + _first_difference(link.data, exported),
                    next_step="refresh the patch on this base: offsets, fuzz and hand-edited hunks are not accepted",
                )


def _exports(store: Store, links: Sequence[_Link]) -> Iterator[bytes]:
    """Export each commit; those without whole files of ours many at a time."""
    start = 0
    while start < len(links):
        end = start
        while end < len(links) and not links[end].whole:
            end += 1
        if end > start:
            yield from store.export_range(links[start].parent, links[end - 1].commit)
            start = end
        else:
            yield store.export(links[start].commit, exclude=links[start].whole)
            start += 1


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
