"""Three-way merges of trees and of single files, in the store: no work tree, no index of anybody's, no configuration.

``git merge-tree`` finds its own merge base, and only newer gits can be told one. So the three trees are made into
commits whose only common ancestor is the base; their ids depend on nothing but the trees.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from forkyard.errors import ToolchainError
from forkyard.gitstore.formats import Author, Entry
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.store import Store

MARKER_SIZE = 27
"""Characters of a conflict marker: a length that no underline in the engines' documents has (15, say, is one)."""
SIDES = ("upstream", "before", "patch")
"""What the sides of a conflict are called in its markers: the new base, what the patch was made on, the patch."""
_NOBODY = Author("Forkyard", "forkyard@users.noreply.invalid", "2000-01-01T00:00:00+00:00")
# `git merge-tree --write-tree` came with this one.
_FLOOR = "2.38"


@dataclass(frozen=True)
class Conflict:
    """One path that a merge could not decide."""

    path: str
    kind: str
    """git's word for it: ``contents``, ``modify/delete``, ``add/add``, ``binary``, ``rename/delete`` ..."""
    before: Entry | None
    """The file in the merge base; ``None`` where it is not there."""
    upstream: Entry | None
    patch: Entry | None
    message: str

    @property
    def textual(self) -> bool:
        """Whether both sides have the file and it can be merged line by line."""
        sides = (self.upstream, self.patch)
        return self.kind in ("contents", "add/add") and all(
            side is not None and side.mode in ("100644", "100755") for side in sides
        )


@dataclass(frozen=True)
class Merge:
    """The outcome of a three-way merge of trees."""

    tree: str
    """With conflicts: the merge as far as it goes; what stands at the conflicting paths is git's and means little."""
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()
    """What git said about renames and the like."""


def merge_trees(store: Store, before: str, upstream: str, patch: str) -> Merge:
    """Carry the change from tree ``before`` to tree ``patch`` over to tree ``upstream``; renames are followed.

    Raises:
        GitFailure: a tree or a file that must be looked into is not in the store.
        ToolchainError: git is too old.
    """
    if upstream == before:
        return Merge(patch)
    if patch in (before, upstream):
        return Merge(upstream)
    question = ("merge", before, upstream, patch)
    tree, conflicts, notes = store.answers.ask(question, lambda: _as_json(_merge(store, before, upstream, patch)))
    return Merge(tree, tuple(_conflict(one) for one in conflicts), tuple(notes))


def _as_json(merge: Merge) -> list[Any]:
    sides = [[one.before, one.upstream, one.patch] for one in merge.conflicts]
    words = [[one.path, one.kind, one.message] for one in merge.conflicts]
    found = [
        [*three, *(None if entry is None else [entry.mode, entry.kind, entry.oid, entry.path] for entry in entries)]
        for three, entries in zip(words, sides, strict=True)
    ]
    return [merge.tree, found, list(merge.notes)]


def _conflict(facts: Sequence[Any]) -> Conflict:
    path, kind, message, *sides = facts
    before, upstream, patch = (None if side is None else Entry(*side) for side in sides)
    return Conflict(path, kind, before, upstream, patch, message)


def _merge(store: Store, before: str, upstream: str, patch: str) -> Merge:
    base = store.commit(before, None, _NOBODY, b"before\n")
    ours = store.commit(upstream, base, _NOBODY, b"upstream\n")
    theirs = store.commit(patch, base, _NOBODY, b"patch\n")
    command = ["merge-tree", "--write-tree", "-z", "--messages", ours, theirs]
    config = {"merge.renames": "true", "merge.directoryRenames": "false", "merge.renameLimit": "3000"}
    status, output, problem = store._attempt(*command, config=config)
    if status == 1 and not _read(output, clean=False, sides={}).conflicts:
        # A conflict that is about no path must not pass for a clean merge.
        raise GitFailure(command, status, output.decode("utf-8", "replace").replace("\0", " "))
    if status not in (0, 1):
        if "usage" in problem or "unknown option" in problem or "not a git command" in problem:
            msg = f"this git cannot merge without a work tree: {_FLOOR} or newer is needed"
            raise ToolchainError(msg, why=problem.splitlines()[0], next_step="install a newer git")
        raise GitFailure(command, status, problem)
    return _read(output, clean=status == 0, sides={ours: SIDES[0], theirs: f"the {SIDES[2]}"})


def _read(output: bytes, *, clean: bool, sides: Mapping[str, str]) -> Merge:
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    tree, position = fields[0].strip(), 1
    stages: dict[str, dict[int, Entry]] = {}
    if not clean:
        while position < len(fields) and fields[position]:
            head, _, path = fields[position].partition("\t")
            mode, oid, stage = head.split(" ")
            stages.setdefault(path, {})[int(stage)] = Entry(mode, "blob", oid, path)
            position += 1
        position += 1
    elif position < len(fields) and not fields[position]:
        position += 1
    said: list[tuple[tuple[str, ...], str, str]] = []
    while position < len(fields) and fields[position].strip().isdigit():
        count = int(fields[position])
        paths = tuple(fields[position + 1 : position + 1 + count])
        kind, message = fields[position + 1 + count], fields[position + 2 + count]
        for commit, side in sides.items():
            # Nobody knows the commits we made for git's sake. A path they are part of is another thing.
            message = re.sub(rf"(?<!~){commit}", side, message)
        said.append((paths, kind, message.strip()))
        position += 3 + count
    conflicts = []
    for path, entries in sorted(stages.items()):
        about = [(kind, text) for paths, kind, text in said if path in paths and kind.startswith("CONFLICT")]
        kind, text = about[0] if about else ("CONFLICT (contents)", "")
        word = kind.partition("(")[2].partition(")")[0] or kind
        conflicts.append(Conflict(path, word, entries.get(1), entries.get(2), entries.get(3), text))
    notes = tuple(text for _, kind, text in said if kind != "Auto-merging" and not kind.startswith("CONFLICT"))
    return Merge(tree, tuple(conflicts), notes)


@dataclass(frozen=True)
class MergedText:
    """The outcome of a three-way merge of one file."""

    data: bytes
    """With markers of :data:`MARKER_SIZE` around each conflict, all three sides shown."""
    conflicts: int
    binary: bool = False


def merge_texts(
    store: Store,
    before: bytes,
    upstream: bytes,
    patch: bytes,
    *,
    favour: Literal["upstream", "patch"] | None = None,
) -> MergedText:
    """Merge one file line by line.

    Args:
        favour: where both sides changed the same lines take this one's, and leave no conflict.
    """
    # git's own test; it says nothing of it when it is told to be quiet about conflicts.
    if any(b"\0" in data[:8000] for data in (before, upstream, patch)):
        if before in (upstream, patch):
            return MergedText(patch if before == upstream else upstream, 0, binary=True)
        return MergedText(patch if favour == "patch" else upstream, 0 if favour else 1, binary=True)
    with tempfile.TemporaryDirectory(prefix="merge-", dir=store.path) as folder:
        names = []
        # git merges the first and the third into each other over the second.
        for name, data in (("upstream", upstream), ("before", before), ("patch", patch)):
            (Path(folder) / name).write_bytes(data)
            names.append(str(Path(folder) / name))
        labels = [word for side in SIDES for word in ("-L", side)]
        options = [{"upstream": "--ours", "patch": "--theirs", None: "--diff3"}[favour]]
        command = ["merge-file", "-p", "-q", *options, f"--marker-size={MARKER_SIZE}", *labels, *names]
        status, output, problem = store._attempt(*command)
    if status > 127 or status < 0:
        raise GitFailure(command[:1], status, problem)
    return MergedText(output, 0 if favour else status)


Standing = Literal["whole", "part", "none", "changed"]


def standing(store: Store, before: str, patch: str, tree: str) -> Standing:
    """How much of the change from tree ``before`` to tree ``patch`` another tree has: of its content, not by history.

    Returns:
        ``whole``: carrying the change over leaves nothing to do. ``none``: taking it back leaves nothing to do.
        ``part``: a piece of it is missing. ``changed``: nothing is plainly missing, but its lines became others.

    Raises:
        GitFailure: a tree or a file that must be looked into is not in the store.
    """
    there = merge_trees(store, before, tree, patch)
    if not there.conflicts and there.tree == tree:
        return "whole"
    back = merge_trees(store, patch, tree, before)
    if not back.conflicts and back.tree == tree:
        return "none"
    # Where both changed the same lines nobody can tell; what is left beside those lines is plainly missing.
    beside = edit_tree(store, there.tree, [(one.path, _beside(store, one)) for one in there.conflicts])
    return "changed" if beside == tree else "part"


def taken_back(store: Store, commit: str, tree: str) -> bool:
    """Whether a tree plainly lacks the change of a commit, or a piece of it; not if that cannot be told."""
    try:
        return standing(store, store.tree_of(f"{commit}^"), store.tree_of(commit), tree) in ("none", "part")
    except GitFailure:
        # A first commit, or one whose files are not here.
        return False


def _beside(store: Store, conflict: Conflict) -> Entry | None:
    """A conflicting file with what merges of the patch, and upstream's side of what does not."""
    here = replace(conflict.upstream, path=conflict.path) if conflict.upstream is not None else None
    if not conflict.textual or here is None:
        return here
    before, upstream, patch = (
        store._git("cat-file", "blob", entry.oid) if entry is not None else b""
        for entry in (conflict.before, conflict.upstream, conflict.patch)
    )
    merged = merge_texts(store, before, upstream, patch, favour="upstream")
    return replace(here, oid=store.write_blob(merged.data))


@dataclass(frozen=True)
class Hunk:
    """Lines of a file that became others; a start without lines is the line they come before."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int


def changed_lines(store: Store, old: bytes, new: bytes) -> list[Hunk]:
    """Which lines two versions of a file differ in, counted from 1."""
    with tempfile.TemporaryDirectory(prefix="diff-", dir=store.path) as folder:
        names = [str(Path(folder) / name) for name in ("old", "new")]
        for name, data in zip(names, (old, new), strict=True):
            Path(name).write_bytes(data)
        command = ["diff", "--no-index", "--text", "--unified=0", "--no-ext-diff", "--no-color", "--", *names]
        status, output, problem = store._attempt(*command, config={"diff.algorithm": "myers"})
    if status not in (0, 1):
        raise GitFailure(command[:2], status, problem)
    found = []
    for match in re.finditer(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", output, re.MULTILINE):
        counts = [1 if count is None else int(count) for count in (match[2], match[4])]
        # Of no lines, git names the one before.
        starts = [int(start) + (count == 0) for start, count in zip((match[1], match[3]), counts, strict=True)]
        found.append(Hunk(starts[0], counts[0], starts[1], counts[1]))
    return found


def has_markers(data: bytes) -> bool:
    """Whether a file still holds conflict markers as :func:`merge_texts` writes them."""
    marks = tuple(character * MARKER_SIZE for character in (b"<", b"|", b"=", b">"))
    return any(
        line.startswith(marks) and line[MARKER_SIZE : MARKER_SIZE + 1] in (b"", b" ", b"\r")
        for line in data.split(b"\n")
    )


def edit_tree(store: Store, tree: str, changes: Sequence[tuple[str, Entry | None]]) -> str:
    """Tree id of ``tree`` with some paths set to an entry's mode and content, or removed."""
    if not changes:
        return tree
    wanted = [[path, entry and (entry.mode, entry.oid)] for path, entry in changes]
    return str(store.answers.ask(("edit", tree, wanted), lambda: _edit(store, tree, changes)))


def _edit(store: Store, tree: str, changes: Sequence[tuple[str, Entry | None]]) -> str:
    lines = "".join(
        f"0 {'0' * 40}\t{path}\0" if entry is None else f"{entry.mode} {entry.oid}\t{path}\0" for path, entry in changes
    )
    with store.index(tree) as index:
        store._git("update-index", "-z", "--index-info", index=index, stdin=lines.encode("utf-8", "surrogateescape"))
        return store.write_index(index)
