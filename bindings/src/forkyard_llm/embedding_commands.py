"""Run the commands `embed` and `rank`: open a model for it, and report vectors or scores as data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .generate import payload_facts
from .llama import Llama

__all__ = ["EmbeddingOptions", "embedded", "ranked"]


@dataclass(frozen=True)
class EmbeddingOptions:
    """How a model is opened; `context` 0 for texts as long as it was trained for."""

    model: Path
    pooling: str | None = None
    engine: str = "auto"
    variant: str | None = None
    context: int = 512
    threads: int | None = None
    verbose: bool = False


def embedded(options: EmbeddingOptions, texts: Sequence[str], *, truncate: bool) -> dict[str, Any]:
    """The JSON document of `embed --json`: the vector of each text, or of each of its tokens.

    Raises any ForkyardLlmError.
    """
    started = time.perf_counter()
    with _opened(options) as llm:
        loaded = time.perf_counter()
        vectors = llm.embed(texts, truncate=truncate)
        return {"embeddings": vectors, "pooling": llm.pooling, **_facts(llm, options, started, loaded)}


def ranked(options: EmbeddingOptions, query: str, documents: Sequence[str]) -> dict[str, Any]:
    """The JSON document of `rank --json`: the documents, the best first, each with its place and score.

    Raises any ForkyardLlmError.
    """
    started = time.perf_counter()
    with _opened(options) as llm:
        loaded = time.perf_counter()
        scores = llm.rank(query, documents)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = [{"index": index, "score": scores[index], "document": documents[index]} for index in order]
        return {"query": query, "results": results, **_facts(llm, options, started, loaded)}


def _opened(options: EmbeddingOptions) -> Llama:
    arguments: dict[str, Any] = {} if options.threads is None else {"n_threads": options.threads}
    return Llama(
        options.model,
        engine=options.engine,
        variant=options.variant,
        n_ctx=options.context,
        embedding=True,
        pooling=options.pooling,
        verbose=options.verbose,
        **arguments,
    )


def _facts(llm: Llama, options: EmbeddingOptions, started: float, loaded: float) -> dict[str, Any]:
    done = time.perf_counter()
    timings = {"load_s": round(loaded - started, 4), "total_s": round(done - loaded, 4)}
    return {
        "model": str(options.model),
        "timings": timings,
        "engine": llm.engine,
        "payload": payload_facts(llm.payload),
    }
