"""Guesses of the next tokens, which the model then checks all at once: speculative decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .request import common_length
from .session import Session

__all__ = ["Draft", "DraftModel", "PromptLookup"]


class Draft(Protocol):
    """What guesses. The text is the model's own with any: a guess that is not what it chooses is dropped."""

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """At most ``count`` tokens that may follow ``tokens``."""

    def close(self) -> None:
        """Free what it holds; harmless the second time."""


class PromptLookup:
    """Guesses that what followed the last few tokens before follows them again: good where a text repeats its prompt.

    Args:
        longest, shortest: how many of the last tokens are looked for.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._longest = longest
        self._shortest = shortest
        self._known: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """See :class:`Draft`."""
        self._learn(tokens)
        for length in range(self._longest, self._shortest - 1, -1):
            place = self._places.get(tuple(tokens[-length:])) if length <= len(tokens) else None
            if place is not None:
                return tokens[place : place + count]
        return ()

    def _learn(self, tokens: Sequence[int]) -> None:
        """Note where every run of tokens was last followed by something."""
        known = self._known
        if len(known) > len(tokens) or known != list(tokens[: len(known)]):
            self._places.clear()
            known.clear()
        start = max(len(known), 1)
        for end in range(start, len(tokens)):
            for length in range(self._shortest, min(self._longest, end) + 1):
                self._places[tuple(tokens[end - length : end])] = end
        known.extend(tokens[len(known) :])

    def close(self) -> None:
        """Nothing to free."""


class DraftModel:
    """Guesses what a smaller model of the same vocabulary would say."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._evaluated: list[int] = []

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """See :class:`Draft`."""
        session = self._session
        count = min(count, session.n_ctx - len(tokens))
        if count <= 0:
            return ()
        kept = common_length(self._evaluated, tokens)
        if kept == 0 or not session.truncate(kept):
            session.forget()
            kept = 0
        self._evaluated = []
        session.decode(tokens[kept:], kept)
        known, guesses = list(tokens), []
        for _ in range(count):
            token = session.best_token()
            if session.is_end(token):
                break
            guesses.append(token)
            if len(guesses) < count:
                session.decode_one(token, len(known))
                known.append(token)
        self._evaluated = known
        return guesses

    def close(self) -> None:
        """Close its model."""
        self._session.close()
