"""Tokens with f16 copies beside a quantized KV cache must count as in an f16 cache, whatever is done with the cache.

A tail that covers all tokens gives the logits of an f16 cache, and a quantized one without a tail does not: by how
much it misses them is the measure. What a tail covers does not depend on how tokens are divided into batches.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from ..numa.attention_models import HEAD_DIM, N_HEAD_KV
from ..split.split_probe import REFUSED
from .conftest import ENGINE, IK, Case, Engine, Failure, Logits, on_both, on_each_engine

pytestmark = pytest.mark.patch("kv-tail")
N_LAYER = 2
"""Of the model ``dense``."""
ALL = 256
"""A tail that covers every token of an act."""
NEAR = 0.15
"""Of the error without a tail, what is left with one that covers all: the copies are rounded to f16 after a rotation."""
SAME = 0.25
"""Of what a tail changes, how far sums in another order are apart: a value that is rounded to 4 bits may get another code."""

ROUNDING = 1e-5
"""Relative error of sums of floats in another order."""

MODELS = ("dense", "window", "sinks", "hybrid-delta", "experts")
ACTS = ("plain", "shift", "copy", "keep", "sequence", "state", "back", "pair")
COVERED = (
    *(Case(model, tail=ALL) for model in MODELS),
    *(Case(act=act, tail=ALL) for act in ACTS if act != "plain"),
    *(Case(act=act, tail=ALL, unified=False) for act in ("copy", "sequence", "state", "pair")),
    Case("window", act="copy", tail=ALL, unified=False),
    Case("window", act="state", tail=ALL),
    Case(k="q8_0", v="q4_0", tail=ALL),
    Case(k="q4_0", v="f16", tail=ALL),
    Case(k="f16", v="q4_0", tail=ALL),
    Case(k="q4_0", v="f16", tail=ALL, flash=False),
    Case(sinks=ALL),
    Case(tail=2 * ALL, length=320, step=32),
)
DIVIDED = (
    Case(tail=8, sinks=4, length=200),
    Case(tail=1, length=100),
    Case(sinks=4, length=100),
    Case("window", tail=8, length=100),
    Case("window", tail=8, length=100, unified=False),
    Case(tail=8, sinks=4, length=100, act="pair"),
    Case(tail=8, sinks=4, length=100, act="pair", unified=False),
    Case(tail=8, sinks=4, length=100, act="shift-sinks"),
)
COVERED_ON_IK = (
    *(Case(act=act, tail=ALL, hadamard=True) for act in ("plain", "shift", "state")),
    Case(act="defrag", tail=ALL),
)
FEW_BITS = (Case(k="ftq4", v="ftq3", tail=ALL), Case(k="f16", v="ftq2", tail=ALL))
FEW_BITS_ON_IK = tuple(Case(k="ftq2", v="ftq4", act=act, tail=ALL, hadamard=True) for act in ("shift", "defrag"))
OFF = (
    Case(),
    Case(v="f16", flash=False),
    Case("window", act="copy"),
    Case(act="shift"),
    Case(act="state", unified=False),
)


def error(got: Logits, expected: Logits) -> float:
    """The mean relative L2 error of the rows; NaN if there is one in them."""
    return float(np.mean(np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)))


def lost(engine: Engine, case: Case) -> tuple[float, float]:
    """How far a case is from the same with an f16 cache: with its tail, and without."""
    whole = engine.logits(replace(case, k="f16", v="f16", tail=0, sinks=0))
    return error(engine.logits(case), whole), error(engine.logits(replace(case, tail=0, sinks=0)), whole)


@on_both(COVERED, *COVERED_ON_IK)
def test_a_covered_token_counts_as_in_an_f16_cache(patched: Engine, case: Case) -> None:
    tail, none = lost(patched, case)
    assert tail <= NEAR * none


@pytest.mark.patch("cache-types")
@on_both(FEW_BITS, *FEW_BITS_ON_IK)
def test_a_covered_token_of_few_bits_counts_as_in_an_f16_cache(patched: Engine, case: Case) -> None:
    tail, none = lost(patched, case)
    assert tail <= NEAR * none


@on_both(DIVIDED)
def test_batches_do_not_decide_what_is_covered(patched: Engine, case: Case) -> None:
    one_by_one = patched.logits(replace(case, step=1))
    none = error(patched.logits(replace(case, tail=0, sinks=0)), one_by_one)
    assert error(patched.logits(case), one_by_one) <= SAME * none


@on_both([*DIVIDED, *(Case(tail=8, sinks=4, length=100, act=act) for act in ("back", "idle"))])
def test_slots_do_not_decide_what_is_covered(patched: Engine, case: Case) -> None:
    # With larger batches there is a slot for every token, and none has to give way.
    roomy = patched.logits(replace(case, ubatch=256))
    none = error(patched.logits(replace(case, tail=0, sinks=0)), roomy)
    assert error(patched.logits(case), roomy) <= SAME * none


@on_each_engine
def test_tokens_that_were_removed_again_change_nothing(patched: Engine) -> None:
    case = Case(tail=8, sinks=4, length=100)
    plain = patched.logits(case)
    none = error(patched.logits(replace(case, tail=0, sinks=0)), plain)
    assert error(patched.logits(replace(case, act="back")), plain) <= SAME * none


@on_both(
    Case(tail=8, sinks=4, length=100, act=act, unified=unified)
    for act in ("sequence", "state", "copy")
    for unified in (True, False)
)
def test_nothing_is_lost_on_the_way(patched: Engine, case: Case) -> None:
    got, plain = patched.logits(case), patched.logits(replace(case, act="plain"))
    # ik_llama.cpp adds in the order of the slots, which are others afterwards.
    assert np.array_equal(got, plain) if patched.name == ENGINE else error(got, plain) <= ROUNDING


@on_each_engine
def test_a_tail_covers_more_than_none_and_less_than_all(patched: Engine) -> None:
    case = Case(tail=24, sinks=4, length=100)
    part, none = lost(patched, case)
    every, _ = lost(patched, replace(case, tail=ALL))
    assert every < part < none


@on_both(OFF)
def test_without_the_options_every_bit_is_as_before(patched: Engine, stock: Engine, case: Case) -> None:
    assert np.array_equal(patched.logits(case), stock.logits(case))


@on_each_engine
def test_a_graph_serves_only_as_many_copies_as_it_was_made_for(patched: Engine) -> None:
    # 512 cells and 512 slots, then 768 and 256: as many columns.
    case = Case(tail=8, length=600, step=500, ubatch=500)
    plain = patched.logits(case)
    none = error(patched.logits(replace(case, tail=0)), plain)
    assert error(patched.logits(replace(case, act="regrown")), plain) <= SAME * none


@on_both(Case(tail=24, sinks=4, unified=unified) for unified in (True, False))
def test_the_memory_is_said(patched: Engine, case: Case) -> None:
    patched.logits(case)
    # What is kept of each sequence and a batch, in whole 64: one buffer for both sequences, or one for each.
    slots, streams = (128, 1) if case.unified else (64, 2)
    mebibytes = 2 * N_LAYER * N_HEAD_KV * HEAD_DIM * slots * streams * 2 / 2**20
    said = re.search(r"KV tail buffer size = +([0-9.]+) MiB \((.*)\)", patched.said[case])
    assert said
    # ik_llama.cpp counts what aligns the buffer as well.
    assert float(said[1]) == pytest.approx(mebibytes, abs=0.01)
    assert said[2] == f"24 tokens, 4 sinks: {slots} slots, {streams} streams"


@on_each_engine
def test_a_cache_that_is_not_quantized_needs_no_tail(patched: Engine) -> None:
    case = Case(k="f16", v="f16", tail=24)
    assert np.array_equal(patched.logits(case), patched.logits(replace(case, tail=0)))
    assert "no precision tail, the cache is not quantized" in patched.said[case]


@on_each_engine
@pytest.mark.parametrize("tail", [8, 0])
def test_a_state_of_other_options_is_refused(patched: Engine, tail: int) -> None:
    failure = patched.run(Case(tail=tail, act="foreign"))
    assert isinstance(failure, Failure)
    assert failure.status == REFUSED
    saved = f"the state was saved with --kv-tail-tokens {tail} --kv-sink-tokens 0, this context has {8 - tail} and 0"
    assert saved in failure.output


@pytest.mark.parametrize(
    ("patched", "case", "reason"),
    [
        (ENGINE, Case("latent", tail=8), "do not work with the attention of this model (deepseek2)"),
        (ENGINE, Case("compressed", tail=8), "do not work with the memory of this model"),
        (ENGINE, Case("scan", k="f16", v="f16", tail=8), "do not work with the memory of this model"),
        (IK, Case("latent", tail=8), "do not work with latent attention, -mla 0 turns it off"),
        (IK, Case(v="f16", tail=8, flash=False), "need flash attention (-fa on)"),
    ],
    ids=str,
    indirect=["patched"],
)
def test_what_cannot_work_is_refused(patched: Engine, case: Case, reason: str) -> None:
    failure = patched.run(case)
    assert isinstance(failure, Failure)
    assert failure.status == REFUSED
    assert reason in failure.output


@pytest.mark.parametrize(
    "case", [Case(tail=ALL, devices=1), Case("window", tail=ALL, devices=1, act="copy", unified=False)], ids=str
)
def test_a_device_without_the_kernel_covers_the_same(remote: Engine, case: Case) -> None:
    tail, none = lost(remote, case)
    assert tail <= NEAR * none
    assert "has no attention with a precision tail in one kernel" in remote.said[case]


def test_a_model_that_is_split_within_its_layers_is_refused(remote: Engine) -> None:
    failure = remote.run(Case(tail=8, split="tensor", devices=2))
    assert isinstance(failure, Failure)
    assert failure.status == REFUSED
    assert "do not work with a model that is split within its layers (-sm tensor)" in failure.output
