"""LoRA adapters and control vectors of a loaded model: what a request may add to it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .loaded import Buffer, Handle

__all__ = ["ControlVector", "Lora", "Scaled", "combined"]


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA adapter. It lives as long as the model it was loaded for, and fits no other one."""

    path: str
    handle: Handle
    model: Handle


@dataclass(frozen=True, eq=False)
class ControlVector:
    """A control vector: what is added to the hidden state after each layer, from layer 1 on.

    Args:
        layers: the first and the last layer that it is added to.
    """

    path: str
    values: Buffer
    n_embd: int
    layers: tuple[int, int]
    model: Handle


Scaled = tuple[tuple["Lora | ControlVector", float], ...]
"""Adapters, each with the factor it is used with."""


def combined(vectors: Sequence[tuple[ControlVector, float]]) -> tuple[Buffer, int, int, int] | None:
    """The sum of control vectors: its numbers, how many of them a layer has, the first layer, the last one.

    Raises:
        UsageError: they are for different layers.
    """
    if not vectors:
        return None
    first = vectors[0][0]
    if any(vector.layers != first.layers for vector, _ in vectors):
        msg = "control vectors that are used together must be for the same layers"
        raise UsageError(msg)
    size = max(len(vector.values) for vector, _ in vectors)
    total = (ctypes.c_float * size)()
    for vector, scale in vectors:
        for index, value in enumerate(vector.values):
            total[index] += scale * value
    return total, first.n_embd, *first.layers
