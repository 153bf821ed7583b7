"""One generation as it is asked for, and the tokens it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import PromptTooLong, UsageError
from ..sampling import SamplingParams
from .adapters import Scaled
from .loaded import Buffer
from .session import Sampler, Session

__all__ = ["LogitsProcessor", "Progress", "Request", "Token", "check_prompt", "choose", "common_length", "scores"]

LogitsProcessor = Callable[[Sequence[int], Buffer], None]
"""Changes a row of logits (a ctypes array of floats, one for each token of the vocabulary) in place. The first argument
is all tokens so far, the prompt's first."""
Progress = Callable[[int, int], object]
"""Told how many tokens of a prompt are computed, and how many there are. What it raises ends the request."""


@dataclass(frozen=True)
class Request:
    """What is to be continued, and how.

    Attributes:
        answer: the ``sampling`` of a :class:`ChatPlan`, for the answer to a conversation.
        top_logprobs: how many of the most likely tokens come with each one; None for no probabilities at all.
        limit: tokens at most; None for as many as the context has room for.
        past_end: go on after an end token.
        adapters: what is added to the model, each with its factor.
        scored: give out the prompt's tokens first, with what the model thought of each of them but the first.
    """

    prompt: Sequence[int]
    params: SamplingParams
    answer: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    processors: Sequence[LogitsProcessor] = ()
    progress: Progress | None = None
    limit: int | None = None
    past_end: bool = False
    adapters: Scaled = ()
    scored: bool = False


class Token(NamedTuple):
    """A generated token, and logarithms of probabilities where they were asked for: its own, then the most likely."""

    id: int
    logprobs: list[tuple[int, float]] | None = None


def choose(session: Session, sampler: Sampler, request: Request, index: int, tokens: Sequence[int]) -> Token:
    """The token that follows ``tokens``, by a row of the last batch.

    Raises:
        EngineError: nothing can be chosen.
    """
    if request.processors:
        row = session.row_of_logits(index)
        for process in request.processors:
            process(tokens, row)
    if request.top_logprobs is None:
        return Token(sampler.sample(index))
    row = session.row_of_logits(index)
    # Sampling may change the row.
    kept = type(row).from_buffer_copy(row)
    token = sampler.sample(index)
    return Token(token, session.logprobs(kept, token, request.top_logprobs))


def scores(session: Session, request: Request, start: int, count: int, first: int = 0) -> Iterator[Token]:
    """The prompt's tokens after those from ``start`` on, whose ``count`` rows begin with the ``first`` of the batch."""
    for index in range(min(count, len(request.prompt) - 1 - start)):
        token = request.prompt[start + index + 1]
        yield Token(token, session.logprobs(session.row_of_logits(first + index), token, request.top_logprobs or 0))


def check_prompt(session: Session, prompt: Sequence[int]) -> None:
    """Refuse a prompt the context of ``session`` cannot hold.

    Raises:
        PromptTooLong: it has more tokens than the context.
        UsageError: it is empty, or has tokens outside the vocabulary.
    """
    if not prompt:
        msg = "there is nothing to continue: the prompt has no token"
        raise UsageError(msg)
    if len(prompt) > session.n_ctx:
        msg = f"the prompt has {len(prompt)} tokens, the context {session.n_ctx}; raise n_ctx or shorten the prompt"
        raise PromptTooLong(msg)
    session.check_tokens(prompt)


def common_length(evaluated: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens both begin with, leaving at least one of ``prompt`` to compute logits from."""
    length = 0
    for known, wanted in zip(evaluated, prompt[:-1], strict=False):
        if known != wanted:
            break
        length += 1
    return length
