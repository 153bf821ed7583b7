"""From a machine and a workload to tokens per second."""

from __future__ import annotations

from dataclasses import dataclass

from forkyard.numamodel.machine import Machine
from forkyard.numamodel.workload import Workload


@dataclass(frozen=True)
class Seconds:
    """The time of one batch, and what it is made of."""

    reading: float
    """The slowest node's time to read its share of the weights."""
    multiplying: float
    """The slowest node's time to multiply with them."""
    nodes: float
    """The slowest node's longer one of the two: the processor fetches ahead while it multiplies."""
    barriers: float
    exchange: float

    @property
    def total(self) -> float:
        """Seconds of the batch."""
        return self.nodes + self.barriers + self.exchange


def seconds(machine: Machine, workload: Workload, batch: int) -> Seconds:
    """The time of one batch of ``batch`` tokens where all nodes work and read only their own memory.

    That is what ``--numa mirror`` and ``--numa split`` are for; for ``--numa isolate`` give a machine of one node.
    """
    count = len(machine.nodes)
    costs = machine.costs
    share = workload.bytes_read(batch, costs.spread) / count
    operations = workload.operations(batch) / count
    reading = [share / node.bandwidth for node in machine.nodes]
    multiplying = [operations / node.operations for node in machine.nodes]
    return Seconds(
        reading=max(reading),
        multiplying=max(multiplying),
        nodes=max(map(max, zip(reading, multiplying, strict=True))),
        barriers=workload.barriers * (costs.barrier_within if count == 1 else costs.barrier_across),
        exchange=batch * workload.activations * costs.exchange,
    )


def tokens_per_second(machine: Machine, workload: Workload, batch: int) -> float:
    """Tokens per second of batches of ``batch`` tokens; 1 is token generation."""
    return batch / seconds(machine, workload, batch).total
