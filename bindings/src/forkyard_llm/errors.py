"""The errors this package raises, each with the exit code the command line ends with.

Every message says what happened, where, and what to do next; the class says which kind of thing it was, so
that a program can react without reading the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "AbiMismatch",
    "DownloadError",
    "EngineDied",
    "EngineError",
    "ForkyardLlmError",
    "ModelError",
    "PayloadNotFound",
    "PayloadRejected",
    "PromptTooLong",
    "QueueFull",
    "Rejection",
    "UnsupportedOption",
    "UsageError",
]


class ForkyardLlmError(Exception):
    """Base of every error of this package; `exit_code` is what `forkyard-llm` exits with."""

    exit_code: ClassVar[int] = 1

    def details(self) -> Mapping[str, Any]:
        """Machine readable facts beyond the message; part of what `--json` prints."""
        return {}

    def as_json(self) -> dict[str, Any]:
        """The error as one JSON-ready object: `{"error": {"type", "message", "exit_code", ...}}`."""
        body: dict[str, Any] = {"type": type(self).__name__, "message": str(self)}
        body["exit_code"] = self.exit_code
        body.update(self.details())
        return {"error": body}


class UsageError(ForkyardLlmError):
    """The caller asked for something that makes no sense (same exit code as click's own usage errors).

    Args:
        what: what it is.
        why: the reason, as far as it is known.
        next_step: what to do now.
    """

    exit_code = 2

    def __init__(self, what: str, *, why: str | None = None, next_step: str | None = None) -> None:
        super().__init__("; ".join(part for part in (f"{what}: {why}" if why else what, next_step) if part))
        self.what, self.why, self.next_step = what, why, next_step


class PromptTooLong(UsageError):
    """A prompt has more tokens than the context holds."""


class PayloadNotFound(ForkyardLlmError):
    """No payload of the asked engine and variant is installed."""

    exit_code = 3


@dataclass(frozen=True)
class Rejection:
    """Why one candidate payload was not taken."""

    distribution: str
    reason: str


class PayloadRejected(ForkyardLlmError):
    """Payloads are installed, but this machine or process can use none of those that were asked for."""

    exit_code = 4

    def __init__(self, message: str, rejections: Sequence[Rejection] = ()) -> None:
        super().__init__(message)
        self.rejections: tuple[Rejection, ...] = tuple(rejections)

    def details(self) -> Mapping[str, Any]:
        """The rejections."""
        return {"rejections": [{"distribution": r.distribution, "reason": r.reason} for r in self.rejections]}


class AbiMismatch(ForkyardLlmError):
    """A payload's libraries, manifest and generated bindings do not belong together."""

    exit_code = 5


class ModelError(ForkyardLlmError):
    """A model file is missing, damaged, not something the engine can load, or for something else.

    `offset` is the byte offset in the file where reading stopped making sense, where there is one.
    """

    exit_code = 6

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset

    def details(self) -> Mapping[str, Any]:
        """The offset, if there is one."""
        return {} if self.offset is None else {"offset": self.offset}


class EngineError(ForkyardLlmError):
    """The engine (library or server) reported a failure, or died."""

    exit_code = 7

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self._facts = dict(facts or {})

    def details(self) -> Mapping[str, Any]:
        """What the engine said as data, where it did."""
        return self._facts


class EngineDied(EngineError):
    """The process of an engine that runs in one of its own ended.

    Attributes:
        signal: the name of the signal that ended it (``SIGABRT``), or None.
        exit_status: what it ended with, or None.
        last_words: the last lines it wrote.
    """

    def __init__(self, message: str, *, signal: str | None, exit_status: int | None, last_words: Sequence[str]) -> None:
        super().__init__(message, {"signal": signal, "exit_status": exit_status, "last_words": list(last_words)})
        self.signal = signal
        self.exit_status = exit_status
        self.last_words = tuple(last_words)


class QueueFull(EngineError):
    """More requests wait for a model than may; try again later."""


class UnsupportedOption(ForkyardLlmError):
    """An option the chosen payload's engine does not have; the message names what does have it."""

    exit_code = 8


class DownloadError(ForkyardLlmError):
    """A model could not be fetched, verified or stored."""

    exit_code = 9
