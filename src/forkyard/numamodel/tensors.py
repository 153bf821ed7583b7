"""The weights of a model as far as time depends on them: how many values, how they are stored, when they are read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BITS = {
    "F32": 32.0,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_1": 6.0,
    "Q5_K": 5.5,
    "Q4_K": 4.5,
}
"""Bits per value of storage types, from the block structures in ``ggml-common.h``."""


class Reading(Enum):
    """When a weight is read."""

    ALWAYS = "always"
    """Wholly, once for every batch, for all tokens of it."""
    HEAD = "head"
    """Wholly, once for every batch, for its last token alone: the output projection."""
    EXPERT = "expert"
    """The experts that any token of the batch is routed to."""
    LOOKUP = "lookup"
    """One row for every token: an embedding. Next to nothing."""


@dataclass(frozen=True)
class Tensor:
    """One weight, or ``experts`` of the same shape."""

    reading: Reading
    inputs: int
    outputs: int
    bits: float
    """Bits per value."""
    experts: int = 1
    matrix: bool = True
    """Whether activations are multiplied with it; a norm's vector is none."""
    own_rows: bool = False
    """Whether every expert has an input of its own, as the second projection of a feed-forward part does."""

    @property
    def values(self) -> int:
        """How many."""
        return self.inputs * self.outputs * self.experts

    @property
    def size(self) -> float:
        """Bytes."""
        return self.values * self.bits / 8
