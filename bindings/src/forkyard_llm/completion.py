"""One text completion: from prompt tokens to the OpenAI-shaped dictionaries llama-cpp-python users know."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .completion_text import TextAssembler

__all__ = [
    "Completion",
    "CompletionSource",
    "Delta",
    "collect",
    "completion_body",
    "completion_chunks",
    "run",
    "usage",
]


class CompletionSource(Protocol):
    """What a completion needs of the model: a token's bytes, and whether it ends the text."""

    def piece(self, token: int) -> bytes:
        """The bytes the token adds to the text."""

    def is_end(self, token: int) -> bool:
        """Whether the token ends the text."""


@dataclass(frozen=True)
class Delta:
    """Text that became sure, and, on the last one only, why there is no more."""

    text: str
    finish_reason: str | None = None
    completion_tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """Identity of one request, shared by all its chunks."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, kind: str, model: str) -> Completion:
        """A fresh request; ``kind`` is the prefix OpenAI uses (``cmpl``, ``chatcmpl``)."""
        return cls(f"{kind}-{uuid.uuid4()}", int(time.time()), model)


def run(
    source: CompletionSource, tokens: Iterator[int], max_tokens: int | None, stops: Sequence[str]
) -> Iterator[Delta]:
    """Deltas of one completion; the last one has a finish reason: ``stop`` (end token, stop string) or ``length``.

    Args:
        tokens: the generated tokens; its end means that the context is full.
        max_tokens: how many to take at most; None for as many as there are.
    """
    assembler = TextAssembler(stops)
    count = 0
    reason = "length"
    while max_tokens is None or count < max_tokens:
        token = next(tokens, None)
        if token is None:
            break
        if source.is_end(token):
            reason = "stop"
            break
        count += 1
        text = assembler.add(source.piece(token))
        if assembler.stopped:
            yield Delta(text, "stop", count)
            return
        if text:
            yield Delta(text)
    rest = assembler.finish()
    yield Delta(rest, "stop" if assembler.stopped else reason, count)


def completion_body(request: Completion, text: str, finish_reason: str | None) -> dict[str, Any]:
    """The dictionary of a completion or of one chunk of it, without usage."""
    return {
        "id": request.id,
        "object": "text_completion",
        "created": request.created,
        "model": request.model,
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}],
    }


def completion_chunks(request: Completion, deltas: Iterator[Delta], echo: str) -> Iterator[dict[str, Any]]:
    """A streamed completion: one chunk per delta, the prompt first if ``echo`` is not empty."""
    if echo:
        yield completion_body(request, echo, None)
    for delta in deltas:
        if delta.text or delta.finish_reason:
            yield completion_body(request, delta.text, delta.finish_reason)


def collect(deltas: Iterator[Delta]) -> tuple[str, Delta]:
    """The whole text of a completion, and its last delta."""
    parts: list[str] = []
    last = Delta("")
    for last in deltas:
        parts.append(last.text)
    return "".join(parts), last


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of the tokens of one request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
