"""What the model knows of a machine: its memory nodes, and what threads cost each other."""

from __future__ import annotations

from dataclasses import dataclass


def peak_bandwidth(channels: int, mega_transfers: float) -> float:
    """Bytes per second of ``channels`` memory channels of 64 bits at ``mega_transfers`` million transfers a second."""
    return channels * mega_transfers * 1e6 * 8


@dataclass(frozen=True)
class Node:
    """A memory node and the threads on it."""

    bandwidth: float
    """Bytes per second that its threads read from its own memory, sustained."""
    operations: float
    """Multiplications and additions per second of its threads."""


@dataclass(frozen=True)
class Costs:
    """What does not depend on how many bytes a node reads."""

    barrier_within: float
    """Seconds for a barrier of the threads of one node, with what an operation costs besides its bytes."""
    barrier_across: float
    """The same of all nodes' threads."""
    exchange: float
    """Seconds for each byte of quantized activations: every thread reads rows that others wrote.

    The same for one node and for several, as another node adds readers, not rows.
    """
    spread: float
    """See :meth:`forkyard.numamodel.workload.Workload.bytes_read`."""


@dataclass(frozen=True)
class Machine:
    """Nodes, with equally many threads on each."""

    nodes: tuple[Node, ...]
    costs: Costs

    def __post_init__(self) -> None:
        if not self.nodes:
            msg = "a machine has at least one node"
            raise ValueError(msg)

    def one_node(self) -> Machine:
        """The machine with its first node alone: what ``--numa isolate`` leaves."""
        return Machine(self.nodes[:1], self.costs)


def uniform(count: int, node: Node, costs: Costs) -> Machine:
    """A machine of ``count`` equal nodes."""
    return Machine((node,) * count, costs)
