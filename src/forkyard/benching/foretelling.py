"""What the model of bytes and barriers says of this machine and this model file, for the column beside the figures."""

from __future__ import annotations

from pathlib import Path

from forkyard_llm.measuring.numa_modes import Scenario
from forkyard_llm.measuring.numa_table import Foretold

from forkyard.numamodel.fitting import fit_costs
from forkyard.numamodel.machine import Node, uniform
from forkyard.numamodel.modelfile import read_workload
from forkyard.numamodel.predict import tokens_per_second
from forkyard.numamodel.published import ROWS

_PUBLISHED_CORES = 24
"""Cores of a socket of the machine that the costs were fitted on."""


def foretell(model: Path, scenario: Scenario, bandwidth: float) -> Foretold:
    """Predict generation with the costs of the published machine and ``bandwidth`` bytes per second a node.

    Prompts come in batches that the costs were not fitted on, and where ``distribute`` has its pages nobody knows.

    Raises:
        UsageError: the model file cannot be read.
    """
    workload = read_workload(model)
    fitted = fit_costs(ROWS)
    operations = fitted.operations * scenario.threads_per_node / _PUBLISHED_CORES
    machine = uniform(scenario.nodes, Node(bandwidth, operations), fitted.costs)
    alone = tokens_per_second(machine.one_node(), workload, 1)
    everywhere = tokens_per_second(machine, workload, 1)
    return Foretold(
        bandwidth,
        workload.bytes_read(1, fitted.costs.spread),
        {"isolate": alone, "mirror": everywhere, "split": everywhere},
    )
