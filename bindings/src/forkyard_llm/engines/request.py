"""One generation as it is asked for, and the tokens it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import PromptTooLong, UsageError
from ..sampling import SamplingParams
from .adapters import Scaled
from .loaded import Buffer
from .media import Piece
from .session import Sampler, Session

__all__ = [
    "LogitsProcessor",
    "Progress",
    "Request",
    "Token",
    "check_prompt",
    "choose",
    "common_length",
    "reusable",
    "scores",
    "spare_cells",
    "stretches",
]

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
        pieces: images and sounds among the prompt's tokens, by the position that each begins at.
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
    pieces: Mapping[int, Piece] = field(default_factory=dict)

    @property
    def history(self) -> Sequence[int]:
        """The prompt's tokens, without what stands for images and sounds."""
        return [token for token in self.prompt if token >= 0] if self.pieces else self.prompt


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


def check_prompt(session: Session, prompt: Sequence[int], pieces: Mapping[int, Piece] | None = None) -> None:
    """Refuse a prompt the context of ``session`` cannot hold.

    Raises:
        PromptTooLong: it has more tokens than the context.
        UsageError: it is empty, or has tokens outside the vocabulary; an image is larger than a micro-batch.
    """
    if not prompt:
        msg = "there is nothing to continue: the prompt has no token"
        raise UsageError(msg)
    count = len(prompt) + spare_cells(pieces or {})
    if count > session.n_ctx:
        msg = f"the prompt has {count} tokens, the context {session.n_ctx}; raise n_ctx or shorten the prompt"
        raise PromptTooLong(msg)
    if not pieces:
        session.check_tokens(prompt)
        return
    # The engine counts the tokens of the text.
    largest = max((piece.cells for piece in pieces.values() if piece.whole), default=0)
    if largest > session.n_ubatch:
        msg = (
            f"an image of this prompt has {largest} tokens, which this model must compute at once, and a micro-batch"
            f" {session.n_ubatch}: raise n_ubatch, and n_batch with it, to {largest}"
        )
        raise UsageError(msg)
    if prompt[-1] < 0:
        msg = "the prompt ends with an image or a sound: the chat template must put text behind it"
        raise UsageError(msg)


def spare_cells(pieces: Mapping[int, Piece]) -> int:
    """How many more cells of a context than positions these take."""
    return sum(piece.cells - piece.positions for piece in pieces.values())


def stretches(request: Request, start: int) -> Iterator[tuple[int, int, Piece | None]]:
    """The prompt from ``start`` on, as texts and pieces in turn: where each begins and ends, and the piece."""
    for at, piece in sorted(request.pieces.items(), key=lambda item: item[0]):
        if at >= start:
            if at > start:
                yield start, at, None
            start = at + piece.positions
            yield at, start, piece
    if start < len(request.prompt):
        yield start, len(request.prompt), None


def common_length(evaluated: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens both begin with, leaving at least one of ``prompt`` to compute logits from."""
    length = 0
    for known, wanted in zip(evaluated, prompt[:-1], strict=False):
        if known != wanted:
            break
        length += 1
    return length


def reusable(evaluated: Sequence[int], request: Request) -> int:
    """How many positions of the prompt need not be computed again: :func:`common_length`, and pieces as wholes."""
    length = common_length(evaluated, request.prompt)
    for at, piece in request.pieces.items():
        if at < length < at + piece.positions:
            return at
    return length
