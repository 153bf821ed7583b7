from __future__ import annotations

import pytest
from forkyard_llm.measuring.statistics import bootstrap, compare, compare_unpaired, summarize
from hypothesis import given, settings
from hypothesis import strategies as st

speeds = st.lists(st.floats(0.1, 1000), min_size=1, max_size=12)


@settings(deadline=None)
@given(speeds)
def test_the_interval_holds_the_median_and_lies_within_the_samples(samples: list[float]) -> None:
    found = summarize(samples)
    low, high = found.interval
    assert min(samples) <= low <= found.median <= high <= max(samples)


@settings(deadline=None)
@given(speeds)
def test_the_same_samples_give_the_same_interval(samples: list[float]) -> None:
    assert bootstrap(samples) == bootstrap(list(samples))


def test_more_samples_narrow_it() -> None:
    few, many = bootstrap([9.0, 10.0, 11.0]), bootstrap([9.0, 10.0, 11.0] * 20)
    assert many[1] - many[0] < few[1] - few[0]


def test_a_clear_gain() -> None:
    found = compare([15.0, 15.1, 14.9, 15.0, 15.2], [10.0, 10.1, 9.9, 10.0, 10.1])
    assert found.verdict == "faster"
    assert found.ratio == pytest.approx(1.5, rel=0.02)
    assert found.interval[0] > 1.4


def test_a_clear_loss() -> None:
    assert compare([8.0, 8.1, 7.9, 8.0, 8.2], [10.0] * 5).verdict == "slower"


def test_noise_is_a_tie() -> None:
    assert compare([10.0, 11.0, 9.0, 10.5, 9.5], [10.0, 9.5, 10.5, 9.8, 10.2]).verdict == "tie"


def test_less_than_a_percent_is_a_tie_however_steady() -> None:
    assert compare([10.05] * 9, [10.0] * 9).verdict == "tie"


def test_few_rounds_say_nothing() -> None:
    found = compare([20.0] * 4, [10.0] * 4)
    assert found.verdict == "tie"
    assert found.interval == (2.0, 2.0)
    assert compare([20.0] * 5, [10.0] * 5).verdict == "faster"


def test_runs_of_different_days_are_compared_without_pairs() -> None:
    assert compare_unpaired([20.0, 21.0, 20.5, 19.5, 20.0, 20.2], [10.0, 10.1, 9.9, 10.0, 10.2]).verdict == "faster"
    assert compare_unpaired([10.0, 11.0, 9.0, 10.5, 9.5], [10.0, 9.5, 10.5, 9.8, 10.2]).verdict == "tie"
    assert compare_unpaired([20.0] * 4, [10.0] * 9).verdict == "tie"


def test_rounds_are_compared_with_each_other() -> None:
    # The machine became half as fast in the middle; the gain did not.
    found = compare([15.0, 15.0, 7.5, 7.5, 7.5], [10.0, 10.0, 5.0, 5.0, 5.0])
    assert found.interval == (1.5, 1.5)


def test_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        compare([1.0], [1.0, 2.0])
