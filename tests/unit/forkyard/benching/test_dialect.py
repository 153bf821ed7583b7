from __future__ import annotations

import json
from typing import Any

import pytest

from forkyard.benching.dialect import last_words, read_results

# What the two engines print with -o json on SmolLM2-135M, shortened.
UPSTREAM = """\
[
  {
    "build_commit": "0c1e57098-forkyard",
    "backends": "CPU",
    "model_type": "llama 256M Q4_1",
    "n_prompt": 16,
    "n_gen": 0,
    "n_depth": 0,
    "avg_ts": 85.113633,
    "stddev_ts": 0.000000,
    "numa_local": 100.000000,
    "samples_ns": [ 187983987 ],
    "samples_ts": [ 85.1136 ]
  },
  {
    "build_commit": "0c1e57098-forkyard",
    "model_type": "llama 256M Q4_1",
    "n_prompt": 0,
    "n_gen": 8,
    "avg_ts": 40.5,
    "samples_ts": [ 40.5 ]
  }
]
"""
IK = """\
[
llm_scale_gate_inp_s: n_embd = 256
  {
    "build_commit": "55d3c05bf-forkyard",
    "cuda": false,
    "model_type": "llama ?B Q4_1",
    "tensor_split": "0.00",
    "n_prompt": 16,
    "n_gen": 0,
    "avg_ts": 32.7,
    "test": "pp16",
    "samples_ts": [ 32.7 ]
  }a line of the engine's
,
  {
    "model_type": "llama ?B Q4_1",
    "n_prompt": 0,
    "n_gen": 8,
    "avg_ts": 12.5,
    "test": "tg8"
  }
]
"""


def test_upstream() -> None:
    first, second = read_results(UPSTREAM) or []
    assert (first.test, first.speed, first.local, first.model) == ("pp16", 85.113633, 100.0, "llama 256M Q4_1")
    assert (second.test, second.speed, second.local) == ("tg8", 40.5, None)


def test_ik_with_lines_of_its_own_in_between() -> None:
    first, second = read_results(IK) or []
    assert (first.test, first.speed, first.local) == ("pp16", 32.7, None)
    assert (second.test, second.speed) == ("tg8", 12.5)


@pytest.mark.parametrize("noise", ["ggml_numa: [0] found 2 nodes\n", "[New LWP 23175]\n", "[\n", "a ] b { c\n"])
def test_lines_before_do_not_matter(noise: str) -> None:
    assert [one.test for one in read_results(noise + UPSTREAM) or []] == ["pp16", "tg8"]


@pytest.mark.parametrize("text", ["", "[]", "[\n]", "no answer", '[\n  {"n_prompt": 1, "n_gen": 0}\n]', UPSTREAM[:300]])
def test_no_answer_is_none(text: str) -> None:
    assert read_results(text) is None


@pytest.mark.parametrize(
    "changes", [{"avg_ts": 0}, {"avg_ts": -1.0}, {"avg_ts": "9"}, {"avg_ts": True}, {"n_gen": "8"}]
)
def test_an_answer_that_means_nothing_is_none(changes: dict[str, Any]) -> None:
    row = {"model_type": "x", "n_prompt": 0, "n_gen": 8, "avg_ts": 5.0, **changes}
    assert read_results(f"[\n{json.dumps(row, indent=2)}\n]") is None


def test_an_answer_that_is_no_number_is_none() -> None:
    assert read_results('[\n{"n_prompt": 0, "n_gen": 8, "avg_ts": NaN}\n]') is None


def test_last_words() -> None:
    assert last_words(["a", "", "b ", "c", "d"]) == "b / c / d"
    assert last_words([]) == "it printed nothing"
