"""Run one completion for the command line: stream the text, or report text, tokens and timings as data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from .engines.numa_mirror import CAPABILITY
from .llama import Llama
from .payloads import Payload

__all__ = ["GenerateOptions", "measured", "payload_facts", "streamed"]


@dataclass(frozen=True)
class GenerateOptions:
    """One prompt and how to continue it; `sampling` and `devices` hold what is not to be `Llama`'s default."""

    model: Path
    prompt: str
    max_tokens: int
    engine: str = "auto"
    variant: str | None = None
    context: int | None = None
    threads: int | None = None
    numa: str | None = None
    numa_mirror: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    devices: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    verbose: bool = False


def streamed(options: GenerateOptions, emit: Callable[[str], None]) -> None:
    """Generate, giving each new piece of text to `emit` as it comes. Raises any ForkyardLlmError."""
    with _opened(options) as llm:
        chunks = cast("Iterator[dict[str, Any]]", _complete(llm, options, stream=True))
        for chunk in chunks:
            text = chunk["choices"][0]["text"]
            if text:
                emit(text)


def measured(options: GenerateOptions) -> dict[str, Any]:
    """Generate, and return the JSON document of `generate --json`. Raises any ForkyardLlmError.

    Seconds, and tokens per second. `prompt_s` and `generation_s` are the engine's own counters, without
    sampling and text; `total_s` is all of it.
    """
    started = time.perf_counter()
    with _opened(options) as llm:
        loaded = time.perf_counter()
        body = cast("dict[str, Any]", _complete(llm, options, stream=False))
        total = time.perf_counter() - loaded
        perf = llm.perf()
        payload = llm.payload
        numa = _numa(llm)
    usage = body["usage"]
    choice = body["choices"][0]
    return {
        "text": choice["text"],
        "finish_reason": choice["finish_reason"],
        "prompt": options.prompt,
        "model": str(options.model),
        "tokens": {"prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]},
        "timings": {
            "load_s": round(loaded - started, 4),
            "prompt_s": round(perf.prompt_ms / 1000, 4),
            "generation_s": round(perf.generation_ms / 1000, 4),
            "total_s": round(total, 4),
            "prompt_tokens_per_s": _rate(perf.prompt_tokens, perf.prompt_ms),
            "generated_tokens_per_s": _rate(perf.generated_tokens, perf.generation_ms),
        },
        "numa": numa,
        "engine": payload.engine,
        "payload": payload_facts(payload),
    }


def payload_facts(payload: Payload) -> dict[str, Any]:
    """What a JSON document says of the payload that computed it."""
    return {
        "distribution": payload.distribution,
        "version": payload.manifest["version"],
        "variant": payload.variant,
        "build_key": payload.build_key,
    }


def _opened(options: GenerateOptions) -> Llama:
    arguments: dict[str, Any] = {
        "verbose": options.verbose,
        "numa": options.numa,
        "numa_mirror": options.numa_mirror,
        **options.devices,
    }
    if options.context is not None:
        arguments["n_ctx"] = options.context
    if options.threads is not None:
        arguments["n_threads"] = options.threads
    return Llama(str(options.model), engine=options.engine, variant=options.variant, **arguments)


def _complete(llm: Llama, options: GenerateOptions, *, stream: bool) -> object:
    return llm.create_completion(
        options.prompt,
        max_tokens=options.max_tokens,
        stop=list(options.stop),
        stream=stream,
        **options.sampling,
    )


def _numa(llm: Llama) -> dict[str, Any] | None:
    if llm.numa is None:
        return None
    counted = CAPABILITY in llm.capabilities
    nodes = [asdict(node) for node in llm.numa_counters()] if counted else []
    return {"strategy": llm.numa, "nodes": nodes}


def _rate(tokens: int, milliseconds: float) -> float | None:
    return round(1000 * tokens / milliseconds, 2) if tokens > 0 and milliseconds > 0 else None
