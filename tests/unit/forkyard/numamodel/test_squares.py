from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from forkyard.numamodel.squares import fit


def test_an_exact_line_is_found() -> None:
    points = [(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]

    def residuals(values: Sequence[float]) -> list[float]:
        return [values[0] * x + values[1] - y for x, y in points]

    assert fit(residuals, (1.0, 1.0)) == pytest.approx([2.0, 3.0], rel=1e-6)


def test_units_do_not_matter() -> None:
    def residuals(values: Sequence[float]) -> list[float]:
        return [math.log(values[0] / 3e12), math.log(values[1] / 4e-9), math.log(values[0] * values[1] / 1.2e4)]

    assert fit(residuals, (1e12, 1e-8)) == pytest.approx([3e12, 4e-9], rel=1e-6)


def test_a_curve_is_found_from_afar() -> None:
    def residuals(values: Sequence[float]) -> list[float]:
        return [values[0] * math.exp(-values[1] * x) - 6 * math.exp(-0.5 * x) for x in (0.0, 1.0, 2.0, 5.0)]

    assert fit(residuals, (1.0, 2.0)) == pytest.approx([6.0, 0.5], rel=1e-5)


def test_what_nothing_depends_on_stays() -> None:
    assert fit(lambda values: [values[0] - 2], (1.0, 7.0)) == pytest.approx([2.0, 7.0], rel=1e-6)


def test_the_best_of_a_contradiction() -> None:
    assert fit(lambda values: [values[0] - 1, values[0] - 3], (9.0,)) == pytest.approx([2.0], rel=1e-5)


def test_only_positive_starts() -> None:
    with pytest.raises(ValueError, match="math domain error|positive"):
        fit(lambda values: [values[0]], (0.0,))
