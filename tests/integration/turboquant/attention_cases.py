"""Cases of flash attention, their inputs, and the exact answer in numpy."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

# Not from conftest: the probes are programs of their own, and conftest needs the bindings.
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "docs" / "studies"))

import ftq

Floats = NDArray[np.float32]
Q8 = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "ftq4", "ftq3", "ftq2")
# What the engine's dot product makes of a row of Q, for each type of K; a type that is not here takes Q as it is.
DOT_TYPE = {"f16": GGMLQuantizationType.F16, "bf16": GGMLQuantizationType.BF16}
DOT_TYPE |= dict.fromkeys(Q8, GGMLQuantizationType.Q8_0)


@dataclass(frozen=True)
class Case:
    """One call: types and shapes, and what may change the scores."""

    k: str
    v: str
    tokens: int = 1
    positions: int = 300
    heads: int = 6
    heads_kv: int = 2
    head_k: int = 64
    head_v: int = 64
    sequences: int = 1
    threads: int = 2
    mask: str = "causal"
    """``none``, ``causal``, or ``holes``: most positions, whole tiles and one token's every position are hidden."""
    softcap: float = 0.0
    bias: float = 0.0
    sinks: bool = False

    def __str__(self) -> str:
        plain = Case(self.k, self.v)
        changed = [f"{name}{value}" for name, value in vars(self).items() if value != getattr(plain, name)]
        return "-".join([self.k, self.v, *changed])


@dataclass(frozen=True)
class Inputs:
    """Arrays whose last axis is contiguous: Q (sequence, head, token, value), K and V (sequence, position, head, value)."""

    q: Floats
    k: Floats
    v: Floats
    mask: Floats | None
    """(sequence, 1, token, position): 0 or minus infinity, and with ALiBi the distance."""
    sinks: Floats | None

    @classmethod
    @cache
    def of(cls, case: Case) -> Inputs:
        """The same numbers for every type and number of threads."""
        numbers = np.random.default_rng(20261130)

        def normal(*shape: int) -> Floats:
            return numbers.standard_normal(shape, dtype=np.float32)

        q = 2 * normal(case.sequences, case.heads, case.tokens, case.head_k)
        k = normal(case.sequences, case.positions, case.heads_kv, case.head_k)
        v = normal(case.sequences, case.positions, case.heads_kv, case.head_v)
        sinks = 3 * normal(case.heads) if case.sinks else None
        if case.mask == "none":
            return cls(q, k, v, None, sinks)
        at = np.arange(case.positions)
        behind = at[None, :] - (case.positions - case.tokens + np.arange(case.tokens))[:, None]
        mask = np.where(behind > 0, -np.inf, behind if case.bias else 0.0)
        if case.mask == "holes":
            mask[:, (at % 7 != 0) | ((at > 60) & (at < 200))] = -np.inf
            mask[0] = -np.inf
        whole = np.broadcast_to(mask, (case.sequences, 1, *mask.shape))
        return cls(q, k, v, whole.astype(np.float16).astype(np.float32), sinks)


def values_of(kind: str, stored: NDArray[np.uint8], shape: tuple[int, ...]) -> Floats:
    """What the bytes of a type stand for, in the shape that was stored."""
    if kind.startswith("ftq"):
        bits = int(kind[3:])
        return np.asarray(ftq.decode(stored.reshape(-1, 2 + 8 * bits), bits), dtype=np.float32).reshape(shape)
    number = GGMLQuantizationType[kind.upper()]
    return np.asarray(dequantize(stored.reshape(np.prod(shape[:-1]), -1), number), dtype=np.float32).reshape(shape)


def for_dot(kind: str, q: Floats) -> Floats:
    """Q as the dot product of K's type takes it; of Q8_1 the numbers are those of Q8_0."""
    if (number := DOT_TYPE.get(kind)) is None:
        return q
    rows = q.reshape(-1, q.shape[-1])
    return np.asarray(dequantize(quantize(rows, number), number), dtype=np.float32).reshape(q.shape)


def exact(case: Case, k: Floats, v: Floats, *, dot: bool) -> NDArray[np.float64]:
    """Attention over the stored ``k`` and ``v``; with ``dot`` over Q as the dot product of K's type takes it."""
    data = Inputs.of(case)
    q = (for_dot(case.k, data.q) if dot else data.q).astype(np.float64)
    shared = case.heads // case.heads_kv
    keys, values = (np.repeat(rows.astype(np.float64), shared, axis=2) for rows in (k, v))
    scores = np.einsum("shtd,sphd->shtp", q, keys) * case.head_k**-0.5
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    if data.mask is not None:
        scores = scores + slopes(case)[None, :, None, None] * data.mask
    top = np.max(scores, axis=-1, keepdims=True)
    if data.sinks is not None:
        top = np.maximum(top, data.sinks[None, :, None, None])
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if data.sinks is not None:
        total = total + np.exp(data.sinks[None, :, None, None] - top)
    shares = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
    return np.asarray(np.einsum("shtp,sphd->sthd", shares, values))


def slopes(case: Case) -> NDArray[np.float64]:
    """Slope of each head with ALiBi (arXiv 2108.12409), 1 without."""
    if not case.bias:
        return np.ones(case.heads)
    power = 2 ** int(np.floor(np.log2(case.heads)))
    first, rest = 2.0 ** (-case.bias / power), 2.0 ** (-case.bias / 2 / power)
    return np.array([first ** (h + 1) if h < power else rest ** (2 * (h - power) + 1) for h in range(case.heads)])
