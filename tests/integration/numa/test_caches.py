"""Caches of every type the engine takes, as copies on every node: what is stored is the same as without the stack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from . import arch_models, cases
from .driver import MIRROR, Driver, Mode

pytestmark = pytest.mark.patch("numa-state")

STOCK = Mode()
MIRRORED = Mode(MIRROR, 3)
K_TYPES = {
    "llama.cpp": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
    # At its pin flash attention says no to f32, bf16, q5_0 and q5_1; V cannot be q8_kv.
    "ik_llama.cpp": ("f16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q6_0"),
}
PLAIN_K_TYPES = {
    "llama.cpp": ("f32", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
    "ik_llama.cpp": ("f16", "q8_0", "q4_0"),
}
"""Types of K without flash attention, where V is f16."""
PAIRS = {
    "llama.cpp": (("q8_0", "q4_0"), ("f16", "q8_0")),
    "ik_llama.cpp": (("q8_0", "q4_0"), ("f16", "q8_0"), ("q8_kv", "f16")),
}
"""Different types for K and V."""

Choice = tuple[str, str, str, str, bool]


def choices(engine: str) -> list[Choice]:
    made: list[Choice] = [(engine, "dense-q8_0", kind, kind, True) for kind in K_TYPES[engine]]
    made += [(engine, "dense-q8_0", k, v, True) for k, v in PAIRS[engine]]
    made += [(engine, "dense-q8_0", kind, "f16", False) for kind in PLAIN_K_TYPES[engine]]
    made += [(engine, "latent", "q8_0", "q8_0", True)]
    if engine == "llama.cpp":
        made += [(engine, "window", "q8_0", "q8_0", True), (engine, "hybrid-delta", "q8_0", "q8_0", True)]
    return made


ALL = [choice for engine in cases.ENGINES for choice in choices(engine)]


def name(choice: Choice) -> str:
    engine, model, k, v, flash = choice
    return f"{engine}-{model}-{k}-{v}-{'flash' if flash else 'plain'}"


def case(choice: Choice, tiny: Path) -> dict[str, Any]:
    engine, model, k, v, flash = choice
    seqs = 1 if engine == "ik_llama.cpp" and flash else 2
    context = cases.context(engine, model, threads=3, seqs=seqs, k=k, v=v)
    context["flash"] = flash
    # A shift of a quantized cache crashes or differs for reasons of its own; the stack "fixes" is about that.
    ops = [op for op in cases.everything(model, seqs=seqs) if op[0] != "shift"]
    return cases.case(
        name(choice), arch_models.write_model(model, tiny), context, ops, **cases.load_params(engine, model)
    )


@pytest.mark.parametrize("choice", ALL, ids=name)
def test_any_type_of_cache_can_be_mirrored(numa: Driver, tiny: Path, choice: Choice) -> None:
    engine = choice[0]
    request = [case(other, tiny) for other in choices(engine)]
    got = numa.run(engine, MIRRORED, request).cases[name(choice)].ok
    # Upstream saves q8_kv keys without their scales; the stack quantized-kv-tensor-split mends that.
    other = engine if "q8_kv" in choice else f"{engine}-stock"
    expected = numa.run(other, STOCK, request).cases[name(choice)].ok

    assert got.results == expected.results
    cases.check_mirror(got.report, MIRRORED)


def test_attention_in_tiles_has_the_same_bits_on_any_node(numa: Driver, tiny: Path) -> None:
    choice = ("llama.cpp", "window", "q8_0", "q8_0", True)
    got, expected = (
        numa.run("llama.cpp", replace(mode, same_bits=False), [case(choice, tiny)]) for mode in (MIRRORED, STOCK)
    )

    assert got.cases[name(choice)].ok.results == expected.cases[name(choice)].ok.results
