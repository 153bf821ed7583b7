from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.numamodel.architecture import WORKLOADS
from forkyard.numamodel.machine import Costs, Machine, Node, peak_bandwidth, uniform
from forkyard.numamodel.predict import seconds, tokens_per_second
from forkyard.numamodel.workload import Workload

costs = st.builds(
    Costs,
    barrier_within=st.floats(0, 1e-5),
    barrier_across=st.floats(0, 1e-4),
    exchange=st.floats(0, 1e-8),
    spread=st.floats(0.05, 1),
)
node = st.builds(Node, bandwidth=st.floats(1e9, 1e12), operations=st.floats(1e10, 1e14))
machines = st.builds(Machine, nodes=st.lists(node, min_size=1, max_size=8).map(tuple), costs=costs)
workloads = st.sampled_from(list(WORKLOADS.values()))
batches = st.integers(1, 64)
factors = st.floats(1, 10)


def faster(machine: Machine, **factor: float) -> Machine:
    """The machine with a figure of all its nodes multiplied."""
    ((name, value),) = factor.items()
    nodes = tuple(dataclasses.replace(one, **{name: getattr(one, name) * value}) for one in machine.nodes)
    return dataclasses.replace(machine, nodes=nodes)


def dearer(machine: Machine, **factor: float) -> Machine:
    """The machine with a cost multiplied."""
    ((name, value),) = factor.items()
    changed = dataclasses.replace(machine.costs, **{name: getattr(machine.costs, name) * value})
    return dataclasses.replace(machine, costs=changed)


@given(machines, workloads, batches, factors)
def test_more_bandwidth_is_never_slower(machine: Machine, model: Workload, batch: int, factor: float) -> None:
    more = tokens_per_second(faster(machine, bandwidth=factor), model, batch)
    assert more >= tokens_per_second(machine, model, batch) * (1 - 1e-12)


@given(machines, workloads, batches, factors)
def test_more_operations_a_second_are_never_slower(
    machine: Machine, model: Workload, batch: int, factor: float
) -> None:
    more = tokens_per_second(faster(machine, operations=factor), model, batch)
    assert more >= tokens_per_second(machine, model, batch) * (1 - 1e-12)


@given(machines, workloads, batches, factors, st.sampled_from(["barrier_within", "barrier_across", "exchange"]))
def test_dearer_barriers_and_exchange_are_never_faster(
    machine: Machine, model: Workload, batch: int, factor: float, name: str
) -> None:
    less = tokens_per_second(dearer(machine, **{name: factor}), model, batch)
    assert less <= tokens_per_second(machine, model, batch) * (1 + 1e-12)


@given(machines, workloads, batches, st.floats(0.1, 1))
def test_one_slow_node_holds_all_others_up(machine: Machine, model: Workload, batch: int, factor: float) -> None:
    slow = dataclasses.replace(machine.nodes[0], bandwidth=machine.nodes[0].bandwidth * factor)
    held = dataclasses.replace(machine, nodes=(slow, *machine.nodes[1:]))
    assert tokens_per_second(held, model, batch) <= tokens_per_second(machine, model, batch) * (1 + 1e-12)


@given(node, costs, workloads, batches, st.integers(1, 8))
def test_n_nodes_gain_at_most_n(one: Node, cost: Costs, model: Workload, batch: int, count: int) -> None:
    # A barrier across nodes is not cheaper than one within a node.
    cost = dataclasses.replace(cost, barrier_across=max(cost.barrier_across, cost.barrier_within))
    machine = uniform(count, one, cost)
    alone = tokens_per_second(machine.one_node(), model, batch)
    assert tokens_per_second(machine, model, batch) <= count * alone * (1 + 1e-9)


@given(machines, workloads, batches)
def test_a_batch_is_never_quicker_than_one_token(machine: Machine, model: Workload, batch: int) -> None:
    assert seconds(machine, model, batch).total >= seconds(machine, model, 1).total * (1 - 1e-12)


def test_the_sum_by_hand() -> None:
    model = dataclasses.replace(
        WORKLOADS["gemma-4-E2B Q5_K_M"],
        always=4e9,
        state=0.0,
        token_operations=8e9,
        head_operations=2e9,
        barriers=1000,
        activations=1e6,
    )
    machine = uniform(2, Node(100e9, 1e12), Costs(1e-6, 5e-6, 2e-9, 1.0))
    one = seconds(machine.one_node(), model, 1)
    two = seconds(machine, model, 16)
    assert (one.reading, one.multiplying) == pytest.approx((0.04, 0.01))
    assert one.total == pytest.approx(0.04 + 0.001 + 0.002)
    assert (two.reading, two.multiplying) == pytest.approx((0.02, 0.065))
    assert two.total == pytest.approx(0.065 + 0.005 + 0.032)
    assert tokens_per_second(machine, model, 16) == pytest.approx(16 / 0.102)


def test_the_slowest_node_counts_not_the_sum_of_worst_parts() -> None:
    # One node reads slowly, the other multiplies slowly.
    model = dataclasses.replace(
        WORKLOADS["gemma-4-E2B Q5_K_M"],
        always=2e9,
        token_operations=2e9,
        head_operations=0.0,
        barriers=0,
        activations=0,
    )
    nodes = (Node(10e9, 1e13), Node(1e12, 20e9))
    assert seconds(Machine(nodes, Costs(0, 0, 0, 1)), model, 1).total == pytest.approx(0.1)


def test_peak_bandwidth_of_a_socket() -> None:
    assert peak_bandwidth(6, 2933) == pytest.approx(140.8e9, rel=1e-3)
    assert peak_bandwidth(6, 2400) == pytest.approx(115.2e9)


def test_a_machine_without_nodes_is_none() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        Machine((), Costs(0, 0, 0, 1))
