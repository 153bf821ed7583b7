"""What begins, ends and happens at once: adapters, repacking, several contexts and threads, loading again, real models."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from . import arch_models, cases
from .driver import MIRROR, SPLIT, Answer, Driver, Mode

pytestmark = pytest.mark.patch("numa-split")

STOCK = Mode()
MIRRORED = Mode(MIRROR, 3)
MODES = (Mode(MIRROR, 2), Mode(MIRROR, 4), Mode(SPLIT, 3))
N_VOCAB_USED = 1000
"""Tokens of a real model that are drawn from; every such model has more."""


def both(
    numa: Driver, engine: str, mode: Mode, request: Sequence[dict[str, Any]], *, checked: bool = True
) -> list[Answer]:
    """The mirrored engine's answers, if they are those of an engine without the stack."""
    got = numa.run(engine, mode, request)
    expected = numa.run(f"{engine}-stock", STOCK, request)
    answers = []
    for case in request:
        answer = got.cases[case["name"]].ok
        assert answer.results == expected.cases[case["name"]].ok.results, case["name"]
        if checked and mode.strategy == MIRROR:
            cases.check_mirror(answer.report, mode)
        answers.append(answer)
    return answers


@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("model", ["dense", "dense-q4_0", "dense-q4_k"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_adapter(numa: Driver, tiny: Path, engine: str, model: str, mode: Mode) -> None:
    rng = random.Random(2)
    prompt, word = cases.tokens(rng, 20), cases.tokens(rng, 1)
    ops: list[list[Any]] = []
    for scale in (0.0, 1.0, 0.5, 0.0):
        ops += [["clear", 0, True], ["adapter", 0, scale], ["decode", 0, [[0, prompt]]], ["decode", 0, [[0, word]]]]
    context = cases.adapted(engine, cases.context(engine, model, threads=3))
    path, adapter = arch_models.write_model(model, tiny), str(arch_models.write_adapter(tiny))
    (answer,) = both(numa, engine, mode, [cases.case(model, path, context, ops, adapter=adapter)])

    decoded = [result for result in answer.results if result.startswith("decode")]
    assert decoded[0:2] == decoded[6:8]
    assert len(set(decoded)) == 6, "the adapter changed nothing"


@pytest.mark.parametrize(
    "model", ["dense-q4_0", "dense-q8_0", "dense-q4_k", "dense-q6_k", "dense-iq4_nl", "experts-q4_0"]
)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_weights_repacked_while_loading(numa: Driver, tiny: Path, model: str, mode: Mode) -> None:
    engine = "ik_llama.cpp"
    path = arch_models.write_model(model, tiny)
    ops = cases.everything(model, seqs=1)
    request = [
        cases.case(
            f"{model}-{threads}",
            path,
            cases.context(engine, model, threads=threads),
            ops,
            mmap=False,
            model_params={"repack_tensors": True},
        )
        for threads in (1, 3)
    ]
    both(numa, engine, mode, request)


# Not "sinks": where experts have biases, upstream's own repacking of merged ones writes past its buffer and aborts.
@pytest.mark.parametrize("model", ["dense", "experts", "latent"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_matrices_merged_while_loading(numa: Driver, tiny: Path, model: str, mode: Mode) -> None:
    engine = "ik_llama.cpp"
    params = {**cases.load_params(engine, model).get("model_params", {}), "merge_qkv": True, "merge_up_gate_exps": True}
    path = arch_models.write_model(model, tiny)
    context = cases.context(engine, model, threads=3)
    case = cases.case(model, path, context, cases.everything(model, seqs=1), model_params=params)
    both(numa, engine, mode, [case])


@pytest.mark.parametrize("extra", [True, False], ids=["repacked", "plain"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_with_and_without_extra_buffers(numa: Driver, tiny: Path, mode: Mode, extra: bool) -> None:
    engine = "llama.cpp"
    request = [
        cases.case(
            f"{model}-{mmap}",
            arch_models.write_model(model, tiny),
            cases.context(engine, model, threads=3),
            cases.everything(model, seqs=1),
            mmap=mmap,
            model_params={"use_extra_bufts": extra},
        )
        for model in ("dense-q4_0", "dense-q4_k", "dense-iq4_nl", "experts-q4_k")
        for mmap in (True, False)
    ]
    both(numa, engine, mode, request)


def several(engine: str, tiny: Path, model: str, *, parallel: bool, pool: bool = False) -> dict[str, Any]:
    """Three contexts of one model with threads of their own, each doing everything; interleaved or at once."""
    seqs = 1 if engine == "ik_llama.cpp" else 2
    contexts = [cases.context(engine, model, threads=threads, seqs=seqs, pool=pool) for threads in (1, 2, 3)]
    lists = [cases.everything(model, seqs=seqs, seed=seed) for seed in range(len(contexts))]
    ops = [[word, index, *rest] for step in zip(*lists, strict=True) for index, (word, _, *rest) in enumerate(step)]
    path = arch_models.write_model(model, tiny)
    case = {"name": f"{model}-{parallel}-{pool}", "model": str(path), "contexts": contexts, "ops": ops}
    return {**case, "parallel": parallel, **cases.load_params(engine, model)}


@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_several_contexts_in_turn_and_at_once(numa: Driver, tiny: Path, engine: str, mode: Mode) -> None:
    models = ("dense-q4_0", "experts", "hybrid-delta")
    pools = (False, True) if engine == "llama.cpp" else (False,)
    turns = [several(engine, tiny, model, parallel=False) for model in models]
    at_once = [several(engine, tiny, model, parallel=True, pool=pool) for model in models for pool in pools]
    expected = {case["model"]: case["name"] for case in turns}
    in_turn = both(numa, engine, mode, turns)
    got = numa.run(engine, mode, at_once)

    by_name = {case["name"]: answer.results for case, answer in zip(turns, in_turn, strict=True)}
    for case in at_once:
        answer = got.cases[case["name"]].ok
        assert answer.results == by_name[expected[case["model"]]]
        if mode.strategy == MIRROR:
            cases.check_mirror(answer.report, mode)


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_loading_again_and_again(numa: Driver, tiny: Path, engine: str) -> None:
    names = ("dense-q4_0", "hybrid-delta", "dense-q4_0", "latent", "hybrid-delta")
    request = [
        {
            **cases.case(
                f"{number}-{model}",
                arch_models.write_model(model, tiny),
                cases.context(engine, model, threads=3),
                cases.everything(model, seqs=1),
                **cases.load_params(engine, model),
            ),
            "fresh": True,
            "mmap": number % 2 == 0,
        }
        for number, model in enumerate(names)
    ]
    answers = both(numa, engine, MIRRORED, request)

    sizes = [sorted(span["bytes"] for span in (answer.report or {})["ranges"]) for answer in answers]
    assert all(len(size) <= 4 for size in sizes), "ranges of models that are gone"
    assert numa.run(engine, MIRRORED, request).end["report"]["ranges"] == []


@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_real_model(numa: Driver, engine: str, mode: Mode, name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    rng = random.Random(3)
    lengths = (40, 1, 1, 3)
    ops: list[list[Any]] = [["decode", 0, [[0, cases.tokens(rng, n, N_VOCAB_USED)]]] for n in lengths]
    ops += [
        ["save", 0, 0],
        ["clear", 0, True],
        ["restore", 0, 0],
        ["decode", 0, [[0, cases.tokens(rng, 1, N_VOCAB_USED)]]],
    ]
    context = cases.context(engine, name, threads=3)
    both(numa, engine, mode, [cases.case(name, path, context, ops, mmap=mode.nodes == 2)])
