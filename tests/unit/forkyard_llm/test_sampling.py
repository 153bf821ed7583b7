from __future__ import annotations

import math

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.sampling import RANDOM_SEED, SamplingParams, fresh_seed
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"repeat_penalty": -1}, "repeat_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"presence_penalty": None}, "presence_penalty"),
        ({"penalty_last_n": -1}, "penalty_last_n"),
        ({"seed": -2}, "seed"),
        ({"temperature": 1e-7}, "temperature must be 0 or at least 1e-06"),
        ({"repeat_penalty": 1e-7}, "repeat_penalty"),
        ({"frequency_penalty": -3.4e38}, "frequency_penalty"),
        ({"presence_penalty": 1e7}, "presence_penalty"),
        ({"logit_bias": {5: 3.4e38}}, "logit_bias of token 5"),
        ({"logit_bias": [5]}, "logit_bias must map"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": {1: math.inf}}, "logit_bias"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(arguments, name: str):
    with pytest.raises(UsageError, match=name):
        SamplingParams(**arguments)


def test_edges_are_allowed():
    params = SamplingParams(temperature=0, top_k=0, top_p=0, min_p=1, logit_bias={3: -math.inf})
    assert params.greedy
    assert not params.penalizes


@pytest.mark.parametrize(
    ("arguments", "penalizes"),
    [
        ({}, False),
        ({"repeat_penalty": 1.1}, True),
        ({"frequency_penalty": 0.5}, True),
        ({"presence_penalty": -0.5}, True),
        ({"repeat_penalty": 1.1, "penalty_last_n": 0}, False),
    ],
)
def test_penalties_count_only_where_they_do_something(arguments, penalizes: bool):
    assert SamplingParams(**arguments).penalizes is penalizes


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        ({}, 40),
        ({"temperature": 0}, 1),
        ({"top_k": 0}, 0),
        ({"top_k": -1}, 0),
        ({"temperature": 0, "repeat_penalty": 1.1}, 65),
        ({"repeat_penalty": 1.1, "penalty_last_n": 8}, 48),
        ({"repeat_penalty": 0.9}, 0),
        ({"frequency_penalty": -0.1}, 0),
        ({"presence_penalty": 0.1, "top_k": 0}, 0),
        ({"logit_bias": {3: 1.0}}, 40),
    ],
)
def test_the_short_list_is_long_enough_for_whatever_the_parameters_do(arguments, length: int):
    assert SamplingParams(**arguments).shortlist == length


@given(
    st.lists(st.integers(-40, 40), min_size=8, max_size=40),
    st.lists(st.integers(0, 7), max_size=4),
    st.integers(1, 6),
)
def test_penalties_leave_the_best_within_the_short_list(logits: list[int], recent: list[int], top_k: int):
    params = SamplingParams(top_k=top_k, repeat_penalty=1.5, presence_penalty=2.0, penalty_last_n=4)
    listed = sorted(logits, reverse=True)[: params.shortlist]
    border = listed[-1] if len(listed) == params.shortlist else -math.inf

    def penalized(token: int) -> float:
        logit = float(logits[token])
        return (logit / 1.5 if logit > 0 else logit * 1.5) - 2.0 if token in recent else logit

    best = sorted(range(len(logits)), key=penalized, reverse=True)[:top_k]
    assert all(logits[token] >= border for token in best if penalized(token) > border)
    assert sum(penalized(token) >= border for token in range(len(logits)) if logits[token] >= border) >= min(
        top_k, len(logits)
    )


@given(st.integers(min_value=0, max_value=RANDOM_SEED - 1))
def test_a_given_seed_is_kept(seed: int):
    assert SamplingParams(seed=seed).resolved_seed() == seed


@pytest.mark.parametrize("seed", [None, -1, RANDOM_SEED])
def test_no_seed_means_a_known_fresh_one(seed):
    seeds = {SamplingParams(seed=seed).resolved_seed() for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= value < RANDOM_SEED for value in seeds)


def test_fresh_seeds_are_never_the_engines_own_word_for_any():
    assert all(0 <= fresh_seed() < RANDOM_SEED for _ in range(50))


def test_what_is_left_at_its_default_is_said_all_the_same():
    # ik_llama.cpp's own threshold turns XTC off, llama.cpp's own DRY looks 64 tokens back.
    settings = SamplingParams(xtc_probability=0.5, dry_multiplier=1.0, seed=1).settings()
    assert settings["xtc_threshold"] == 0.1
    assert settings["dry_penalty_last_n"] == -1
    assert "tfs_z" not in settings
    assert SamplingParams(tfs_z=0.5).settings()["tfs_z"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "basic"), [({}, True), ({"top_k": 1, "seed": 2}, True), ({"min_keep": 1}, False)]
)
def test_what_needs_the_samplers_of_common(arguments, basic: bool):
    assert SamplingParams(**arguments).basic is basic
