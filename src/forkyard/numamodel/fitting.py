"""The six costs that no data sheet gives, from rows of the published table.

Five belong to one socket and come from the column ``isolate`` alone: the share of the memory's peak that is sustained,
the rate of multiplying, the cost of a barrier within a socket, the cost of exchanging activations, and how many experts
a batch touches. The sixth, a barrier across sockets, comes from ``mirror`` at token generation alone. What ``mirror``
does at prompt processing is fitted to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forkyard.numamodel.architecture import WORKLOADS
from forkyard.numamodel.machine import Costs, Machine, Node, uniform
from forkyard.numamodel.predict import tokens_per_second
from forkyard.numamodel.published import PEAK, SOCKETS, Row
from forkyard.numamodel.squares import fit

# Where the search starts. Fits from other starts within reason end at the same place, which is tested.
START = (0.78, 1.6e12, 1e-6, 2.5e-9, 0.5)
"""Share of the peak, operations per second, seconds of a barrier, seconds per byte exchanged, spread of experts."""
START_ACROSS = 6e-6


@dataclass(frozen=True)
class Fitted:
    """The costs, and what the machine of the table is with them."""

    share: float
    """Of the peak bandwidth of a socket."""
    operations: float
    """Per second and socket, at the weights' mix of types."""
    costs: Costs

    @property
    def machine(self) -> Machine:
        """The table's machine, both sockets."""
        return uniform(SOCKETS, Node(self.share * PEAK, self.operations), self.costs)


def fit_costs(rows: Sequence[Row], start: Sequence[float] = START) -> Fitted:
    """Fit the six costs to rows of the table.

    Raises:
        ValueError: there are not enough rows for six costs.
    """
    generation = [row for row in rows if row.batch == 1]
    if len(rows) < len(start) or not generation or len(generation) == len(rows):
        msg = f"six costs cannot be had from {len(rows)} rows"
        raise ValueError(msg)

    def one_socket(values: Sequence[float]) -> list[float]:
        machine = _machine(values, values[2]).one_node()
        return [_error(machine, row, row.isolate) for row in rows]

    found = fit(one_socket, start)

    def two_sockets(values: Sequence[float]) -> list[float]:
        machine = _machine(found, values[0])
        return [_error(machine, row, row.mirror) for row in generation]

    (across,) = fit(two_sockets, (START_ACROSS,))
    return Fitted(min(found[0], 1.0), found[1], _costs(found, across))


def _costs(values: Sequence[float], across: float) -> Costs:
    return Costs(barrier_within=values[2], barrier_across=across, exchange=values[3], spread=min(values[4], 1.0))


def _machine(values: Sequence[float], across: float) -> Machine:
    # No memory is faster than its peak, no batch touches more experts than uniform routing does.
    return uniform(SOCKETS, Node(min(values[0], 1.0) * PEAK, values[1]), _costs(values, across))


def _error(machine: Machine, row: Row, measured: float) -> float:
    """Logarithm of predicted to measured."""
    return math.log(tokens_per_second(machine, WORKLOADS[row.model], row.batch) / measured)
