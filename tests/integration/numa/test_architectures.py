"""For every class of architecture a mirrored or split engine yields the logits of one without the stack, bit by bit.

All cases of an engine and a mode run in one child. With as many threads as nodes, with fewer and with more; weights
mapped and loaded, the latter without flash attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from . import arch_models, cases
from .driver import MIRROR, SPLIT, Driver, Mode

WAYS = (("mapped", 1), ("mapped", 3), ("loaded", 3))
"""How weights get into memory, and the number of threads."""
STOCK = Mode()
MIRRORS = tuple(Mode(MIRROR, nodes) for nodes in (2, 3, 4))
SPLITS = tuple(Mode(SPLIT, nodes) for nodes in (2, 3))

Choice = tuple[str, str, int, str]


def choices(engine: str) -> list[Choice]:
    return [(engine, model, threads, way) for model in arch_models.names(engine) for way, threads in WAYS]


ALL = [choice for engine in cases.ENGINES for choice in choices(engine)]


def name(choice: Choice) -> str:
    return "-".join(map(str, choice))


def case(choice: Choice, tiny: Path) -> dict[str, Any]:
    engine, model, threads, way = choice
    # ik_llama.cpp cannot do both, see cases.flash().
    seqs = 1 if engine == "ik_llama.cpp" and way == "mapped" else 2
    context = cases.context(engine, model, threads=threads, seqs=seqs)
    if way == "loaded":
        context["flash"] = False
    ops = cases.everything(model, seqs=seqs)
    path = arch_models.write_model(model, tiny)
    return cases.case(name(choice), path, context, ops, mmap=way == "mapped", **cases.load_params(engine, model))


def request(engine: str, tiny: Path) -> Sequence[dict[str, Any]]:
    return [case(choice, tiny) for choice in choices(engine)]


@pytest.mark.patch("numa-state")
@pytest.mark.parametrize("choice", ALL, ids=name)
@pytest.mark.parametrize("mode", MIRRORS, ids=str)
def test_mirrored_logits_are_those_of_stock(numa: Driver, tiny: Path, choice: Choice, mode: Mode) -> None:
    engine = choice[0]
    got = numa.run(engine, mode, request(engine, tiny)).cases[name(choice)].ok
    expected = numa.run(f"{engine}-stock", STOCK, request(engine, tiny)).cases[name(choice)].ok

    assert got.results == expected.results
    cases.check_mirror(got.report, mode)


@pytest.mark.patch("numa-split")
@pytest.mark.parametrize("choice", ALL, ids=name)
@pytest.mark.parametrize("mode", SPLITS, ids=str)
def test_split_logits_are_those_of_stock(numa: Driver, tiny: Path, choice: Choice, mode: Mode) -> None:
    engine = choice[0]
    got = numa.run(engine, mode, request(engine, tiny)).cases[name(choice)].ok
    expected = numa.run(f"{engine}-stock", STOCK, request(engine, tiny)).cases[name(choice)].ok

    assert got.results == expected.results
    assert got.report is not None
    assert got.report["mode"] == "split"
    assert got.report["is_split"]
    cases.check_nodes(got.report, mode)


@pytest.mark.patch("numa-split")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("mode", [*MIRRORS, *SPLITS], ids=str)
def test_nothing_is_left_after_unloading(numa: Driver, tiny: Path, engine: str, mode: Mode) -> None:
    end = numa.run(engine, mode, request(engine, tiny)).end

    assert end["report"]["ranges"] == []
    assert end["report"]["n_nodes"] == mode.nodes
