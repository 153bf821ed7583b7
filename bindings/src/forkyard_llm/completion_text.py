"""Turn token pieces (bytes) into text that may be shown: whole UTF-8 only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from .errors import UsageError
from .text import to_engine

__all__ = ["TextAssembler", "stop_strings"]


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """``stop`` as callers give it, as a tuple without duplicates.

    Raises:
        UsageError: something in it is not a text, or empty (an empty string would stop before the first token).
    """
    if stop is None:
        return ()
    if not isinstance(stop, (str, Iterable)):
        msg = f"stop must be a non-empty text or a list of such; got {stop!r}"
        raise UsageError(msg)
    given = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in given:
        if not isinstance(one, str) or not one:
            msg = f"stop must be a non-empty text or a list of such; got {one!r}"
            raise UsageError(msg)
        to_engine(one, "a stop text")
    return tuple(dict.fromkeys(given))


class TextAssembler:
    """Collects pieces and hands out text as soon as it can no longer become part of a stop string.

    The text handed out does not depend on how it was cut into pieces: the stop string that is completed first ends
    it, and of those completed by the same character the one that begins first.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        """Whether a stop string was met; nothing comes after it."""

    def add(self, piece: bytes) -> str:
        """Text that became sure with ``piece``; empty while bytes or a possible stop string are incomplete."""
        return self._advance(self._decoder.decode(piece))

    def finish(self) -> str:
        """What is still held back, at the end of the generation. Incomplete UTF-8 becomes U+FFFD."""
        text = self._advance(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _advance(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        found = min(
            ((start + len(stop), start) for stop in self._stops if (start := held.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            self.stopped = True
            self._held = ""
            return held[: found[1]]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        cut = len(held) - keep
        self._held = held[cut:]
        return held[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop`` and not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
