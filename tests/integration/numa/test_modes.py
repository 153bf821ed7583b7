"""What is mirrored is what was asked for, and without the mode nothing is different from an engine without the stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from . import arch_models, cases
from .driver import ALL, BEST_EFFORT, KV, MIRROR, OFF, SPLIT, WEIGHTS, Driver, Mode, real_nodes

STOCK = Mode()
MODELS = ("dense-q4_0", "experts", "hybrid-delta")
WORDS: Mapping[str, int | None] = {
    "weights": WEIGHTS,
    "kv": KV,
    "all": ALL,
    "none": 0,
    "weights,kv": ALL,
    "best-effort": ALL | BEST_EFFORT,
    "kv,best-effort": KV | BEST_EFFORT,
    "": None,
    "weight": None,
    "weights,": None,
    "weights kv": None,
    "none,kv": None,
}
"""What --numa-mirror takes and what it means; None: refused."""


def request(engine: str, tiny: Path) -> list[dict[str, Any]]:
    seqs = 1 if engine == "ik_llama.cpp" else 2
    context = {model: cases.context(engine, model, threads=3, seqs=seqs) for model in MODELS}
    return [
        cases.case(model, arch_models.write_model(model, tiny), context[model], cases.everything(model, seqs=seqs))
        for model in MODELS
    ]


def same_as_stock(numa: Driver, engine: str, mode: Mode, tiny: Path) -> Sequence[Mapping[str, Any]]:
    """The reports of the cases, if their logits are those of an engine without the stack."""
    got = numa.run(engine, mode, request(engine, tiny), parse=tuple(WORDS))
    expected = numa.run(f"{engine}-stock", STOCK, request(engine, tiny))
    reports = []
    for model in MODELS:
        assert got.cases[model].ok.results == expected.cases[model].ok.results
        report = got.cases[model].report
        assert report is not None
        reports.append(report)
    return reports


@pytest.mark.patch("numa-state")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize(
    ("what", "kinds"), [(WEIGHTS, {"weights"}), (KV, {"kv"}), (ALL | BEST_EFFORT, {"kv", "weights"})]
)
def test_only_what_was_asked_for_is_mirrored(numa: Driver, tiny: Path, engine: str, what: int, kinds: set[str]) -> None:
    mode = Mode(MIRROR, 3, what)

    for report in same_as_stock(numa, engine, mode, tiny):
        cases.check_nodes(report, mode)
        assert {span["kind"] for span in report["ranges"]} == {"kv", "weights"}
        for span in report["ranges"]:
            assert span["mirrored"] == (span["kind"] in kinds), span
            assert span["differs"] == 0, span
        # Nodes 1 and 2 read from node 0 what has no copy; node 0 has everything.
        remote = [node["remote"] for node in report["nodes"]]
        assert remote[0] == 0
        assert all(remote[1:]) == (kinds != {"kv", "weights"})


@pytest.mark.patch("numa-weights")
@pytest.mark.parametrize("engine", cases.ENGINES)
def test_weights_alone_are_read_from_their_copies(numa: Driver, tiny: Path, engine: str) -> None:
    mode = Mode(MIRROR, 3, WEIGHTS)

    for report in same_as_stock(numa, engine, mode, tiny):
        cases.check_nodes(report, mode)
        weights = [span for span in report["ranges"] if span["kind"] == "weights"]
        assert weights
        assert all(span["mirrored"] and span["differs"] == 0 for span in weights)


@pytest.mark.patch("numa-weights")
@pytest.mark.parametrize("engine", cases.ENGINES)
def test_none_mirrors_nothing_and_counts(numa: Driver, tiny: Path, engine: str) -> None:
    mode = Mode(MIRROR, 3, 0)

    for report in same_as_stock(numa, engine, mode, tiny):
        cases.check_nodes(report, mode)
        assert not any(span["mirrored"] for span in report["ranges"])
        assert [node["remote"] > 0 for node in report["nodes"]] == [False, True, True]


@pytest.mark.patch("numa-nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("nodes", [0, 2])
def test_off_is_off(numa: Driver, tiny: Path, engine: str, nodes: int) -> None:
    for report in same_as_stock(numa, engine, Mode(OFF, nodes), tiny):
        assert report["mode"] == "off"
        assert report["n_nodes"] == 0
        assert report["nodes"] == []
        assert report["ranges"] == []


@pytest.mark.patch("numa-nodes")
@pytest.mark.skipif(real_nodes() > 1, reason="this machine has several NUMA nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize(("strategy", "verb"), [(MIRROR, "mirror"), (SPLIT, "split")])
def test_one_node_is_not_enough(numa: Driver, tiny: Path, engine: str, strategy: int, verb: str) -> None:
    for report in same_as_stock(numa, engine, Mode(strategy), tiny):
        assert report["mode"] == "off"
        assert report["nodes"] == report["ranges"] == []
    output = numa.run(engine, Mode(strategy), request(engine, tiny), parse=tuple(WORDS)).output
    assert f"1 NUMA node(s): there is nothing to {verb}" in output


@pytest.mark.patch("numa-nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("fake", ["1", "17", "-2", "x"])
def test_a_senseless_number_of_fake_nodes_is_said_and_ignored(numa: Driver, tiny: Path, engine: str, fake: str) -> None:
    mode = Mode(MIRROR, environment=(("GGML_NUMA_FAKE_NODES", fake),))
    answers = numa.run(engine, mode, request(engine, tiny)[:1])

    assert f"GGML_NUMA_FAKE_NODES={fake} is not a number from 2 to 16" in answers.output
    report = answers.cases[MODELS[0]].ok.report
    assert report is not None
    assert report["n_nodes"] == (real_nodes() if real_nodes() > 1 else 0)


@pytest.mark.patch("numa-nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
def test_words_mean_what_the_help_says(numa: Driver, tiny: Path, engine: str) -> None:
    end = numa.run(engine, Mode(OFF), request(engine, tiny), parse=tuple(WORDS)).end

    assert dict(zip(WORDS, end["parsed"], strict=True)) == dict(WORDS)
