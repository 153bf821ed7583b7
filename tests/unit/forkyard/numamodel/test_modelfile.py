from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from forkyard.errors import UsageError
from forkyard.numamodel.architecture import BARRIERS_PER_MATRIX
from forkyard.numamodel.modelfile import read_workload

WIDTH, VOCABULARY = 64, 96


class Model:
    """A GGUF under construction."""

    def __init__(self, path: Path, arch: str = "llama") -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(path, arch)
        self.writer.add_block_count(2)
        self.writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "def"])
        self.writer.add_array("some.numbers", [1, 2, 3])
        self.arch = arch

    def weight(self, name: str, *shape: int, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0) -> None:
        values = np.ones(shape, dtype=np.float32)
        self.writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(self, name: str) -> None:
        self.writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    def close(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def bytes_of(*shape: int) -> float:
    return float(np.prod(shape)) * 34 / 32


def test_a_dense_model(tmp_path: Path) -> None:
    model = Model(tmp_path / "dense.gguf")
    model.weight("token_embd.weight", VOCABULARY, WIDTH)
    model.weight("output.weight", VOCABULARY, WIDTH)
    model.norm("output_norm.weight")
    for layer in range(2):
        model.weight(f"blk.{layer}.ffn_up.weight", 128, WIDTH)
    work = read_workload(model.close())
    assert work.bytes_read(1, 1.0) == pytest.approx(
        bytes_of(VOCABULARY, WIDTH) + WIDTH * 4 + 2 * bytes_of(128, WIDTH), rel=0.01
    )
    assert work.values == 2 * VOCABULARY * WIDTH + WIDTH + 2 * 128 * WIDTH
    assert work.matrices == 3
    assert work.barriers == pytest.approx(3 * BARRIERS_PER_MATRIX)


def test_an_embedding_that_is_the_output_too_is_read(tmp_path: Path) -> None:
    model = Model(tmp_path / "tied.gguf")
    model.weight("token_embd.weight", VOCABULARY, WIDTH)
    assert read_workload(model.close()).head_operations == 2 * VOCABULARY * WIDTH


def test_experts_state_and_layers_for_further_tokens(tmp_path: Path) -> None:
    model = Model(tmp_path / "experts.gguf", "qwen35moe")
    model.writer.add_uint32("qwen35moe.expert_used_count", 2)
    model.writer.add_uint32("qwen35moe.nextn_predict_layers", 1)
    model.writer.add_uint32("qwen35moe.ssm.inner_size", 128)
    model.writer.add_uint32("qwen35moe.ssm.state_size", 32)
    model.weight("token_embd.weight", VOCABULARY, WIDTH)
    model.weight("output.weight", VOCABULARY, WIDTH)
    model.weight("blk.0.ffn_up_exps.weight", 8, 32, WIDTH)
    model.weight("blk.0.ffn_down_exps.weight", 8, WIDTH, 32)
    model.weight("blk.0.ssm_out.weight", WIDTH, 128)
    model.weight("blk.1.ffn_up_exps.weight", 8, 32, WIDTH)
    work = read_workload(model.close())
    assert (work.experts, work.used) == (8, 2)
    assert work.routed == pytest.approx(2 * bytes_of(8, 32, WIDTH), rel=0.01)
    assert work.state == 4 * 128 * 32
    assert work.activations == pytest.approx((WIDTH + 128 + WIDTH + 2 * 32) * 34 / 32)


def test_all_parts_are_read(tmp_path: Path) -> None:
    first = Model(tmp_path / "big-00001-of-00002.gguf")
    first.weight("token_embd.weight", VOCABULARY, WIDTH)
    second = Model(tmp_path / "big-00002-of-00002.gguf")
    second.weight("output.weight", VOCABULARY, WIDTH)
    second.close()
    work = read_workload(first.close())
    assert work.values == 2 * VOCABULARY * WIDTH
    assert work.head_operations == 2 * VOCABULARY * WIDTH


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = Model(tmp_path / "big-00001-of-00002.gguf")
    first.weight("token_embd.weight", VOCABULARY, WIDTH)
    with pytest.raises(UsageError, match="big-00002-of-00002"):
        read_workload(first.close())


@pytest.mark.parametrize(
    "data",
    [b"", b"GG", b"nothing of the kind", b"GGUF\x09\0\0\0" + bytes(16), b"GGUF\x03\0\0\0" + b"\xff" * 64],
    ids=["empty", "short", "other", "version", "counts"],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"x\.gguf"):
        read_workload(path)


@pytest.mark.parametrize("kept", [40, 120, 5000])
def test_a_file_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    model = Model(tmp_path / "cut.gguf")
    model.weight("token_embd.weight", VOCABULARY, WIDTH)
    model.weight("output.weight", VOCABULARY, WIDTH)
    path = model.close()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"cut\.gguf"):
        read_workload(path)
