"""The options for a precision tail, cache types of few bits and centers of K in the engine's tools."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from pydoc_data import topics

import pytest
from forkyard_llm.payloads import read_payload

from ..conftest import mean_divergence
from .conftest import IK, TIMEOUT_S, Engine, on_each_engine

pytestmark = pytest.mark.patch("kv-tail-options")


def run(engine: Engine, tool: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(read_payload(engine.payload).tool(tool)), *words]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=TIMEOUT_S, check=False)


@on_each_engine
def test_llama_bench_measures_each_number(patched: Engine, smollm2: Path) -> None:
    words = (
        "-m",
        str(smollm2),
        "-t",
        "1",
        "-r",
        "1",
        "-p",
        "8",
        "-n",
        "0",
        "-ctk",
        "q4_0",
        "-ctv",
        "q4_0",
        "-o",
        "json",
    )
    done = run(patched, "llama-bench", *words, "--kv-tail-tokens", "0,64", "--kv-sink-tokens", "4")
    assert done.returncode == 0, done.stderr[-2000:]
    tails = [(row["kv_tail_tokens"], row["kv_sink_tokens"]) for row in json.loads(done.stdout)]
    assert tails == [(0, 4), (64, 4)]


@on_each_engine
@pytest.mark.parametrize("option", ["--kv-tail-tokens", "--kv-sink-tokens"])
def test_a_negative_number_is_refused(patched: Engine, option: str) -> None:
    done = run(patched, "llama-perplexity", option, "-1")
    assert done.returncode != 0
    assert "the number of tokens must not be negative" in done.stderr


@on_each_engine
def test_the_environment_is_read(patched: Engine, smollm2: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("One, two, three, four, five, six, seven, eight, nine, ten. " * 8)
    words = ("-m", str(smollm2), "-t", "1", "-c", "32", "-b", "32", "-f", str(text), "--chunks", "1", "-v")
    words += ("-ctk", "q4_0", "-ctv", "q4_0")
    done = run(patched, "llama-perplexity", *words, LLAMA_ARG_KV_TAIL_TOKENS="8", LLAMA_ARG_KV_SINK_TOKENS="2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(8 tokens, 2 sinks: " in done.stderr


def saved(engine: Engine, model: Path, folder: Path, context: int) -> tuple[str, ...]:
    """Save what is predicted with an f16 cache; the words that compare another cache with it."""
    text, logits = folder / "text", str(folder / "logits")
    text.write_text("\n\n".join(topics.topics[name] for name in sorted(topics.topics))[: 16 * context])
    size = str(context)
    words = ("-m", str(model), "-t", "1", "-c", size, "-b", size, "-f", str(text), "--chunks", "1", "-fa", "on")
    done = run(engine, "llama-perplexity", *words, "--save-all-logits", logits)
    assert done.returncode == 0, done.stderr[-2000:]
    return (*words, "--kl-divergence-base", logits)


def divergence(engine: Engine, words: tuple[str, ...], *cache: str) -> float:
    """Mean KL divergence of what is predicted with a cache from what was saved."""
    done = run(engine, "llama-perplexity", *words, "--kl-divergence", *cache)
    assert done.returncode == 0, done.stderr[-2000:]
    return mean_divergence(done.stdout)[0]


@on_each_engine
def test_a_tail_halves_the_divergence_of_a_real_model(patched: Engine, smollm2: Path, tmp_path: Path) -> None:
    words = saved(patched, smollm2, tmp_path, 256)
    four_bits = ("-ctk", "q4_0", "-ctv", "q4_0")
    none = divergence(patched, words, *four_bits)
    assert divergence(patched, words, *four_bits, "--kv-tail-tokens", "64") <= none / 2


@on_each_engine
@pytest.mark.patch("cache-type-options")
def test_llama_bench_knows_the_types(patched: Engine, smollm2: Path) -> None:
    words = ("-m", str(smollm2), "-t", "1", "-r", "1", "-p", "8", "-n", "0", "-fa", "1", "-o", "json")
    done = run(patched, "llama-bench", *words, "-ctk", "ftq4,ftq3", "-ctv", "ftq2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(row["type_k"], row["type_v"]) for row in json.loads(done.stdout)] == [("ftq4", "ftq2"), ("ftq3", "ftq2")]


@pytest.mark.parametrize("patched", [IK], indirect=True)
@pytest.mark.patch("cache-type-options")
def test_fewer_bits_lose_as_little_as_q4_0_without_centers(patched: Engine, smollm2: Path, tmp_path: Path) -> None:
    """In 8 windows by a tenth less; in this one window the two are near each other. A type that is read wrong loses tens."""
    words = saved(patched, smollm2, tmp_path, 512)
    stock, ours = (
        divergence(patched, words, "-ctk", kind, "-ctv", kind, "-khad", "-vhad") for kind in ("q4_0", "ftq4")
    )
    assert ours <= 1.2 * stock


@pytest.mark.deep
@pytest.mark.parametrize("patched", [IK], indirect=True)
@pytest.mark.patch("cache-type-options")
def test_some_layers_have_a_type_of_their_own(patched: Engine, smollm2: Path, tmp_path: Path) -> None:
    words = saved(patched, smollm2, tmp_path, 256)
    all_two = ("-ctk", "ftq2", "-ctv", "ftq2", "-khad", "-vhad")
    mixed = (*all_two, "-ctk-first", "ftq4,10", "-ctv-last", "ftq4,10")
    assert divergence(patched, words, *mixed) <= 0.9 * divergence(patched, words, *all_two)


@pytest.mark.patch("kv-center")
def test_centers_lessen_the_divergence_of_a_real_model(patched: Engine, smollm2: Path, tmp_path: Path) -> None:
    """By two fifths with two bits and 8 windows of 512."""
    words = saved(patched, smollm2, tmp_path, 512)
    two_bits = ("-ctk", "ftq2", "-ctv", "ftq2")
    whole = divergence(patched, words, *two_bits, "--kv-center", "off")
    assert divergence(patched, words, *two_bits) <= 0.85 * whole


@pytest.mark.patch("kv-center")
def test_another_word_for_centers_is_refused(patched: Engine) -> None:
    done = run(patched, "llama-perplexity", "--kv-center", "maybe")
    assert done.returncode != 0
    assert "unknown value for --kv-center: 'maybe'" in done.stderr
