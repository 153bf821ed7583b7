"""Python's generation speed against llama-bench of the same payload, in pairs within one run. Nothing fails by time.

    nox -s bench -- tests/benchmarks/test_generation_speed.py -s

FORKYARD_BENCH_ROUNDS (default 5) pairs are measured, FORKYARD_BENCH_THREADS (default 2) threads used. One pair is one
``llama-bench -p 0 -n 128``, one greedy completion of 128 tokens by an open model, and one with the default sampling:
decoding, sampling, detokenizing and assembling the answer against decoding alone. Other programs on the machine disturb
both, and threads that wait for each other more than anything: look at the rounds before believing a median.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import Llama
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = int(os.environ.get("FORKYARD_BENCH_ROUNDS", "5"))
THREADS = int(os.environ.get("FORKYARD_BENCH_THREADS", "2"))
TOKENS = 128
LLAMA_BENCH_TIMEOUT_S = 900


@pytest.fixture(params=["llama.cpp", "ik_llama.cpp"])
def llm(
    request: pytest.FixtureRequest,
    payloads: dict[str, Path],
    smollm2: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Llama]:
    """An open model of each engine in turn."""
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", str(payloads[request.param]))
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)
    with Llama(smollm2, engine=request.param, n_threads=THREADS) as model:
        yield model


def llama_bench(llm: Llama, folder: Path) -> float:
    """Tokens per second of one run of the payload's own llama-bench."""
    command = [
        str(llm.payload.tool("llama-bench")),
        *("-m", str(llm.model_path), "-p", "0", "-n", str(TOKENS), "-t", str(THREADS), "-r", "1", "-o", "json"),
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LLAMA_BENCH_TIMEOUT_S, check=True
    )
    (result,) = json.loads(done.stdout[done.stdout.index("[") :])
    return float(result["avg_ts"])


def python(llm: Llama, **sampling: Any) -> float:
    """Tokens per second of one completion, from the call to the finished answer."""
    # The tokens that would end the text early; a model has few, and these are all of this one's.
    ends = dict.fromkeys((llm.token_eos(), 0), -math.inf)
    started = time.perf_counter()
    body = llm([llm.token_bos()], max_tokens=TOKENS, logit_bias=ends, **sampling)
    seconds = time.perf_counter() - started
    assert isinstance(body, dict)
    assert body["usage"]["completion_tokens"] == TOKENS
    return TOKENS / seconds


def test_generation_against_llama_bench(llm: Llama, benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    python(llm, temperature=0)  # pages in what the first tokens touch, as llama-bench's own warm-up does
    rounds = [(llama_bench(llm, tmp_path), python(llm, temperature=0), python(llm, seed=1)) for _ in range(ROUNDS)]
    benchmark.pedantic(python, args=(llm,), kwargs={"temperature": 0}, rounds=ROUNDS, iterations=1)

    bench, greedy, sampled = (statistics.median(column) for column in zip(*rounds, strict=True))
    facts = {
        "engine": llm.engine,
        "variant": llm.payload.variant,
        "threads": THREADS,
        "rounds": [[round(value, 2) for value in one] for one in rounds],
        "llama_bench_tokens_per_s": round(bench, 2),
        "greedy_tokens_per_s": round(greedy, 2),
        "sampled_tokens_per_s": round(sampled, 2),
        "greedy_ratio": round(greedy / bench, 4),
        "sampled_ratio": round(sampled / bench, 4),
        "greedy_ratio_of_pairs": round(statistics.median(one[1] / one[0] for one in rounds), 4),
        "sampled_ratio_of_pairs": round(statistics.median(one[2] / one[0] for one in rounds), 4),
    }
    benchmark.extra_info.update(facts)
    print(f"\n{json.dumps(facts, indent=1)}")
