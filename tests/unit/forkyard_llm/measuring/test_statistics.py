from __future__ import annotations

import random

import pytest
from forkyard_llm.measuring.statistics import compare, compare_unpaired, summarize
from hypothesis import given, settings
from hypothesis import strategies as st

speeds = st.lists(st.floats(0.1, 1000), min_size=1, max_size=12)


@settings(deadline=None)
@given(speeds)
def test_the_interval_holds_the_median_and_lies_within_the_samples(samples: list[float]) -> None:
    found = summarize(samples)
    low, high = found.interval
    assert min(samples) <= low <= found.median <= high <= max(samples)


def test_more_samples_narrow_it() -> None:
    few, many = summarize([9.0, 10.0, 11.0]).interval, summarize([9.0, 10.0, 11.0] * 20).interval
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize("rounds", [6, 8, 10, 20])
def test_the_same_thing_twice_is_a_tie_as_often_as_is_promised(rounds: int) -> None:
    """Two arms of one speed, in turn, with rare slow runs, each relative to the runs around it as `measure` does."""
    source, wrong, times = random.Random(rounds), 0, 1000
    for _ in range(times):
        speeds = [source.gauss(100, 2) * (0.9 if source.random() < 0.1 else 1) for _ in range(2 * rounds + 1)]
        bases = [(one + other) / 2 for one, other in zip(speeds[::2], speeds[2::2], strict=False)]
        wrong += compare(speeds[1::2], bases).verdict != "tie"
    # 0.05, and twice the standard error of so many tries.
    assert wrong <= times * 0.064


def test_a_clear_gain() -> None:
    found = compare([15.0, 15.1, 14.9, 15.0, 15.2, 15.0], [10.0, 10.1, 9.9, 10.0, 10.1, 10.0])
    assert found.verdict == "faster"
    assert found.ratio == pytest.approx(1.5, rel=0.02)
    assert found.interval[0] > 1.4


def test_a_clear_loss() -> None:
    assert compare([8.0, 8.1, 7.9, 8.0, 8.2, 8.0], [10.0] * 6).verdict == "slower"


def test_noise_is_a_tie() -> None:
    assert compare([10.0, 11.0, 9.0, 10.5, 9.5], [10.0, 9.5, 10.5, 9.8, 10.2]).verdict == "tie"


def test_less_than_a_percent_is_a_tie_however_steady() -> None:
    assert compare([10.05] * 9, [10.0] * 9).verdict == "tie"


def test_few_rounds_say_nothing() -> None:
    found = compare([20.0] * 5, [10.0] * 5)
    assert found.verdict == "tie"
    assert found.interval == (2.0, 2.0)
    assert compare([20.0] * 6, [10.0] * 6).verdict == "faster"


def test_runs_of_different_days_are_compared_without_pairs() -> None:
    assert (
        compare_unpaired([20.0, 21.0, 20.5, 19.5, 20.0, 20.2], [10.0, 10.1, 9.9, 10.0, 10.2, 10.0]).verdict == "faster"
    )
    assert compare_unpaired([10.0, 11.0, 9.0, 10.5, 9.5], [10.0, 9.5, 10.5, 9.8, 10.2]).verdict == "tie"
    assert compare_unpaired([20.0] * 5, [10.0] * 9).verdict == "tie"


def test_rounds_are_compared_with_each_other() -> None:
    # The machine became half as fast in the middle; the gain did not.
    found = compare([15.0, 15.0, 7.5, 7.5, 7.5], [10.0, 10.0, 5.0, 5.0, 5.0])
    assert found.interval == (1.5, 1.5)


def test_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        compare([1.0], [1.0, 2.0])
