"""The messages of a chat: what is asked next, what is taken back, and how it is kept in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .cache import write_atomic
from .errors import UsageError

__all__ = ["Conversation"]

_ROLES = ("user", "assistant")


class Conversation:
    """A system message, and turns of user and assistant.

    Attributes:
        system: what the model is told first; None for nothing.
    """

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self._turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """All of it, as a chat completion takes it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self._turns]

    def __len__(self) -> int:
        """How many messages there are but the system's."""
        return len(self._turns)

    def ask(self, text: str) -> None:
        """Add what the user says."""
        self._turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Add what the model says."""
        self._turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Remove the last question, and its answer if there is one."""
        self.unanswer()
        if self._turns:
            self._turns.pop()

    def unanswer(self) -> bool:
        """Remove the last answer; whether there is a question to answer."""
        if self._turns and self._turns[-1]["role"] == "assistant":
            self._turns.pop()
        return bool(self._turns)

    def clear(self) -> None:
        """Remove all but the system message."""
        self._turns.clear()

    def forget_oldest(self) -> int:
        """Remove the older half of the turns, never the last one; how many turns that were."""
        starts = [index for index, turn in enumerate(self._turns) if turn["role"] == "user"]
        dropped = len(starts) // 2
        if dropped:
            del self._turns[: starts[dropped]]
        return dropped

    def save(self, path: Path) -> None:
        """Write it to a file, as JSON. Raises UsageError if the file cannot be written."""
        try:
            write_atomic(path, json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1).encode() + b"\n")
        except (OSError, UnicodeEncodeError) as error:
            msg = f"cannot write {path}: {error.strerror if isinstance(error, OSError) else error}"
            raise UsageError(msg) from error

    def load(self, path: Path) -> None:
        """Become what `save` wrote. Raises UsageError, and stays as it is, if the file holds no such thing."""
        try:
            read = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else f"it is no JSON: {error}"
            msg = f"cannot read {path}: {why}"
            raise UsageError(msg) from error
        self.system, self._turns = _parted(read, path)


def _parted(read: Any, path: Path) -> tuple[str | None, list[dict[str, str]]]:
    messages = read.get("messages") if isinstance(read, dict) else None
    whole = isinstance(messages, list) and all(
        isinstance(one, dict) and isinstance(one.get("content"), str) and isinstance(one.get("role"), str)
        for one in messages
    )
    if not isinstance(messages, list) or not whole:
        msg = f'{path} is no saved chat: it must be {{"messages": [{{"role": ..., "content": ...}}, ...]}} with texts'
        raise UsageError(msg)
    turns = [{"role": one["role"], "content": one["content"]} for one in messages]
    system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
    for number, turn in enumerate(turns):
        if turn["role"] != _ROLES[number % 2]:
            msg = f"{path} is no saved chat: message {number} must be the {_ROLES[number % 2]}'s, not {turn['role']!r}"
            raise UsageError(msg)
    if turns and turns[-1]["role"] == "user":
        turns.pop()
    return system, turns
