from __future__ import annotations

import pytest

from forkyard.numamodel.architecture import BARRIERS_PER_MATRIX, PUBLISHED_SIZES, PUBLISHED_VALUES, WORKLOADS
from forkyard.numamodel.published import ROWS


def test_every_published_model_is_described() -> None:
    assert {row.model for row in ROWS} == set(WORKLOADS) == set(PUBLISHED_VALUES)


@pytest.mark.parametrize("model", [name for name, values in PUBLISHED_VALUES.items() if isinstance(values, int)])
def test_numbers_of_weights_are_exact_where_an_exact_one_is_published(model: str) -> None:
    assert WORKLOADS[model].values == PUBLISHED_VALUES[model]


@pytest.mark.parametrize("model", PUBLISHED_VALUES)
def test_numbers_of_weights_agree_to_the_published_digits(model: str) -> None:
    assert WORKLOADS[model].values == pytest.approx(PUBLISHED_VALUES[model], abs=0.005e9)


@pytest.mark.parametrize("model", PUBLISHED_SIZES)
def test_sizes_agree_with_those_of_the_files(model: str) -> None:
    assert WORKLOADS[model].size == pytest.approx(PUBLISHED_SIZES[model], rel=0.02)


@pytest.mark.parametrize(
    ("model", "billions"), [("Qwen3.5-122B-A10B UD-Q3_K_XL", 10), ("Qwen3.6-35B-A3B UD-Q5_K_M", 3)]
)
def test_a_token_meets_about_as_many_weights_as_the_model_is_named_after(model: str, billions: float) -> None:
    one = WORKLOADS[model]
    assert (one.token_operations + one.head_operations) / 2e9 == pytest.approx(billions, rel=0.12)


def test_barriers_go_with_matrices() -> None:
    # The estimate for other models rests on this.
    for one in WORKLOADS.values():
        assert one.barriers / one.matrices == pytest.approx(BARRIERS_PER_MATRIX, rel=0.1)
