"""The op that attends to two pairs of K and V with one softmax, against numpy, and against the op for one pair."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ..conftest import ROOT, libraries_of
from .conftest import ENGINE, IK, TIMEOUT_S, Engine

pytestmark = pytest.mark.patch("flash-attn-pair")
LIMIT = 0.02
"""Relative error of a row: with few queries they are rounded to 8 bits for a quantized K."""


@dataclass(frozen=True)
class Shape:
    """Of one attention; ``first`` and ``second`` are the tokens of each pair, ``kept`` the share that is not masked."""

    k: str = "q4_0"
    v: str = "q4_0"
    d: int = 64
    heads: int = 4
    kv_heads: int = 2
    queries: int = 3
    streams: int = 1
    first: int = 70
    second: int = 33
    kept: tuple[float, float] = (0.7, 0.7)
    scale: float = 0.2
    bias: float = 0.0
    cap: float = 0.0
    sinks: bool = False
    threads: int = 2


SHAPES = (
    Shape(),
    Shape(queries=1, threads=4, heads=9, kv_heads=3),
    Shape("q8_0", "f16", d=128, streams=2),
    Shape("f16", "q5_1", d=256, heads=2, kv_heads=1, queries=70),
    Shape("iq4_nl", "q8_0", d=96, sinks=True),
    Shape("f16", "f16", d=80, cap=5.0),
    Shape(bias=8.0, threads=1),
    Shape(kept=(0.0, 0.7)),
    Shape(kept=(0.7, 0.0), sinks=True),
    Shape(kept=(0.0, 0.0)),
)
# ik_llama.cpp's kernels take positions in steps of 32, and one stream. It has none for q5_1, 80 values and ALiBi.
ON_IK = (
    *(replace(shape, streams=1, first=96, second=64) for shape in SHAPES),
    Shape(queries=70, first=320, second=128),
)


def attention(shape: Shape, arrays: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """What the op computes, by the book; rows of it are [stream, query, head]."""
    group = shape.heads // shape.kv_heads
    k = np.concatenate([arrays["k"], arrays["k2"]], axis=2).repeat(group, axis=1).astype(np.float64)
    v = np.concatenate([arrays["v"], arrays["v2"]], axis=2).repeat(group, axis=1).astype(np.float64)
    scores = shape.scale * np.einsum("shqd,shtd->shqt", arrays["q"].astype(np.float64), k)
    if shape.cap:
        scores = shape.cap * np.tanh(scores / shape.cap)
    slopes = 2.0 ** (-shape.bias * np.arange(1, shape.heads + 1) / shape.heads) if shape.bias else np.ones(shape.heads)
    with np.errstate(invalid="ignore"):
        scores = scores + slopes[None, :, None, None] * arrays["mask"].astype(np.float64)
    weights = np.where(np.isneginf(scores), 0.0, np.exp(scores))
    total = weights.sum(axis=-1, keepdims=True)
    if shape.sinks:
        total = total + np.exp(arrays["sinks"].astype(np.float64))[None, :, None, None]
    mixed = np.einsum("shqt,shtd->shqd", weights, v) / np.where(total == 0.0, 1.0, total)
    return np.asarray(mixed.transpose(0, 2, 1, 3), dtype=np.float64)


def inputs(shape: Shape) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.generic]]]:
    """Numbers, as they are after rounding to the types of K and V, and the bytes that hold them."""
    numbers = np.random.default_rng(20261130)
    arrays: dict[str, NDArray[np.float32]] = {}
    held: dict[str, NDArray[np.generic]] = {}
    for name, kind, tokens in (
        ("k", shape.k, shape.first),
        ("v", shape.v, shape.first),
        ("k2", "f16", shape.second),
        ("v2", "f16", shape.second),
    ):
        values = numbers.standard_normal((shape.streams, shape.kv_heads, tokens, shape.d), dtype=np.float32)
        to = gguf.GGMLQuantizationType[kind.upper()]
        if kind == "iq4_nl":
            # Written by nothing in Python: random codes with a small scale are as good.
            blocks = numbers.integers(0, 256, (values.size // 32, 18), dtype=np.uint8)
            blocks[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
            raw = blocks.reshape(*values.shape[:3], -1)
        else:
            raw = gguf.quants.quantize(values, to)
        held[name] = raw
        arrays[name] = gguf.quants.dequantize(raw, to).reshape(values.shape).astype(np.float32)
    arrays["q"] = numbers.standard_normal((shape.streams, shape.heads, shape.queries, shape.d), dtype=np.float32)
    parts = []
    for tokens, kept in zip((shape.first, shape.second), shape.kept, strict=True):
        seen = numbers.random((shape.streams, 1, shape.queries, tokens)) < kept
        distance = -numbers.integers(0, 8, seen.shape) if shape.bias else np.zeros(seen.shape)
        parts.append(np.where(seen, distance, -np.inf))
    arrays["mask"] = np.concatenate(parts, axis=-1).astype(np.float32)
    arrays["sinks"] = numbers.standard_normal(shape.heads, dtype=np.float32)
    held |= {"q": arrays["q"], "sinks": arrays["sinks"], "mask": arrays["mask"].astype(np.float16)}
    # One for each pair, with rows that nothing looks at, as ik_llama.cpp takes them.
    padded = np.pad(held["mask"][0, 0], ((0, 16), (0, 0)))[: -(-shape.queries // 16) * 16]
    held |= {"mask0": padded[:, : shape.first].copy(), "mask1": padded[:, shape.first :].copy()}
    return arrays, held


def compute(
    engine: Engine, shape: Shape, held: dict[str, NDArray[np.generic]], folder: Path, *, pair: bool
) -> NDArray[np.float64]:
    """What the engine's CPU computes, in a child."""
    for name, array in held.items():
        np.save(folder / f"{name}.npy", array)
    wish = {
        **asdict(shape),
        "engine": engine.name,
        "payload": str(engine.payload),
        "libraries": libraries_of(engine.payload),
        "input": str(folder),
        "output": str(folder / "output.npy"),
        "pair": pair,
    }
    command = [sys.executable, "-m", "tests.integration.turboquant.pair_probe", json.dumps(wish)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    got: NDArray[np.float32] = np.load(folder / "output.npy")
    return got.astype(np.float64)


@pytest.mark.parametrize(
    ("patched", "shape"),
    [*((ENGINE, shape) for shape in SHAPES), *((IK, shape) for shape in ON_IK)],
    ids=str,
    indirect=["patched"],
)
def test_two_pairs_have_one_softmax(patched: Engine, shape: Shape, tmp_path: Path) -> None:
    arrays, held = inputs(shape)
    got, expected = compute(patched, shape, held, tmp_path, pair=True), attention(shape, arrays)
    norms = np.linalg.norm(expected, axis=-1)
    assert np.all(np.linalg.norm(got - expected, axis=-1) <= LIMIT * np.maximum(norms, 1e-3))


def test_a_masked_second_pair_changes_no_bit(patched: Engine, tmp_path: Path) -> None:
    shape = Shape(kept=(0.7, 0.0))
    _, held = inputs(shape)
    got = compute(patched, shape, held, tmp_path, pair=True)
    alone = replace(shape, second=0)
    held["mask"] = np.ascontiguousarray(held["mask"][..., : shape.first])
    assert np.array_equal(got, compute(patched, alone, held, tmp_path, pair=False))
