"""Types of tensors an engine cannot compute with: refused by the name of the tensor; what models have is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from forkyard_llm import gguf_weights
from forkyard_llm.errors import ModelError
from forkyard_llm.gguf_check import TEXT, check
from forkyard_llm.gguf_types import TENSOR_TYPES

from .gguf_bytes import gguf, string, tensor, write

ENGINES = ("llama.cpp", "ik_llama.cpp")
KINDS = {layout.name: (number, layout) for types in TENSOR_TYPES.values() for number, layout in types.items()}


def model(folder: Path, name: str, shape: Sequence[int], kind: str) -> Path:
    number, layout = KINDS[kind]
    data = b"\0" * layout.data_bytes(shape[0] if shape else 1, math.prod(shape[1:]))
    infos = [tensor(name.encode(), shape, number, 0)]
    return write(folder, gguf([string(b"general.architecture", b"llama")], infos, data))


def refused(path: Path, engine: str | None) -> str:
    with pytest.raises(ModelError) as caught:
        check(path, engine=engine, purposes={TEXT})
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("engine", [*ENGINES, None])
@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("blk.0.attn_norm.weight", [256], "f32"),
        ("blk.0.ffn_up_exps.bias", [256, 4], "f32"),
        ("token_embd.weight", [256, 8], "q4_k"),
        ("blk.0.ffn_up_exps.weight", [256, 8, 4], "iq4_nl"),
        ("blk.0.attn_q.weight", [32, 8], "q8_0"),
        ("blk.0.attn_q.weight", [32, 8], "bf16"),
        # One row, with and without its second dimension.
        ("blk.0.ffn_gate_inp_shexp.weight", [256], "bf16"),
        ("cls.output.weight", [256, 1], "f16"),
        ("blk.0.ffn_gate_tid2eid.weight", [2, 8], "i32"),
        ("d2t", [8], "i64"),
    ],
)
def test_what_models_have(tmp_path: Path, engine: str | None, name: str, shape: list[int], kind: str):
    check(model(tmp_path, name, shape, kind), engine=engine, purposes={TEXT})


@pytest.mark.parametrize("engine", [*ENGINES, None])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "i32"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("output_norm.weight", [256]),
        ("blk.0.attn_q.bias", [256]),
        ("blk.0.attn_q_norm.weight", [256, 2]),
        ("token_types.weight", [256, 2]),
        ("blk.0.ssm_conv1d.weight", [32, 8]),
        ("blk.0.ssm_a", [32, 8]),
        ("blk.0.time_mix_lerp_fused.weight", [256, 1, 1, 6]),
        ("rope_freqs.weight", [32]),
        ("a", []),
    ],
)
def test_vectors_are_f32(tmp_path: Path, engine: str | None, name: str, shape: list[int], kind: str):
    if kind == "q8_0" and not shape:
        return
    said = refused(model(tmp_path, name, shape, kind), engine)
    assert f"tensor {name} has the type {kind}; the engines compute with it value by value, as f32" in said


@pytest.mark.parametrize("engine", [*ENGINES, None])
@pytest.mark.parametrize("kind", ["i8", "i16", "i32", "i64", "f64", "q8_1"])
def test_matrices_nothing_can_be_multiplied_with(tmp_path: Path, engine: str | None, kind: str):
    said = refused(model(tmp_path, "blk.0.attn_q.weight", [256, 8], kind), engine)
    assert f"tensor blk.0.attn_q.weight has the type {kind}; {engine or 'llama.cpp'} cannot multiply" in said


@pytest.mark.parametrize("kind", ["i2_s", "q4_0_4x4", "q8_kr8", "q8_2_x4"])
def test_matrices_ik_llama_cpp_cannot_multiply_with(tmp_path: Path, kind: str):
    path = model(tmp_path, "blk.0.attn_q.weight", [256, 8], kind)
    assert "ik_llama.cpp cannot multiply with a matrix of that type" in refused(path, "ik_llama.cpp")


def test_tables_of_whole_numbers(tmp_path: Path):
    path = model(tmp_path, "blk.0.ffn_gate_tid2eid.weight", [2, 8], "f32")
    assert "it holds whole numbers, as i32" in refused(path, "llama.cpp")


@pytest.mark.parametrize(("shape", "sound"), [([256, 8], True), ([256, 6], False), ([256, 8, 3], True), ([256], False)])
def test_rows_that_stand_together(tmp_path: Path, shape: list[int], sound: bool):
    name = "blk.0.ffn_gate_inp_shexp.weight" if len(shape) == 1 else "blk.0.ffn_up.weight"
    path = model(tmp_path, name, shape, "q4_k_r4")
    if sound:
        check(path, engine="ik_llama.cpp", purposes={TEXT})
    else:
        assert "ik_llama.cpp reads 4 rows of it at a time" in refused(path, "ik_llama.cpp")


def test_rows_that_are_too_short(tmp_path: Path):
    check(model(tmp_path, "blk.0.ffn_up.weight", [512, 8], "iq2_bn"), engine="ik_llama.cpp", purposes={TEXT})
    path = model(tmp_path, "blk.0.ffn_up.weight", [448, 8], "iq2_bn")
    assert "its rows have 448 numbers, and ik_llama.cpp needs 512" in refused(path, "ik_llama.cpp")


def test_types_for_some_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = model(tmp_path, "blk.0.ffn_up.weight", [256, 16], "bf16_r16")
    monkeypatch.setattr(gguf_weights.cpu, "missing", list)
    assert "computes with it on CPUs with avx512_bf16 alone" in refused(path, "ik_llama.cpp")
    monkeypatch.setattr(gguf_weights.cpu, "missing", lambda features: [])
    check(path, engine="ik_llama.cpp", purposes={TEXT})


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_computed_without_a_purpose(tmp_path: Path, engine: str):
    """llama-quantize reads what nothing can be computed with."""
    check(model(tmp_path, "blk.0.attn_q.weight", [256, 8], "i32"), engine=engine)
