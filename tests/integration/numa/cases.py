"""The cases that several tests run: what is done with a context, and what a mirror must then say of itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import arch_models
from .driver import Mode
from .gguf_builder import N_VOCAB

ENGINES = ("llama.cpp", "ik_llama.cpp")
N_UBATCH = 32


def tokens(rng: random.Random, count: int, n_vocab: int = N_VOCAB) -> list[int]:
    return [rng.randrange(n_vocab) for _ in range(count)]


def flash(engine: str, model: str, seqs: int) -> bool:
    """Whether flash attention works there without any stack.

    At its pin ik_llama.cpp fails the assertion ``S > 0`` in it if a token may not see the first key, as with a second
    sequence or beyond a sliding window, and more than one token is decoded.
    """
    return engine == "llama.cpp" or (seqs == 1 and model != "window")


def context(engine: str, model: str, *, threads: int, seqs: int = 1, **more: Any) -> dict[str, Any]:
    """A context of 128 tokens and 32 per graph."""
    spec = {"n_ctx": 128, "n_ubatch": N_UBATCH, "threads": threads, "seqs": seqs}
    return {**spec, "flash": flash(engine, model, seqs), **more}


def case(name: str, model: Path, context: Mapping[str, Any], ops: Sequence[Any], **more: Any) -> dict[str, Any]:
    """A case of one context; for ik_llama.cpp's MLA the model is told what the context will ask for."""
    return {"name": name, "model": str(model), "contexts": [context], "ops": list(ops), **more}


def adapted(engine: str, context: Mapping[str, Any]) -> dict[str, Any]:
    """The context as it must be for an adapter that comes and goes.

    ik_llama.cpp has no adapters with flash attention, and does not make its graph anew because of one.
    """
    if engine == "ik_llama.cpp":
        return {**context, "flash": False, "params": {"graph_reuse": False}}
    return dict(context)


def load_params(engine: str, model: str) -> dict[str, Any]:
    """Parameters for loading a tiny model."""
    if engine == "ik_llama.cpp" and model.startswith("latent"):
        return {"model_params": {"mla": 3}}
    return {}


def everything(model: str, *, seqs: int, seed: int = 1) -> list[list[Any]]:
    """Each operation the model's cache can do, with graphs of one token, a few, and more than one batch."""
    rng = random.Random(seed)
    kind = arch_models.MODELS[model]
    ops: list[list[Any]] = [["decode", 0, [[0, tokens(rng, 40)]]]]
    ops += [["decode", 0, [[0, tokens(rng, 1)]]] for _ in range(2)]
    ops += [["save_seq", 0, 0, 0]]
    if not kind.recurrent:
        ops += [["cut", 0, 0, 2], ["decode", 0, [[0, tokens(rng, 3)]]]]
    if kind.shifts:
        ops += [["shift", 0, 0, 8], ["decode", 0, [[0, tokens(rng, 1)]]]]
    if seqs > 1:
        ops += [["copy", 0, 0, 1], ["decode", 0, [[0, tokens(rng, 1)], [1, tokens(rng, 2)]]]]
        ops += [["drop", 0, 0], ["restore_seq", 0, 0, 0], ["decode", 0, [[0, tokens(rng, 1)], [1, tokens(rng, 1)]]]]
    ops += [["save", 0, 1], ["clear", 0, True], ["decode", 0, [[0, tokens(rng, 5)]]]]
    ops += [["clear", 0, False], ["restore", 0, 1], ["decode", 0, [[0, tokens(rng, 1)]]]]
    return ops


def check_mirror(report: Mapping[str, Any] | None, mode: Mode, *, kinds: Sequence[str] = ("kv", "weights")) -> None:
    """Every range has a copy on every node, equal to the primary and on that node; nothing was read from elsewhere."""
    assert report is not None
    assert report["mode"] == "mirror"
    assert not report["is_split"]
    check_nodes(report, mode)
    assert sorted({span["kind"] for span in report["ranges"]}) == sorted(kinds)
    for span in report["ranges"]:
        assert span["mirrored"], span
        assert span["bytes"] > 0, span
        assert span["differs"] == 0, span
        assert len(span["node"]) == mode.nodes, span
        for node in span["node"]:
            assert node["pages"] > 0, span
            assert node["here"] == node["pages"], span
    assert [node["remote"] for node in report["nodes"]] == [0] * mode.nodes
    assert sum(node["local"] for node in report["nodes"]) > 0


def check_nodes(report: Mapping[str, Any], mode: Mode) -> None:
    """As many nodes as asked for; the report and the counters' own functions agree."""
    assert report["n_nodes"] == len(report["nodes"]) == mode.nodes
    assert [[node["local"], node["remote"]] for node in report["nodes"]] == report["counters"]
