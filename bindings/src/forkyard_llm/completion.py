"""One text completion: from prompt tokens to the OpenAI-shaped dictionaries llama-cpp-python users know."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .completion_text import TextAssembler
from .engines.request import Token

__all__ = [
    "Completion",
    "CompletionSource",
    "Delta",
    "Shown",
    "collect",
    "completion_body",
    "completion_chunks",
    "completion_logprobs",
    "run",
    "usage",
]


class CompletionSource(Protocol):
    """What a completion needs of the model."""

    def bytes_of(self, token: int, *, special: bool = False) -> bytes | None:
        """The bytes a token adds to the text, or None if it ends it; a control token adds none unless ``special``."""


Shown = Callable[[int], bytes]
"""How tokens look in answers: the bytes of each, special tokens spelled out."""


@dataclass(frozen=True)
class Delta:
    """Text that became sure, the tokens since the one before, and, on the last one only, why there is no more."""

    text: str
    finish_reason: str | None = None
    completion_tokens: int = 0
    tokens: tuple[Token, ...] = ()


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
    source: CompletionSource,
    tokens: Generator[Token, None, None],
    max_tokens: int | None,
    stops: Sequence[str],
    *,
    spelled: Collection[int] = (),
    criterion: Callable[[Token], bool] | None = None,
) -> Iterator[Delta]:
    """Deltas of one completion; the last one has a finish reason: ``stop`` (end token, stop string) or ``length``.

    Args:
        tokens: the generated tokens; its end means that the context is full. Closed at the end.
        max_tokens: how many to take at most; None for as many as there are.
        spelled: control tokens that are part of the text.
        criterion: whether the text ends after a token, beside what ends it anyway.
    """
    assembler = TextAssembler(stops)
    count = 0
    reason = "length"
    since: list[Token] = []
    # At once, not when the traceback of an error goes: one generation is done at a time.
    with contextlib.closing(tokens):
        while max_tokens is None or count < max_tokens:
            token = next(tokens, None)
            if token is None:
                break
            raw = source.bytes_of(token.id, special=token.id in spelled)
            if raw is None:
                reason = "stop"
                break
            count += 1
            since.append(token)
            text = assembler.add(raw)
            if assembler.stopped:
                yield Delta(text, "stop", count, tuple(since))
                return
            if text:
                yield Delta(text, tokens=tuple(since))
                since = []
            if criterion is not None and criterion(token):
                reason = "stop"
                break
        rest = assembler.finish()
        yield Delta(rest, "stop" if assembler.stopped else reason, count, tuple(since))


def completion_body(
    request: Completion, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The dictionary of a completion or of one chunk of it, without usage."""
    return {
        "id": request.id,
        "object": "text_completion",
        "created": request.created,
        "model": request.model,
        "choices": [{"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}],
    }


def completion_logprobs(shown: Shown, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
    """OpenAI's ``logprobs`` of a text completion; None if no token has any.

    Args:
        offset: characters of text before the first token.
    """
    if not any(token.logprobs for token in tokens):
        return None
    texts = [shown(token.id).decode("utf-8", "replace") for token in tokens]
    offsets, place = [], offset
    for text in texts:
        offsets.append(place)
        place += len(text)
    return {
        "tokens": texts,
        "text_offset": offsets,
        "token_logprobs": [token.logprobs[0][1] if token.logprobs else None for token in tokens],
        "top_logprobs": [
            {shown(other).decode("utf-8", "replace"): value for other, value in token.logprobs[1:]}
            if token.logprobs
            else None
            for token in tokens
        ],
    }


def completion_chunks(
    request: Completion, deltas: Iterator[Delta], echo: str, shown: Shown, before: Sequence[Token] = ()
) -> Iterator[dict[str, Any]]:
    """A streamed completion: one chunk per delta, the prompt first if ``echo`` is not empty."""
    offset = 0
    if echo or before:
        yield completion_body(request, echo, None, completion_logprobs(shown, before, 0))
        offset = len(echo)
    for delta in deltas:
        if delta.text or delta.finish_reason:
            logprobs = completion_logprobs(shown, delta.tokens, offset)
            offset += len(delta.text)
            yield completion_body(request, delta.text, delta.finish_reason, logprobs)


def collect(deltas: Iterator[Delta]) -> tuple[str, Delta]:
    """The whole text of a completion, and its last delta, with the tokens of all."""
    parts: list[str] = []
    tokens: list[Token] = []
    last = Delta("")
    for last in deltas:
        parts.append(last.text)
        tokens += last.tokens
    return "".join(parts), Delta(last.text, last.finish_reason, last.completion_tokens, tuple(tokens))


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of the tokens of one request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
