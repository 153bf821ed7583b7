"""No operation reads a primary where each node has a copy: with the guard on, the primaries are unreadable meanwhile.

The guard itself is tried, too: something that reads a primary while a graph runs must not survive. And so is the
report: it must see a primary that was changed behind the engine's back, which the logits then must not.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from . import arch_models, cases
from .driver import MIRROR, Driver, Mode

pytestmark = pytest.mark.patch("numa-state")

STOCK = Mode()
GUARD = (("GGML_NUMA_MIRROR_GUARD", "1"),)
GUARDED = Mode(MIRROR, 3, environment=GUARD)
UNGUARDED = Mode(MIRROR, 3, environment=(("GGML_NUMA_MIRROR_NO_ALIAS", "1"),))
WAYS = ("mapped", "loaded", "cached", "adapted")

Choice = tuple[str, str, str]


def choices(engine: str) -> list[Choice]:
    """Every model mapped and loaded; with a quantized cache and an adapter where that goes."""
    made = [(engine, model, way) for model in arch_models.names(engine) for way in ("mapped", "loaded")]
    made += [(engine, model, "cached") for model in ("dense", "dense-q4_0", "experts", "latent")]
    return [*made, (engine, "dense", "adapted"), (engine, "dense-q4_0", "adapted")]


ALL = [choice for engine in cases.ENGINES for choice in choices(engine)]


def name(choice: Choice) -> str:
    return "-".join(choice)


def case(choice: Choice, tiny: Path) -> dict[str, Any]:
    engine, model, way = choice
    seqs = 2 if engine == "llama.cpp" or way == "loaded" else 1
    context = cases.context(engine, model, threads=1 if way == "loaded" else 3, seqs=seqs)
    ops = cases.everything(model, seqs=seqs)
    more: dict[str, Any] = {"mmap": way == "mapped", **cases.load_params(engine, model)}
    if way == "cached":
        context["k"] = context["v"] = "q8_0"
        ops = [op for op in ops if op[0] != "shift"]
    if way == "adapted":
        context = cases.adapted(engine, context)
        more["adapter"] = str(arch_models.write_adapter(tiny))
        ops.insert(0, ["adapter", 0, 1.0])
    if way == "loaded":
        context["flash"] = False
    return cases.case(name(choice), arch_models.write_model(model, tiny), context, ops, **more)


@pytest.mark.parametrize("choice", ALL, ids=name)
def test_nothing_reads_a_primary(numa: Driver, tiny: Path, choice: Choice) -> None:
    engine = choice[0]
    request = [case(other, tiny) for other in choices(engine)]
    got = numa.run(engine, GUARDED, request).cases[name(choice)].ok
    expected = numa.run(f"{engine}-stock", STOCK, request).cases[name(choice)].ok

    assert got.results == expected.results
    assert got.report is not None
    assert got.report["guard"]
    assert not any(node["alias"] for span in got.report["ranges"] for node in span["node"])
    cases.check_mirror(got.report, GUARDED)


def peek(engine: str, tiny: Path, *, poke: bool = False) -> dict[str, Any]:
    """A case that reads a weight at the address everybody knows while a graph runs, and may change it in between."""
    rng = random.Random(4)
    ops: list[list[Any]] = [["decode", 0, [[0, cases.tokens(rng, 8)]]] for _ in range(2)]
    if poke:
        ops.insert(1, ["poke", 0])
    path = arch_models.write_model("dense-q8_0", tiny)
    context = cases.context(engine, "dense-q8_0", threads=3, peek=True)
    return cases.case("peek", path, context, ops, mmap=False, model_params=unpacked(engine))


def unpacked(engine: str) -> dict[str, Any]:
    """Weights stay as they are in the file."""
    return {"use_extra_bufts": False} if engine == "llama.cpp" else {}


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_what_reads_a_primary_dies_of_the_guard(numa: Driver, tiny: Path, engine: str) -> None:
    answer = numa.run(engine, GUARDED, [peek(engine, tiny)]).cases["peek"]

    assert answer.status == -signal.SIGSEGV, answer


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_what_reads_a_primary_lives_without_the_guard(numa: Driver, tiny: Path, engine: str) -> None:
    answer = numa.run(engine, UNGUARDED, [peek(engine, tiny)]).cases["peek"].ok
    expected = numa.run(f"{engine}-stock", STOCK, [peek(engine, tiny)]).cases["peek"].ok

    assert answer.seen[0]["reads"] > 0, "the case reads nothing: it would prove nothing about the guard"
    assert answer.report is not None
    assert not answer.report["guard"]
    assert answer.results == expected.results


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_a_changed_primary_is_reported_and_not_read(numa: Driver, tiny: Path, engine: str) -> None:
    untouched = numa.run(f"{engine}-stock", STOCK, [peek(engine, tiny)]).cases["peek"].ok
    changed = numa.run(f"{engine}-stock", STOCK, [peek(engine, tiny, poke=True)]).cases["peek"].ok
    answer = numa.run(engine, UNGUARDED, [peek(engine, tiny, poke=True)]).cases["peek"].ok

    assert changed.results[2] != untouched.results[1], "the change is none"
    assert (answer.results[0], answer.results[2]) == untouched.results
    assert answer.report is not None
    assert sum(span["differs"] for span in answer.report["ranges"]) == UNGUARDED.nodes


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_several_contexts_under_the_guard(numa: Driver, tiny: Path, engine: str) -> None:
    rng = random.Random(5)
    contexts = [cases.context(engine, "dense-q4_0", threads=threads) for threads in (1, 2, 3)]
    steps = [[["decode", index, [[0, cases.tokens(rng, n)]]] for index in range(3)] for n in (20, 1, 3, 1)]
    path = arch_models.write_model("dense-q4_0", tiny)
    request = {
        "name": "several",
        "model": str(path),
        "contexts": contexts,
        "ops": [op for step in steps for op in step],
    }
    expected = numa.run(f"{engine}-stock", STOCK, [request]).cases["several"].ok
    answer = numa.run(engine, GUARDED, [{**request, "parallel": True}]).cases["several"].ok

    assert answer.results == expected.results
    cases.check_mirror(answer.report, GUARDED)
