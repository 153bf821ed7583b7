"""What was worked out once about a store's objects, kept for the next run of the same long task.

A question holds everything its answer depends on: ids of objects and digests. So an answer never goes stale. It can
only speak of objects that are gone, and that is looked at before any answer is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forkyard import __version__
from forkyard.cache import write_atomic

_SCHEMA = 1
_OID = re.compile(r'"([0-9a-f]{40})"')


class Answers:
    """Answers by question; both are plain JSON."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def ask(self, question: tuple[Any, ...], work_out: Callable[[], Any]) -> Any:
        """The answer to a question, worked out if it is not known.

        Args:
            question: a word for what is asked, and all that the answer depends on.
            work_out: must return what JSON can hold, with lists for tuples.
        """
        key = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        if key not in self._known:
            self._known[key] = work_out()
        return self._known[key]

    def save(self, path: Path, git: str) -> None:
        """Write all of them to a file.

        Args:
            git: what ``git --version`` says; another git may answer otherwise.

        Raises:
            StorageError: no space or permission.
        """
        write_atomic(path, json.dumps({**_head(git), "answers": self._known}).encode())

    def load(self, path: Path, git: str, are_there: Callable[[set[str]], bool]) -> bool:
        """Know what a file holds, unless something it speaks of is gone or somebody else's program wrote it.

        Args:
            are_there: whether the store has all of some objects.

        Returns:
            whether it is known now.
        """
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text)
            answers = data.pop("answers")
            ours = data == _head(git) and isinstance(answers, dict)
        except (OSError, ValueError, KeyError, AttributeError):
            return False
        if not ours or not are_there(set(_OID.findall(text))):
            return False
        self._known.update(answers)
        return True


def _head(git: str) -> dict[str, Any]:
    return {"schema": _SCHEMA, "forkyard": __version__, "git": git}
