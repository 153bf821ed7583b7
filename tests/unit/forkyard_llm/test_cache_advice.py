"""The types of the KV cache that are advised for a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.cache_advice import advise
from forkyard_llm.gguf_reader import GgufSummary, Value
from forkyard_llm.payloads import Payload, discover

MakePayload = Callable[..., Path]
PLAIN = {"block_count": 30, "embedding_length": 576, "attention.head_count": 9, "attention.head_count_kv": 3}
TAIL = {"kv_tail_tokens": 128, "kv_sink_tokens": 4}
FTQ4 = {"type_k": "ftq4", "type_v": "ftq4"}


def model(*tensors: str, **more: int | list[int]) -> GgufSummary:
    """A summary with these tensors; names of ``more`` have ``__`` for a dot."""
    given = {**PLAIN, **{name.replace("__", "."): value for name, value in more.items()}}
    values = {
        f"any.{name}": Value(4, len(value) if isinstance(value, list) else None, value, 0)
        for name, value in given.items()
    }
    return GgufSummary(Path("m.gguf"), 3, "any", 32, 0, 0, values, dict.fromkeys(tensors, (64,)))


@pytest.fixture
def payload(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Payload]:
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())

    def made(name: str = "forkyard-llama-cpp-avx2", **more: Any) -> Payload:
        make_payload(name, **{"capabilities": ["kv-tail"], **more})
        (found,) = (one for one in discover() if one.distribution == name)
        return found

    return made


def test_most_models(payload: Callable[..., Payload]) -> None:
    advice = advise(model(), payload())
    assert advice.options == {**FTQ4, **TAIL}
    assert advice.flags == "-ctk ftq4 -ctv ftq4 --kv-tail-tokens 128 --kv-sink-tokens 4"
    # 3 heads of 64 values in 30 layers: a block of 34 bytes, or 64 halves, for K and for V
    assert (advice.bytes_per_token, advice.f16_bytes_per_token) == (30 * 3 * 2 * 34, 30 * 3 * 2 * 128)


def test_ik_llama_cpp_transforms_only_when_it_is_told(payload: Callable[..., Payload]) -> None:
    advice = advise(model(), payload("forkyard-ik-llama-cpp-avx2"))
    assert advice.options == {**FTQ4, **TAIL, "k_cache_hadamard": True, "v_cache_hadamard": True}
    assert advice.flags.endswith("-khad -vhad")


@pytest.mark.parametrize("name", ["blk.0.attn_k.bias", "blk.3.attn_qkv.bias"])
def test_k_with_biases_takes_eight_bits(payload: Callable[..., Payload], name: str) -> None:
    assert advise(model(name), payload()).options == {"type_k": "q8_0", "type_v": "ftq4", **TAIL}


def test_latent_attention_has_no_tail(payload: Callable[..., Payload]) -> None:
    latent = model(attention__kv_lora_rank=512, attention__key_length=576, attention__value_length=512)
    assert advise(latent, payload()).options == {"type_k": "q8_0", "type_v": "q8_0"}


@pytest.mark.parametrize(
    ("key", "value", "types"),
    [(80, 80, ("f16", "f16")), (96, 96, ("q8_0", "q8_0")), (192, 128, ("ftq4", "ftq4")), (96, 128, ("q8_0", "ftq4"))],
)
def test_heads_that_blocks_do_not_divide(
    payload: Callable[..., Payload], key: int, value: int, types: tuple[str, str]
) -> None:
    found = advise(model(attention__key_length=key, attention__value_length=value), payload()).options
    assert (found["type_k"], found["type_v"]) == types


def test_a_payload_without_the_stack(payload: Callable[..., Payload]) -> None:
    assert advise(model(), payload(capabilities=[])).options == {"type_k": "q8_0", "type_v": "q8_0"}


@pytest.mark.parametrize(("types", "best"), [(["f16", "q8_0"], "q8_0"), (["q8_0", "ftq4"], "ftq4")])
def test_a_gpu_takes_what_its_kernels_have(payload: Callable[..., Payload], types: list[str], best: str) -> None:
    gpu = payload(
        "forkyard-llama-cpp-cuda13",
        kind="backend",
        backend={"library": None, "requires": [], "needs": [], "cache_types": types},
    )
    assert advise(model(), gpu).options == {"type_k": best, "type_v": best}


def test_layers_that_differ_are_counted_each(payload: Callable[..., Payload]) -> None:
    assert advise(model(attention__head_count_kv=[3, 0, 1]), payload()).bytes_per_token == 4 * 2 * 34


def test_a_model_without_a_cache(payload: Callable[..., Payload]) -> None:
    advice = advise(model(attention__head_count_kv=[0, 0]), payload())
    assert advice.options == {}
    assert advice.flags == ""
