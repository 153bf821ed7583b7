"""Folding later edits of whole files of ours into the commit that adds them, so that a patch holds hooks alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forkyard.gitstore import Entry, Store
from forkyard.gitstore.history import CommitFacts
from forkyard.gitstore.merging import edit_tree
from forkyard.gitstore.patching import entries_at, steps

_FILES = ("100644", "100755")


def fold(store: Store, base_tree: str, commits: Sequence[CommitFacts]) -> tuple[list[CommitFacts], list[str]]:
    """Give every file a commit adds the content it has after the last one, from there on.

    A file that a later commit removes or moves keeps its history. A commit that did nothing but edit such files
    disappears.

    Returns:
        the commits, of which those that changed have no id yet but the old one's; and notes for people.
    """
    trees = [base_tree, *(one.tree for one in commits)]
    taken = steps(store, trees)
    begins = {entry.path: number for number, step in enumerate(taken) for entry in step.added if entry.mode in _FILES}
    listings = [entries_at(store, tree, sorted(begins)) for tree in trees[1:]]
    last = listings[-1] if listings else {}
    final: dict[str, Entry] = {
        path: last[path]
        for path, number in begins.items()
        if all(path in listing and listing[path].mode in _FILES for listing in listings[number:])
    }
    kept: list[CommitFacts] = []
    notes: list[str] = []
    before_old = before_new = base_tree
    for number, one in enumerate(commits):
        changes = [
            (path, entry)
            for path, entry in final.items()
            if begins[path] <= number and listings[number].get(path) != entry
        ]
        tree = edit_tree(store, one.tree, changes)
        for path, _ in changes:
            if begins[path] == number:
                notes.append(f"{path} has its last content from {one.subject!r} on")
        if tree == before_new and one.tree != before_old:
            notes.append(f"{one.subject!r} only edited whole files and is gone; so is its message")
        else:
            kept.append(replace(one, tree=tree))
        before_old, before_new = one.tree, tree
    return kept, notes
