from __future__ import annotations

import dataclasses

import pytest

from forkyard.numamodel.architecture import WORKLOADS
from forkyard.numamodel.fitting import START, fit_costs
from forkyard.numamodel.machine import Costs, Node, uniform
from forkyard.numamodel.predict import tokens_per_second
from forkyard.numamodel.published import PEAK, ROWS, Row


def test_costs_of_an_invented_machine_are_found_again() -> None:
    costs = Costs(barrier_within=2e-6, barrier_across=9e-6, exchange=2e-9, spread=0.6)
    machine = uniform(2, Node(0.7 * PEAK, 2e12), costs)
    rows = [
        dataclasses.replace(
            row,
            isolate=tokens_per_second(machine.one_node(), WORKLOADS[row.model], row.batch),
            mirror=tokens_per_second(machine, WORKLOADS[row.model], row.batch),
        )
        for row in ROWS
    ]
    found = fit_costs(rows)
    assert found.share == pytest.approx(0.7, rel=1e-3)
    assert found.operations == pytest.approx(2e12, rel=1e-3)
    assert dataclasses.astuple(found.costs) == pytest.approx(dataclasses.astuple(costs), rel=1e-2)


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("number", range(len(START)))
def test_a_start_nearby_ends_at_the_same_place(number: int, factor: float) -> None:
    start = list(START)
    start[number] *= factor
    here, there = fit_costs(ROWS), fit_costs(ROWS, start)
    assert there.share == pytest.approx(here.share, rel=1e-3)
    assert there.operations == pytest.approx(here.operations, rel=1e-3)
    assert dataclasses.astuple(there.costs) == pytest.approx(dataclasses.astuple(here.costs), rel=1e-2)


def test_costs_are_possible_ones() -> None:
    found = fit_costs(ROWS)
    assert 0.5 < found.share <= 1
    assert 0 < found.costs.barrier_within < found.costs.barrier_across < 1e-4
    assert 0 < found.costs.spread <= 1


def test_mirrored_prompts_are_fitted_to_nothing() -> None:
    changed = [dataclasses.replace(row, mirror=row.mirror * 3) if row.test == "pp512" else row for row in ROWS]
    assert fit_costs(changed) == fit_costs(ROWS)


def test_the_one_socket_costs_do_not_see_the_other_column() -> None:
    here = fit_costs(ROWS)
    there = fit_costs([dataclasses.replace(row, mirror=row.mirror * 0.8) for row in ROWS])
    assert (there.share, there.operations) == (here.share, here.operations)
    assert dataclasses.replace(there.costs, barrier_across=0) == dataclasses.replace(here.costs, barrier_across=0)
    assert there.costs.barrier_across > here.costs.barrier_across


@pytest.mark.parametrize("rows", [(), ROWS[:4], ROWS[:6], ROWS[6:]], ids=["none", "few", "generation", "prompts"])
def test_too_few_rows_are_refused(rows: tuple[Row, ...]) -> None:
    with pytest.raises(ValueError, match="six costs"):
        fit_costs(rows)
