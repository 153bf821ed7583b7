"""The pin's unpatched tree as a build sees it: what the recipe declares absent is not there."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import PurePosixPath

from forkyard.gitstore import Entry, Store
from forkyard.gitstore.contents import read_blobs
from forkyard.recipes import Recipe
from forkyard.sources import Obtained
from forkyard.trees import declared_absent


class PinTree:
    """Files of an obtained pin, their content read in batches."""

    def __init__(self, store: Store, recipe: Recipe, obtained: Obtained) -> None:
        self.store, self.recipe, self.obtained = store, recipe, obtained
        gone = {*declared_absent(recipe), *obtained.absent}
        entries = store.entries(obtained.tree)
        self.entries: dict[str, Entry] = {entry.path: entry for entry in entries if entry.path not in gone}
        self._content: dict[str, bytes] = {}

    def load(self, paths: Iterable[str]) -> None:
        """Read many files at once; later reads of them cost nothing."""
        wanted = {self.entries[path].oid for path in paths if path in self.entries}
        self._content.update(read_blobs(self.store, wanted - self._content.keys()))

    def read(self, path: str) -> bytes | None:
        """Content of a file, ``None`` where there is none of that name.

        Raises:
            LookupError: the file is there, but what it holds is not in the store.
        """
        entry = self.entries.get(path)
        if entry is None:
            return None
        if entry.oid not in self._content:
            self.load([path])
        return self._content[entry.oid]

    def named(self, name: str) -> list[str]:
        """Paths whose last part is ``name``."""
        return self._by_name.get(name, [])

    @functools.cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.entries:
            found.setdefault(PurePosixPath(path).name, []).append(path)
        return found
