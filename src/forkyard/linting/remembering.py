"""What clang-format said of the same bytes before: asking it again is most of a lint's time.

One file an engine, in the cache. It may be deleted, damaged or written by two runs at once: then it is asked again.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from forkyard.cache import write_atomic
from forkyard.errors import StorageError

Answer = list[tuple[int, list[str]]]
"""For each change clang-format would make: the line it starts at, and the lines it would write."""
MOST = 4000
"""Answers kept; those of the last run stay longest."""


class Memory:
    """Answers by a digest of everything they depend on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._old: dict[str, Any] = {}
        self._used: dict[str, Answer] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(path.read_bytes())
            self._old = found if isinstance(found, dict) else {}

    def get(self, key: str) -> Answer | None:
        """The answer of an earlier run."""
        try:
            answer = [(int(place), [str(line) for line in lines]) for place, lines in self._old[key]]
        except (KeyError, TypeError, ValueError):
            return None
        self._used[key] = answer
        return answer

    def put(self, key: str, answer: Answer) -> None:
        """Remember an answer."""
        self._used[key] = answer

    def save(self) -> None:
        """Write the file, if there is something new. That it cannot be written is no reason for a lint to fail."""
        if self._used.keys() <= self._old.keys():
            return
        older = {key: answer for key, answer in self._old.items() if key not in self._used}
        kept = dict(list({**self._used, **older}.items())[:MOST])
        with contextlib.suppress(StorageError, OSError):
            write_atomic(self._path, json.dumps(kept).encode())
