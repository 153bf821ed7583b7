"""What callers give and get for embeddings and ranks: texts and tokens in, vectors, scores and OpenAI's form out."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from .checks import flag, shown, token_ids
from .engines.adapters import Scaled
from .engines.embedding import Embedder, Vectors
from .engines.options import NO_POOLING, RANK
from .engines.session import Session
from .engines.threads import end_threads
from .errors import EngineError, ModelError, UsageError
from .gguf_purpose import RANKING, purpose_of
from .gguf_reader import GgufSummary
from .text import to_engine

__all__ = ["Input", "embed", "embedding_body", "pooling_of", "positions_of", "rank"]

Input: TypeAlias = str | bytes | Sequence[int] | Sequence[str | bytes | Sequence[int]]
"""A text, the tokens of one, or several of either."""

Result = TypeVar("Result")

# In the order of the numbers that model files have.
_POOLINGS = (NO_POOLING, "mean", "cls", "last", RANK)
_NOT_MADE = "this Llama generates text: for embeddings make one with embedding=True"


class Owner(Protocol):
    """Who has the session, and lets one thread in at a time."""

    def call(self, function: Callable[[Session], Result]) -> Result:
        """``function`` of the session."""


def pooling_of(summary: GgufSummary, asked: str | None) -> str:
    """The pooling for a model: the one asked for, in lower case, or else the file's own.

    Raises:
        UsageError: no such pooling.
        ModelError: the model has nothing to rank with, or what it says of the size of its vectors cannot be.
    """
    _check_size(summary)
    value = summary.values.get(f"{summary.architecture}.pooling_type")
    number = int(value.numbers[0]) if value is not None and value.numbers else 0
    name = asked.lower() if isinstance(asked, str) else asked
    if name is None:
        ranks = purpose_of(summary, tensors=len(summary.shapes)) == RANKING
        name = RANK if ranks else _POOLINGS[number] if 0 <= number < len(_POOLINGS) else NO_POOLING
    if name not in _POOLINGS:
        msg = f"pooling must be one of {', '.join(_POOLINGS)}, or None for the model's own; got {shown(asked)}"
        raise UsageError(msg)
    if name == RANK and not _can_rank(summary):
        msg = f"{summary.path}: this model has no classifier to rank with (tensor cls.output.weight); take a reranker"
        raise ModelError(msg)
    return name


def positions_of(summary: GgufSummary) -> int:
    """How many positions the model has, where they are rows of a tensor; 0 where they are not."""
    shape = summary.shapes.get("position_embd.weight", ())
    return shape[1] if len(shape) > 1 else 0


def _check_size(summary: GgufSummary) -> None:
    """Refuse a size of vectors that no tensor makes: llama.cpp reads behind those that there are."""
    key = f"{summary.architecture}.embedding_length_out"
    sizes = [summary.values.get(name) for name in (key, f"{summary.architecture}.embedding_length")]
    numbers = [value.numbers[0] for value in sizes if value is not None and value.numbers]
    if len(set(numbers)) > 1 and not {"dense_2.weight", "dense_3.weight"} & set(summary.shapes):
        msg = f"{summary.path}: {key} is {numbers[0]:.9g}, and no tensor makes vectors of that many numbers"
        raise ModelError(msg)


def _can_rank(summary: GgufSummary) -> bool:
    if summary.architecture == "jina-bert-v2":
        return "cls.weight" in summary.shapes
    return "cls.output.weight" in summary.shapes


def embed(
    owner: Owner, given: Input, adapters: Scaled, *, normalize: bool, truncate: bool
) -> tuple[list[Vectors], bool, int]:
    """The vectors of each text, whether one text alone was given, and how many tokens all have.

    Raises:
        UsageError: something that is no text, or a text that cannot be computed.
        EngineError: the engine failed.
    """
    flag("normalize", normalize)
    flag("truncate", truncate)
    single = isinstance(given, (str, bytes)) or _is_tokens(given)
    listed = [given] if single else given
    if not isinstance(listed, Sequence):
        msg = f"the input must be a text, or a sequence of texts or of token lists; got {shown(given)}"
        raise UsageError(msg)
    names = ["the text"] if single else [f"text {number}" for number in range(len(listed))]
    raw = [_raw(one, name) for one, name in zip(listed, names, strict=True)]
    texts = owner.call(lambda session: _tokens(session, raw, names, truncate=truncate))
    vectors = _computed(owner, texts, adapters)
    if normalize:
        vectors = [[_unit(vector) for vector in one] for one in vectors]
    return vectors, single, sum(map(len, texts))


def rank(owner: Owner, query: str, documents: Sequence[str], adapters: Scaled) -> list[float]:
    """How well each document answers a query, by the model's own measure. Raises as :func:`embed` does."""
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        msg = f"documents must be a sequence of texts; got {shown(documents)}"
        raise UsageError(msg)
    asked = to_engine(query, "the query")
    raw = [to_engine(one, f"document {number}") for number, one in enumerate(documents)]

    def prompts(session: Session) -> list[list[int]]:
        embedder = _embedder(session)
        if embedder.pooling != RANK:
            msg = f"this Llama has the pooling {embedder.pooling!r}: for ranks make one with pooling='rank'"
            raise UsageError(msg)
        made = [session.rank_prompt(asked, document) for document in raw]
        for number, prompt in enumerate(made):
            embedder.check(f"the query with document {number}", prompt)
        return made

    return [vectors[0][0] for vectors in _computed(owner, owner.call(prompts), adapters)]


def embedding_body(model: str, vectors: Sequence[Vectors], pooling: str, tokens: int) -> dict[str, Any]:
    """OpenAI's answer to a request for embeddings."""
    data = [
        {"object": "embedding", "index": index, "embedding": one if pooling == NO_POOLING else one[0]}
        for index, one in enumerate(vectors)
    ]
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": counts}


def _is_tokens(given: object) -> bool:
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        return False
    return bool(given) and isinstance(given[0], numbers.Integral)


def _raw(given: object, name: str) -> bytes | list[int]:
    if isinstance(given, (str, bytes)):
        return to_engine(given, name)
    if not isinstance(given, Sequence):
        msg = f"{name} must be a text or a list of tokens; got {shown(given)}"
        raise UsageError(msg)
    return token_ids(name, given)


def _embedder(session: Session) -> Embedder:
    if session.embedder is None:
        raise UsageError(_NOT_MADE)
    return session.embedder


def _tokens(
    session: Session, raw: Sequence[bytes | list[int]], names: Sequence[str], *, truncate: bool
) -> list[list[int]]:
    embedder = _embedder(session)
    if embedder.pooling == RANK:
        msg = (
            "this Llama ranks documents (pooling 'rank'): call rank(query, documents), or make one with another pooling"
        )
        raise UsageError(msg)
    texts = []
    for given, name in zip(raw, names, strict=True):
        text = given if isinstance(given, list) else session.tokenize(given, add_special=True, parse_special=True)
        if truncate and len(text) > embedder.longest:
            # What ends a text stays: a pooling of the last token needs it.
            end = text[-1:] if isinstance(given, bytes) and session.ends_text(text[-1]) else []
            text = text[: embedder.longest - len(end)] + end
        embedder.check(name, text)
        texts.append(text)
    return texts


def _computed(owner: Owner, texts: Sequence[Sequence[int]], adapters: Scaled) -> list[Vectors]:
    made: list[Vectors] = []
    for batch in owner.call(lambda session: list(_embedder(session).batches(texts))):
        made += owner.call(functools.partial(_batch, batch, adapters))
    end_threads(shared=True)
    if not all(math.isfinite(math.hypot(*vector)) for vectors in made for vector in vectors):
        msg = (
            "the model makes values of these texts that are no numbers (NaN or infinity): its file is damaged, or they"
            " are too large for the type that it computes in"
        )
        raise EngineError(msg)
    return made


def _batch(batch: Sequence[Sequence[int]], adapters: Scaled, session: Session) -> list[Vectors]:
    session.use(adapters)
    return _embedder(session).compute(batch)


def _unit(vector: list[float]) -> list[float]:
    """A vector of that direction and the length 1; one of zeros stays as it is."""
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector
