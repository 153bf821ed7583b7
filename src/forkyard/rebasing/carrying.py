"""Carrying one change over to another tree: merge, look up known resolutions, and say exactly what is left.

When something is left, a *provisional* tree is given as well, with the patch's side wherever the two disagree. Later
patches are tried on it, so that one run tells about all of them and not only about the first that fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.merging import Conflict, edit_tree, has_markers, merge_texts, merge_trees
from forkyard.rebasing.regions import Region, both_added, identity, located
from forkyard.rebasing.resolutions import DELETED, EDITED, Resolution, Resolutions, structural_key

_SUBMODULE = "160000"


@dataclass(frozen=True)
class OpenConflict:
    """A conflict with everything a person or a record needs to resolve it."""

    conflict: Conflict
    key: str
    start: Entry | None
    """What stands at the path before it is resolved: the file with markers, or the patch's version, or nothing."""
    regions: tuple[Region, ...] = ()
    known: Resolution | None = None
    """The record that resolved it."""
    additive: bool = False
    """Both sides only added lines in the same places, and both are kept: upstream's, then the patch's."""

    @property
    def path(self) -> str:
        """Path in the new tree."""
        return self.conflict.path


@dataclass(frozen=True)
class Carried:
    """What became of one change."""

    tree: str
    """The new tree; provisional if there are open conflicts."""
    mark: Callable[[], str] = field(repr=False, compare=False)
    """Makes :attr:`marked`, which is of use for few of many conflicts."""
    conflicts: tuple[OpenConflict, ...] = ()
    """All there were, resolved ones too."""
    empty: bool = False
    """Nothing of the change is left to do: the new tree is what was there."""
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def marked(self) -> str:
        """What a person starts from: records applied, open conflicts with markers; the new tree if there are none."""
        return self.mark()

    @property
    def open(self) -> tuple[OpenConflict, ...]:
        """Those that nothing resolves."""
        return tuple(one for one in self.conflicts if one.known is None and not one.additive)

    @property
    def status(self) -> str:
        """``clean``, ``resolved`` (from records), ``conflict``."""
        if self.open:
            return "conflict"
        return "resolved" if self.conflicts else "clean"


def carry(
    store: Store,
    before: str,
    upstream: str,
    patch: str,
    resolutions: Resolutions | None = None,
    *,
    additive: bool = False,
) -> Carried:
    """Carry the change from tree ``before`` to tree ``patch`` over to tree ``upstream``.

    Args:
        additive: where both sides only added lines to a file in the same places, keep both, upstream's first.

    Raises:
        GitFailure: an object that is needed is not in the store.
    """
    merge = merge_trees(store, before, upstream, patch)
    if not merge.conflicts:
        return Carried(merge.tree, lambda: merge.tree, empty=merge.tree == upstream, notes=merge.notes)
    found, starts, texts = [], list[tuple[str, Entry | None]](), dict[str, Entry | None]()
    for conflict in merge.conflicts:
        one, provisional = _look_into(store, conflict)
        texts[conflict.path] = provisional
        starts.append((conflict.path, one.start))
        # Two sides may agree line by line where trees did not, as after a rename.
        if one.regions or not one.conflict.textual:
            found.append(one)
    known = resolutions or Resolutions()
    ground, settled = merge.tree, list[OpenConflict]()
    for one in found:
        for resolution in known.candidates(one.key, one.path):
            if starts:
                # Records are made from the files with their markers.
                ground, starts = edit_tree(store, ground, starts), []
            after = _apply(store, ground, one, resolution)
            if after is not None:
                ground, one = after, replace(one, known=resolution)
                break
        if additive and one.known is None and (both := _both(store, one)) is not None:
            one = replace(one, additive=True)
            if starts:
                ground, starts = edit_tree(store, ground, starts), []
            ground = edit_tree(store, ground, [(one.path, both)])
        settled.append(one)
    left = [(one.path, texts[one.path]) for one in settled if one.known is None and not one.additive]
    tree = edit_tree(store, ground, list({**dict(starts), **dict(left)}.items()))
    empty = not left and tree == upstream
    return Carried(tree, partial(edit_tree, store, ground, starts), tuple(settled), empty=empty, notes=merge.notes)


def _look_into(store: Store, conflict: Conflict) -> tuple[OpenConflict, Entry | None]:
    """The conflict with its markers, and what a provisional tree holds at its path."""
    sides = [one and (one.mode, one.oid) for one in (conflict.before, conflict.upstream, conflict.patch)]
    question = ("conflict", conflict.path, conflict.kind, *sides)
    kind, key, *entries, found = store.answers.ask(question, lambda: _as_json(*_look_at(store, conflict)))
    start, provisional = (None if one is None else Entry(*one) for one in entries)
    # Any byte is a character of Latin-1.
    regions = tuple(Region(line, *(text.encode("latin-1") for text in texts)) for line, *texts in found)
    return OpenConflict(replace(conflict, kind=kind), key, start, regions), provisional


def _as_json(one: OpenConflict, provisional: Entry | None) -> list[Any]:
    entries = (None if entry is None else [*astuple(entry)] for entry in (one.start, provisional))
    regions = [
        [region.line, *(side.decode("latin-1") for side in (region.upstream, region.before, region.patch))]
        for region in one.regions
    ]
    return [one.conflict.kind, one.key, *entries, regions]


def _look_at(store: Store, conflict: Conflict) -> tuple[OpenConflict, Entry | None]:
    if not conflict.textual:
        start = conflict.patch or conflict.upstream
        # Deleted upstream and changed by the patch, or the other way round: deleted, for the time being.
        provisional = conflict.patch if conflict.upstream is not None and conflict.patch is not None else None
        return OpenConflict(conflict, structural_key(conflict), _at(start, conflict.path)), _at(
            provisional, conflict.path
        )
    assert conflict.upstream is not None
    assert conflict.patch is not None
    before, upstream, patch = (
        store._git("cat-file", "blob", entry.oid) if entry is not None and entry.mode != _SUBMODULE else b""
        for entry in (conflict.before, conflict.upstream, conflict.patch)
    )
    mode = conflict.patch.mode
    if conflict.before is not None and conflict.patch.mode == conflict.before.mode:
        mode = conflict.upstream.mode
    marked = merge_texts(store, before, upstream, patch)
    if marked.binary:
        entry = Entry(mode, "blob", conflict.patch.oid, conflict.path)
        return OpenConflict(replace(conflict, kind="binary"), structural_key(conflict), entry), entry
    found = tuple(located(store, marked.data, upstream))
    start = _entry(store, mode, marked.data, conflict.path)
    favoured = merge_texts(store, before, upstream, patch, favour="patch")
    return OpenConflict(conflict, identity(found), start, found), _entry(store, mode, favoured.data, conflict.path)


def _both(store: Store, one: OpenConflict) -> Entry | None:
    """A conflicting file with the lines of both sides; ``None`` where either did more than add some.

    A file that both sides made anew is none of these: one after the other they are seldom a file.
    """
    upstream, patch = one.conflict.upstream, one.conflict.patch
    if one.start is None or None in (one.conflict.before, upstream, patch) or not one.regions:
        return None
    assert upstream is not None
    assert patch is not None
    # Between markers every line has an end, in the files the last one need not.
    if not all(store._git("cat-file", "blob", entry.oid).endswith(b"\n") for entry in (upstream, patch)):
        return None
    joined = both_added(store._git("cat-file", "blob", one.start.oid))
    return None if joined is None else replace(one.start, oid=store.write_blob(joined))


def _at(entry: Entry | None, path: str) -> Entry | None:
    return replace(entry, path=path) if entry is not None else None


def _entry(store: Store, mode: str, data: bytes, path: str) -> Entry:
    return Entry(mode, "blob", store.write_blob(data), path)


def _apply(store: Store, tree: str, one: OpenConflict, resolution: Resolution) -> str | None:
    """The tree with a recorded resolution, or ``None`` if the record does not fit after all."""
    diff = _at_path(resolution.diff, resolution.path, one.path)
    if resolution.result == DELETED:
        tree = edit_tree(store, tree, [(one.path, None)])
    with store.index(tree) as index:
        if diff.strip():
            try:
                store.apply_diff(index, diff)
            except GitFailure:
                return None
        after = store.write_index(index)
    data = store.read_file(after, one.path)
    if one.regions and data is not None and has_markers(data):
        return None
    return after


def _at_path(diff: bytes, old: str, new: str) -> bytes:
    """A recorded diff for a file that has another path by now."""
    if old == new:
        return diff
    was, now = re.escape(old.encode()), new.encode()
    return re.sub(
        rb"^(diff --git a/)" + was + rb"( b/)" + was + rb"$|^((?:---|\+\+\+) [ab]/)" + was + rb"(\t?)$",
        lambda match: match[1] + now + match[2] + now if match[1] else match[3] + now + match[4],
        diff,
        flags=re.MULTILINE,
    )


def resolution_of(
    store: Store, carried: Carried, resolved: str, patch: str, old: str, new: str
) -> tuple[list[Resolution], list[str]]:
    """Records of how a person resolved the open conflicts of a change.

    Args:
        resolved: the tree as the person left it.
        patch, old, new: what to say in the records: patch name and the upstream commits.

    Returns:
        the records, and the paths that still hold conflict markers (there are then no records).
    """
    left = []
    for one in carried.open:
        data = store.read_file(resolved, one.path)
        if data is not None and has_markers(data):
            left.append(one.path)
    if left:
        return [], left
    # What a record resolved already is in the start as well: it is not the person's doing.
    start = carried.marked
    paths = [one.path for one in carried.open]
    records = []
    for number, one in enumerate(carried.open):
        # A deleted file says it in a word; its diff would be all of upstream's text.
        deleted = store.read_file(resolved, one.path) is None
        diff = b"" if deleted else store.diff(start, resolved, only=[one.path])
        if number == 0:
            # What else had to change goes with the first, and only as a whole.
            diff += store.diff(start, resolved, exclude=paths)
        result = DELETED if deleted else EDITED
        records.append(Resolution(one.key, one.path, one.conflict.kind, patch, old, new, result, diff))
    return records, []
