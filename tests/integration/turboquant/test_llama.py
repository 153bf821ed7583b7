"""The bindings' options for a precision tail, few bits and centers of K, on a real model."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import Llama
from forkyard_llm.cache_advice import advise
from forkyard_llm.errors import EngineError, UnsupportedOption, UsageError
from forkyard_llm.gguf_check import check
from forkyard_llm.payloads import read_payload

from ..fixes.tiny_models import Attention, write_dense
from .conftest import IK, TIMEOUT_S, Engine, on_each_engine

pytestmark = pytest.mark.patch("kv-tail")
COUNTING = "1, 2, 3, 4, 5, 6, 7,"


@pytest.fixture(autouse=True)
def only_this(patched: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings find the payload under test alone."""
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", str(patched.payload))
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)


@on_each_engine
def test_the_tail_is_made_and_the_model_counts_on(smollm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept = {"kv_tail_tokens": 64, "kv_sink_tokens": 4}
    with Llama(smollm2, n_threads=1, n_ctx=256, type_k="q4_0", type_v="q4_0", verbose=True, **kept) as llm:
        assert "kv-tail" in llm.capabilities
        assert llm(COUNTING, max_tokens=6, temperature=0)["choices"][0]["text"].startswith(" 8, 9")
    assert "(64 tokens, 4 sinks: " in capfd.readouterr().err


@on_each_engine
def test_a_negative_number_is_refused_by_name(smollm2: Path) -> None:
    with pytest.raises(UsageError, match="kv_tail_tokens"):
        Llama(smollm2, kv_tail_tokens=-1)


@on_each_engine
@pytest.mark.patch("cache-types")
def test_a_cache_of_few_bits_and_the_model_counts_on(patched: Engine, smollm2: Path) -> None:
    transforms = {"k_cache_hadamard": True, "v_cache_hadamard": True} if patched.name == IK else {}
    with Llama(smollm2, n_threads=1, n_ctx=256, type_k="ftq4", type_v="ftq3", **transforms) as llm:
        assert llm(COUNTING, max_tokens=6, temperature=0)["choices"][0]["text"].startswith(" 8, 9")


@on_each_engine
@pytest.mark.patch("cache-type-options")
def test_what_the_doctor_advises_is_taken(patched: Engine, smollm2: Path, tmp_path: Path) -> None:
    """As arguments of the bindings, and as options of the engine's programs."""
    payload = read_payload(patched.payload)
    advice = advise(check(smollm2), payload)
    assert advice.options["type_k"] == "ftq4"
    with Llama(smollm2, n_threads=1, n_ctx=256, **advice.options) as llm:
        assert llm(COUNTING, max_tokens=6, temperature=0)["choices"][0]["text"].startswith(" 8, 9")

    text = tmp_path / "text"
    text.write_text("One, two, three, four, five, six, seven, eight, nine, ten. " * 8)
    words = ["-m", str(smollm2), "-t", "1", "-c", "32", "-b", "32", "-f", str(text), "--chunks", "1", "-v"]
    command = [str(payload.tool("llama-perplexity")), *words, *advice.flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(128 tokens, 4 sinks: " in done.stderr


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("patched", [IK], indirect=True)
@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ({"type_k": "ftq4"}, r"type_k='ftq4' packs 64 numbers at a time.* have 32"),
        ({"type_v": "ftq2", "flash_attn": True}, r"type_v='ftq2' packs 64 numbers at a time.* have 32"),
        ({"type_k": "ftq4", "type_v": "bf16", "flash_attn": True}, "flash attention has no type_v='bf16'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_context_is_made(
    kinds: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = tmp_path / "narrow.gguf"
    write_dense(model, Attention(n_head=4, n_head_kv=2, head_dim=32, n_rot=32))
    with pytest.raises(UnsupportedOption, match=reason):
        Llama(model, n_ctx=256, **kinds)


@pytest.mark.patch("kv-center")
@pytest.mark.parametrize("kinds", [{"type_k": "ftq4", "type_v": "ftq3"}, {"type_k": "q4_0", "kv_center": True}])
def test_k_are_less_a_vector_and_the_model_counts_on(
    smollm2: Path, kinds: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with Llama(smollm2, n_threads=1, n_ctx=256, verbose=True, **kinds) as llm:
        assert llm(COUNTING, max_tokens=6, temperature=0)["choices"][0]["text"].startswith(" 8, 9")
    assert "centers of K from 128 tokens" in capfd.readouterr().err


@pytest.mark.patch("kv-layer-types")
def test_layers_have_types_of_their_own(smollm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = {"type_k": "q4_0", "type_v": "q4_0", "kv_layer_types": "first2=q8_0,29=f16/ftq4"}
    with Llama(smollm2, n_threads=1, n_ctx=256, verbose=True, **own) as llm:
        assert llm(COUNTING, max_tokens=6, temperature=0)["choices"][0]["text"].startswith(" 8, 9")
    # 30 layers with 192 values of K and of V for each token.
    bits = 27 * 2 * 4.5 + 2 * 2 * 8.5 + 16 + 4.25
    assert f"KV buffer size = {256 * 192 * bits / 8 / 2**20:8.2f} MiB" in capfd.readouterr().err


@pytest.mark.patch("kv-layer-types")
def test_layers_that_are_not_there_are_an_error(smollm2: Path) -> None:
    with pytest.raises(EngineError, match="the model has 0 to 29"):
        Llama(smollm2, n_threads=1, n_ctx=256, kv_layer_types="30=q8_0")
    with pytest.raises(UsageError, match="kv_layer_types"):
        Llama(smollm2, kv_layer_types=3)


@pytest.mark.patch("kv-center")
def test_centers_that_cannot_be_are_an_error(smollm2: Path) -> None:
    with pytest.raises(EngineError, match="does not do what kv_center=True asks for"):
        Llama(smollm2, n_threads=1, n_ctx=256, kv_center=True)


@pytest.mark.parametrize("patched", [IK], indirect=True)
@pytest.mark.patch("cache-type-options")
@pytest.mark.parametrize("transforms", [(), ("k",), ("k", "v")])
def test_values_that_are_not_transformed_are_warned_of(
    patched: Engine, smollm2: Path, capfd: pytest.CaptureFixture[str], transforms: tuple[str, ...]
) -> None:
    done = {f"{one}_cache_hadamard": True for one in transforms}
    with Llama(smollm2, engine=IK, n_threads=1, n_ctx=256, type_k="ftq4", type_v="ftq3", verbose=True, **done):
        said = capfd.readouterr().err
    for one in ("k", "v"):
        assert (f"{one.upper()} of ftq4, ftq3 and ftq2 lose less with -{one}had" in said) is (one not in transforms)
