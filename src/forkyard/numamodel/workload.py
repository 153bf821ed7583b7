"""What one batch asks of a machine: bytes, operations, barriers, activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from forkyard.numamodel.tensors import Reading, Tensor

ROW_BYTES = 34 / 32
"""Bytes per activation once it is quantized for a multiplication: a block of Q8_0 is 34 bytes for 32 values."""


@dataclass(frozen=True)
class Workload:
    """A model, reduced to what the time of a batch depends on."""

    name: str
    always: float
    """Bytes of weights that every batch reads."""
    routed: float
    """Bytes of all experts together."""
    experts: int
    """Experts in a layer; 0 for a dense model."""
    used: int
    """Experts that a token is routed to."""
    state: float
    """Bytes of recurrent state, read and written by every batch."""
    token_operations: float
    """Multiplications and additions for each token, without the output projection."""
    head_operations: float
    """The same of the output projection, once for every batch."""
    barriers: float
    """Barriers that all threads pass in one batch."""
    activations: float
    """Bytes of quantized activations that the multiplications read for each token."""
    values: int
    """Weights there are, whether they are read or not."""
    size: float
    """Their bytes."""
    matrices: int
    """Matrices that are multiplied with, experts of a layer counted once."""

    def bytes_read(self, batch: int, spread: float) -> float:
        """Bytes of one batch of ``batch`` tokens.

        Args:
            spread: how many experts a batch of several tokens touches, relative to independent uniform routing
                (between 0 and 1). One token touches those it is routed to.
        """
        touched = 0.0
        if self.experts:
            one = self.used / self.experts
            uniform = 1 - (1 - one) ** batch
            touched = one if batch == 1 else max(one, spread * uniform)
        return self.always + touched * self.routed + 2 * self.state

    def operations(self, batch: int) -> float:
        """Multiplications and additions of one batch."""
        return batch * self.token_operations + self.head_operations


def workload_of(
    name: str, tensors: Iterable[Tensor], *, used: int = 0, state: float = 0.0, barriers: float
) -> Workload:
    """Add up the weights of a model.

    Args:
        used: experts that a token is routed to.
        state: bytes of recurrent state.
        barriers: barriers in one batch.
    """
    always = routed = token = head = activations = size = 0.0
    values = matrices = experts = 0
    for tensor in tensors:
        values += tensor.values
        size += tensor.size
        if tensor.reading is Reading.LOOKUP:
            continue
        if tensor.reading is Reading.EXPERT:
            routed += tensor.size
            experts = tensor.experts
            share = used / tensor.experts
        else:
            always += tensor.size
            share = 1.0
        if not tensor.matrix:
            continue
        matrices += 1
        activations += tensor.inputs * (used if tensor.own_rows else 1) * ROW_BYTES
        operations = 2 * tensor.values * share
        if tensor.reading is Reading.HEAD:
            head += operations
        else:
            token += operations
    return Workload(
        name=name,
        always=always,
        routed=routed,
        experts=experts,
        used=used,
        state=state,
        token_operations=token,
        head_operations=head,
        barriers=barriers,
        activations=activations,
        values=values,
        size=size,
        matrices=matrices,
    )
