"""Numbers of the metadata that must go together, and with the shapes of tensors: refused by the name of a key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from forkyard_llm.gguf_check import check

from .gguf_bytes import BOOL, I32, U32, gguf, numbers, scalar, string, strings, tensor, write
from .test_gguf_values import BASE, model, refused


def experts(count: int, used: int | None, *more: bytes) -> list[bytes]:
    used_key = [] if used is None else [scalar("llama.expert_used_count", U32, used)]
    return [scalar("llama.expert_count", U32, count), *used_key, *more]


@pytest.mark.parametrize(
    ("count", "used", "said"),
    [
        (100000, 2, "expert_count is 100000"),
        (8, 9, "expert_used_count is 9"),
        (8, 0, "expert_used_count is 0"),
        (8, None, "llama.expert_count is 8"),
        (0, 2, "expert_used_count is 2"),
    ],
)
def test_experts(tmp_path: Path, count: int, used: int | None, said: str) -> None:
    assert said in refused(model(tmp_path, *experts(count, used)))


@pytest.mark.parametrize("shared", [scalar("llama.attention.head_count_kv", U32, n) for n in (10, 2, 4)])
def test_heads_that_cannot_be_shared(tmp_path: Path, shared: bytes) -> None:
    assert "llama.attention.head_count_kv is" in refused(model(tmp_path, shared, drop=["attention.head_count_kv"]))


@pytest.mark.parametrize("shared", [[3, 0], [0, 9], [1, 3]])
def test_blocks_without_attention_have_no_keys(tmp_path: Path, shared: list[int]) -> None:
    check(model(tmp_path, numbers("llama.attention.head_count_kv", I32, shared), drop=["attention.head_count_kv"]))


@pytest.mark.parametrize("turned", [0, 63, 62, 66])
def test_rotation_of_whole_heads(tmp_path: Path, turned: int) -> None:
    path = model(tmp_path, scalar("llama.rope.dimension_count", U32, turned), drop=["rope.dimension_count"])
    assert f"llama.rope.dimension_count is {turned}, but RoPE turns all of the 64 values" in refused(path)


def other(folder: Path, *values: bytes) -> Path:
    """A model of an architecture whose heads are turned in part."""
    names = ("embedding_length", "attention.head_count", "block_count")
    kept = [scalar(f"stablelm.{name}", *BASE[name]) for name in names]
    return write(folder, gguf([string(b"general.architecture", b"stablelm"), *kept, *values]))


def test_rotation_of_parts_of_heads(tmp_path: Path) -> None:
    check(other(tmp_path, scalar("stablelm.rope.dimension_count", U32, 16)))
    for turned in (0, 15, 65, 66, 128):
        path = other(tmp_path, scalar("stablelm.rope.dimension_count", U32, turned))
        assert f"stablelm.rope.dimension_count is {turned}" in refused(path)
    check(other(tmp_path, scalar("stablelm.attention.value_length", U32, 128)))


def test_keys_as_long_as_values(tmp_path: Path) -> None:
    path = model(tmp_path, scalar("llama.attention.value_length", U32, 128))
    assert "llama.attention.value_length is 128 and attention.key_length 64" in refused(path)


@pytest.mark.parametrize(("key", "part"), [("head_count", "attn_q"), ("head_count_kv", "attn_k")])
def test_heads_that_do_not_fit_the_rows(tmp_path: Path, key: str, part: str) -> None:
    """The engines take the first block's count for the shapes, and each block's own for the computation."""
    tensors = [tensor(b"blk.%d.%s.weight" % (block, part.encode()), [8, 6], 0, 192 * block) for block in (0, 1)]
    for second in (1, 0):
        values = [string(b"general.architecture", b"x"), numbers(f"x.attention.{key}", I32, [2, second])]
        path = write(tmp_path, gguf(values, tensors, b"\0" * 384))
        assert f"x.attention.{key} is {second} in block 1 and 2 in block 0" in refused(path)
    values[1] = numbers(f"x.attention.{key}", I32, [2, 2])
    check(write(tmp_path, gguf(values, tensors, b"\0" * 384)))


def test_fewer_tokens_than_rows(tmp_path: Path) -> None:
    values = [string(b"general.architecture", b"llama"), strings(b"tokenizer.ggml.tokens", [b"a", b"b"])]
    path = write(tmp_path, gguf(values, [tensor(b"token_embd.weight", [8, 3], 0, 0)], b"\0" * 96))
    assert "tokenizer.ggml.tokens has 2 tokens, but token_embd.weight has 3 rows" in refused(path)
    check(write(tmp_path, gguf(values, [tensor(b"token_embd.weight", [8, 2], 0, 0)], b"\0" * 64)))


def made(
    folder: Path, architecture: str, keys: Mapping[str, int], *more: bytes, shapes: Mapping[str, int] | None = None
) -> Path:
    """A model of the architecture with keys and with tensors of one row, by name and row length."""
    values = [scalar(f"{architecture}.{name}", U32, value) for name, value in keys.items()]
    tensors = list((shapes or {}).items())
    infos = [tensor(name.encode(), [width, 1], 0, 4096 * at) for at, (name, width) in enumerate(tensors)]
    head = [string(b"general.architecture", architecture.encode()), *values, *more]
    return write(folder, gguf(head, infos, b"\0" * 4096 * len(tensors)))


GROUPED = {"expert_count": 8, "expert_used_count": 2, "expert_group_count": 4, "expert_group_used_count": 2}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"expert_group_count": 3}, "x.expert_group_count is 3, which does not divide 8 experts"),
        ({"expert_group_count": 8}, "x.expert_group_count is 8"),
        ({"expert_group_used_count": 0}, "x.expert_group_used_count is 0 of 4 groups"),
        ({"expert_group_used_count": 4}, "x.expert_group_used_count is 4 of 4 groups"),
    ],
)
def test_groups_of_experts(tmp_path: Path, changed: dict[str, int], said: str) -> None:
    check(made(tmp_path, "x", GROUPED))
    check(made(tmp_path, "x", {**GROUPED, "expert_group_count": 1, "expert_group_used_count": 1}))
    assert said in refused(made(tmp_path, "x", {**GROUPED, **changed}))


def test_heads_that_make_a_token(tmp_path: Path) -> None:
    keys = {"embedding_length": 64, "block_count": 1, "attention.head_count": 4, "attention.key_length": 16}
    check(made(tmp_path, "stablelm", keys))
    said = refused(made(tmp_path, "stablelm", {**keys, "attention.head_count": 8}))
    assert "8 heads of 16 values do not make stablelm.embedding_length" in said
    check(made(tmp_path, "gemma3", {**keys, "attention.head_count": 8}))


LATENT = {
    "block_count": 1,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 512,
    "attention.key_length": 576,
    "attention.value_length": 512,
    "attention.key_length_mla": 192,
    "attention.value_length_mla": 128,
    "rope.dimension_count": 64,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attention.key_length": 575}, "deepseek2.attention.key_length is 575"),
        ({"attention.value_length": 511}, "attention.value_length 511"),
        ({"attention.kv_lora_rank": 256}, "they are 320 and 256"),
        ({"attention.head_count_kv": 2}, "head_count_kv is 2 for 4 heads; all share one latent vector"),
        ({"rope.dimension_count": 192}, "deepseek2.rope.dimension_count is 192, but a key has 192 values in all"),
    ],
)
def test_latent_vectors(tmp_path: Path, changed: dict[str, int], said: str) -> None:
    for engine in (None, "llama.cpp", "ik_llama.cpp"):
        check(made(tmp_path, "deepseek2", LATENT), engine=engine)
        assert said in refused(made(tmp_path, "deepseek2", {**LATENT, **changed}), engine)


def test_latent_vectors_that_one_engine_cannot_convert(tmp_path: Path) -> None:
    small = {**LATENT, "attention.kv_lora_rank": 128, "attention.key_length": 192, "attention.value_length": 128}
    for changed in (small, {**LATENT, "attention.head_count": 3}):
        path = made(tmp_path, "deepseek2", changed)
        check(path, engine="llama.cpp")
        assert "use engine='llama.cpp'" in refused(path, "ik_llama.cpp")


@pytest.mark.parametrize(
    ("key", "name"),
    [("embedding_length", "token_embd.weight"), ("ssm.inner_size", "blk.0.ssm_out.weight")],
)
def test_widths_of_tensors(tmp_path: Path, key: str, name: str) -> None:
    check(made(tmp_path, "x", {key: 64}, shapes={name: 64}))
    for wrong in (63, 65, 128):
        assert f"x.{key} is {wrong}, but {name} has 64 columns" in refused(
            made(tmp_path, "x", {key: wrong}, shapes={name: 64})
        )


def test_a_window_that_no_block_has(tmp_path: Path) -> None:
    keys = {"attention.sliding_window": 128, "attention.sliding_window_pattern": 2}
    check(made(tmp_path, "x", keys))
    check(made(tmp_path, "x", {**keys, "attention.sliding_window": 0, "attention.sliding_window_pattern": 1}))
    said = refused(made(tmp_path, "x", {**keys, "attention.sliding_window_pattern": 1}))
    assert "x.attention.sliding_window_pattern is 1: no block has the window" in said


def test_heads_of_two_sizes(tmp_path: Path) -> None:
    path = model(tmp_path, scalar("llama.attention.key_length_swa", U32, 32))
    assert "in llama every block has heads of 64 values" in refused(path)


def test_no_rotation_at_all(tmp_path: Path) -> None:
    """An engine turns 0 values for ever, unless the model says that it has no RoPE."""
    keys = {"embedding_length": 64, "block_count": 1, "attention.head_count": 4, "rope.dimension_count": 0}
    assert "x.rope.dimension_count is 0" in refused(made(tmp_path, "x", keys))
    check(made(tmp_path, "x", keys, scalar("x.rope.scaling.finetuned", BOOL, False)))


@pytest.mark.parametrize(
    ("architecture", "keys", "said"),
    [
        ("rwkv7", {"embedding_length": 64, "wkv.head_size": 31}, "rwkv7.wkv.head_size is 31"),
        ("rwkv7", {"embedding_length": 64, "wkv.head_size": 4096}, "rwkv7.wkv.head_size is 4096"),
        ("rwkv7", {"token_shift_count": 1}, "rwkv7.token_shift_count is 1, in this architecture it is 2"),
        ("x", {"attention.head_count": 8, "attention.output_group_count": 0}, "x.attention.output_group_count is 0"),
        ("x", {"attention.head_count": 8, "attention.output_group_count": 3}, "x.attention.output_group_count is 3"),
    ],
)
def test_equal_shares(tmp_path: Path, architecture: str, keys: dict[str, int], said: str) -> None:
    assert said in refused(made(tmp_path, architecture, keys))
    check(made(tmp_path, "rwkv7", {"embedding_length": 64, "wkv.head_size": 32, "token_shift_count": 2}))
    check(made(tmp_path, "x", {"attention.head_count": 8, "attention.output_group_count": 8}))


def test_latent_vectors_for_each_head(tmp_path: Path) -> None:
    keys = {name: value for name, value in LATENT.items() if "mla" not in name}
    keys |= {"attention.head_count_kv": 4, "attention.key_length": 192, "attention.value_length": 128}
    check(made(tmp_path, "deepseek2", keys))
    said = refused(made(tmp_path, "deepseek2", {**keys, "attention.head_count_kv": 1}))
    assert "head_count_kv is 1 for 4 heads; without attention.key_length_mla each has a key" in said


def test_a_key_of_no_values(tmp_path: Path) -> None:
    path = model(tmp_path, scalar("llama.attention.key_length", U32, 0))
    assert "RoPE turns all of the 0 values" in refused(path)
