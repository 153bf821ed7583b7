"""Numbers of the metadata that cannot be true: refused by the name of their key; everything models have is not."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from forkyard_llm.errors import ModelError
from forkyard_llm.gguf_check import check

from .gguf_bytes import F32, F64, I32, U32, gguf, numbers, scalar, string, strings, tensor, text, write

BASE = {
    "block_count": (U32, 2),
    "context_length": (U32, 8192),
    "embedding_length": (U32, 576),
    "feed_forward_length": (U32, 1536),
    "attention.head_count": (U32, 9),
    "attention.head_count_kv": (U32, 3),
    "attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "rope.dimension_count": (U32, 64),
    "rope.freq_base": (F32, 100000.0),
}


def model(folder: Path, *changed: bytes, drop: Sequence[str] = ()) -> Path:
    """A model's metadata, with the `changed` keys in place of those of `drop`."""
    kept = [scalar(f"llama.{name}", *value) for name, value in BASE.items() if name not in drop]
    return write(folder, gguf([string(b"general.architecture", b"llama"), *kept, *changed]))


def refused(path: Path, engine: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        check(path, engine=engine)
    assert caught.value.offset is not None
    return str(caught.value)


def test_sound_numbers(tmp_path: Path) -> None:
    for engine in (None, "llama.cpp", "ik_llama.cpp"):
        check(model(tmp_path), engine=engine)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -1.0])
@pytest.mark.parametrize("name", ["attention.layer_norm_rms_epsilon", "rope.freq_base"])
def test_the_norms_and_the_rotation(tmp_path: Path, name: str, value: float) -> None:
    assert f"llama.{name} is " in refused(model(tmp_path, scalar(f"llama.{name}", F32, value), drop=[name]))


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("block_count", U32, 0),
        ("block_count", U32, 513),
        ("embedding_length", U32, 0),
        ("embedding_length", U32, 2**32 - 1),
        ("context_length", U32, 0),
        ("context_length", U32, 2**31),
        ("feed_forward_length", U32, 2**32 - 1),
        ("attention.head_count", U32, 2**31),
        ("rope.dimension_count", U32, 2**31),
        ("attention.key_length", U32, 2**20),
        ("attention.value_length", U32, 2**20),
        ("attention.sliding_window", U32, 2**32 - 1),
        ("expert_feed_forward_length", U32, 2**31),
        ("expert_shared_count", U32, 100000),
        ("rope.scaling.factor", F32, 1e-40),
        ("rope.scaling.factor", F32, -2.0),
        ("rope.scaling.attn_factor", F32, 3e38),
        ("rope.scaling.original_context_length", U32, 2**32 - 1),
        ("logit_scale", F32, 3e38),
        ("attn_logit_softcapping", F32, -3e38),
        ("final_logit_softcapping", F32, 3e38),
        ("embedding_scale", F32, 3e38),
        ("residual_scale", F32, -3e38),
        ("attention.clamp_kqv", F32, 3e38),
        ("attention.max_alibi_bias", F32, 3e38),
        ("expert_weights_scale", F32, 3e38),
        ("ssm.conv_kernel", U32, 2**31),
        ("ssm.state_size", U32, 2**31),
        ("ssm.inner_size", U32, 2**31),
        ("ssm.time_step_rank", U32, 2**31),
        ("ssm.time_step_rank", U32, 0),
        ("attention.sliding_window", U32, 1),
        ("ssm.group_count", U32, 2**31),
        ("some_new_epsilon", F32, 3e38),
        ("some_new_epsilon", F32, 1.5),
        ("attention.layer_norm_epsilon", F32, 1e10),
        ("rope.scale_linear", F32, 3e38),
        ("rope.freq_base_swa", F32, 0.0),
        ("xielu.beta", F32, 3e38),
        ("kda.gate_lower_bound", F32, -3e38),
        ("some_new_number", F32, 1e30),
        ("some_new_number", F64, math.nan),
    ],
)
def test_numbers_no_model_has(tmp_path: Path, name: str, kind: int, value: float) -> None:
    path = model(tmp_path, scalar(f"llama.{name}", kind, value), drop=[name])
    assert f"llama.{name} is " in refused(path)


def test_one_wrong_number_among_many(tmp_path: Path) -> None:
    bad = numbers("llama.feed_forward_length", I32, [1536, -1])
    assert "llama.feed_forward_length is -1" in refused(model(tmp_path, bad, drop=["feed_forward_length"]))
    scores = numbers("tokenizer.ggml.scores", F32, [0.0] * 1000 + [math.nan] + [0.0] * 1000)
    assert "tokenizer.ggml.scores is nan" in refused(model(tmp_path, scores))
    factors = numbers("llama.rope.freq_base_per_layer", F32, [1e4, math.inf])
    assert "llama.rope.freq_base_per_layer is inf" in refused(model(tmp_path, factors))


@pytest.mark.parametrize("key", ["general.sampling.temp", "tokenizer.ggml.scores", "other.some_number"])
def test_a_float_of_any_key(tmp_path: Path, key: str) -> None:
    check(model(tmp_path, numbers(key, F32, [-1e9, 0.5, 1e9])))
    assert f"{key} is 3e+09; the engine takes -1e+09 to 1e+09" in refused(
        model(tmp_path, numbers(key, F32, [0.5, 3e9]))
    )


def test_a_text_where_a_number_belongs(tmp_path: Path) -> None:
    for value in (string(b"llama.block_count", b"2"), strings(b"llama.block_count", [b"2"])):
        assert "llama.block_count is a" in refused(model(tmp_path, value, drop=["block_count"]))
    check(model(tmp_path, string(b"llama.rope.scaling.type", b"yarn")))


def test_scaling_of_the_rotation(tmp_path: Path) -> None:
    for name in (b"zzz", b"", b"YARN"):
        path = model(tmp_path, string(b"llama.rope.scaling.type", name))
        assert "llama.rope.scaling.type is" in refused(path)
    path = model(tmp_path, string(b"llama.rope.scaling.type", b"longrope"))
    check(path, engine="llama.cpp")
    assert "the engine takes linear, none, yarn" in refused(path, "ik_llama.cpp")


def test_an_epsilon_of_zero(tmp_path: Path) -> None:
    """llama.cpp asserts that it is not negative, ik_llama.cpp that it is positive."""
    name = "attention.layer_norm_rms_epsilon"
    path = model(tmp_path, scalar(f"llama.{name}", F32, 0.0), drop=[name])
    check(path, engine="llama.cpp")
    assert f"llama.{name} is 0" in refused(path, "ik_llama.cpp")


BYTES = [b"<unk>", b"<0x00>", b"<0xFf>", b"a"]


def test_byte_tokens(tmp_path: Path) -> None:
    """The engines take two digits from the spelling of a byte token without looking."""
    types = numbers("tokenizer.ggml.token_type", I32, [2, 6, 6, 1])
    check(model(tmp_path, strings(b"tokenizer.ggml.tokens", BYTES), types))
    check(model(tmp_path, types, strings(b"tokenizer.ggml.tokens", BYTES), scalar("llama.after", U32, 1)))
    for wrong in (b"x", b"", b"<0xGG>", b"<0x001>"):
        words = [b"<unk>", b"<0x00>", wrong, b"a"]
        path = model(tmp_path, strings(b"tokenizer.ggml.tokens", words), types)
        assert "token 2 is for a byte, but is" in refused(path)
    bert = string(b"tokenizer.ggml.model", b"bert")
    path = model(tmp_path, strings(b"tokenizer.ggml.tokens", BYTES), types, bert)
    assert "a bert tokenizer cannot have" in refused(path)


def test_byte_tokens_far_apart(tmp_path: Path) -> None:
    """More tokens than a window of the reader has room for."""
    words = [b"word number %d, long enough" % number for number in range(60_000)]
    words[59_999] = b"<0x0A>"
    kinds = [1] * 60_000
    kinds[59_999] = 6
    values = [strings(b"tokenizer.ggml.tokens", words), numbers("tokenizer.ggml.token_type", I32, kinds)]
    check(write(tmp_path, gguf(values, [tensor(b"t", [8], 0, 0)], b"\0" * 32)))
    kinds[59_998] = 6
    values[1] = numbers("tokenizer.ggml.token_type", I32, kinds)
    assert "token 59998 is for a byte" in refused(write(tmp_path, gguf(values)))


def test_each_engine_has_its_own_limit_of_experts(tmp_path: Path) -> None:
    path = model(tmp_path, scalar("llama.expert_count", U32, 1024), scalar("llama.expert_used_count", U32, 8))
    check(path)
    check(path, engine="llama.cpp")
    assert "llama.expert_count is 1024; the engine takes 0 to 512" in refused(path, "ik_llama.cpp")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.file_type", scalar("general.file_type", F32, 1.0)),
        ("general.file_type", numbers("general.file_type", U32, [1])),
        ("general.type", scalar("general.type", U32, 1)),
        ("tokenizer.ggml.model", scalar("tokenizer.ggml.model", U32, 1)),
        ("tokenizer.ggml.precompiled_charsmap", numbers("tokenizer.ggml.precompiled_charsmap", F32, [1])),
        ("tokenizer.ggml.precompiled_charsmap", string(b"tokenizer.ggml.precompiled_charsmap", b"x")),
        ("adapter.lora.alpha", scalar("adapter.lora.alpha", U32, 1)),
    ],
)
def test_types_the_engines_take_for_granted(tmp_path: Path, key: str, value: bytes) -> None:
    assert f"{key} is " in refused(model(tmp_path, value))


@pytest.mark.parametrize(
    "value",
    [
        scalar("llama.rope.scaling.factor", F32, 0.0),
        scalar("llama.rope.scaling.factor", F32, 0.25),
        scalar("llama.rope.scaling.yarn_ext_factor", F32, -1.0),
        scalar("llama.attention.sliding_window", U32, 0),
        scalar("llama.attn_logit_softcapping", F32, 0.0),
        scalar("llama.final_logit_softcapping", F32, 30.0),
        scalar("llama.embedding_scale", F32, 78.38367),
        scalar("llama.nextn_predict_layers", U32, 1),
        scalar("llama.unknown_key", U32, 2**32 - 1),
        numbers("llama.deepstack_mapping", I32, [-1, 0]),
        numbers("tokenizer.ggml.scores", F32, [-1e9, 0.0]),
        scalar("other.block_count", U32, 10**9),
    ],
)
def test_numbers_that_models_have(tmp_path: Path, value: bytes) -> None:
    check(model(tmp_path, value))


def test_an_array_with_more_numbers_than_any_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    head = gguf([text(b"x") + struct.pack("<IIQ", 9, 0, 65 << 20)])
    with path.open("wb") as handle:
        handle.write(head)
        handle.truncate(len(head) + (65 << 20))
    assert "more than any model" in refused(path)
