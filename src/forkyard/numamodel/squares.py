"""Least squares by Levenberg and Marquardt, for a handful of positive parameters; deterministic.

Formula: K. Levenberg (1944), D. Marquardt (1963); the damping is that of the normal equations' diagonal. Parameters are
varied in their logarithms, so they stay positive and their units do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Residuals = Callable[[Sequence[float]], list[float]]

_STEP = 1e-5
_ROUNDS = 200
_TRIES = 25
_DONE = 1e-13


def fit(residuals: Residuals, start: Sequence[float]) -> list[float]:
    """The parameters near ``start`` with the least sum of squared residuals.

    Raises:
        ValueError: ``start`` has a value that is not positive.
    """
    logs = [math.log(value) for value in start]
    here = residuals(start)
    cost = _squares(here)
    damping = 1e-2
    for _ in range(_ROUNDS):
        columns = []
        for number in range(len(logs)):
            moved = list(logs)
            moved[number] += _STEP
            beside = residuals([math.exp(value) for value in moved])
            columns.append([(new - old) / _STEP for new, old in zip(beside, here, strict=True)])
        before = cost
        for _ in range(_TRIES):
            step = _step(columns, here, damping)
            moved = [value + change for value, change in zip(logs, step, strict=True)]
            beside = residuals([math.exp(value) for value in moved])
            if _squares(beside) < cost:
                logs, here, cost = moved, beside, _squares(beside)
                damping = max(damping / 5, 1e-9)
                break
            damping *= 4
        if before - cost <= _DONE:
            break
    return [math.exp(value) for value in logs]


def _squares(values: Sequence[float]) -> float:
    return sum(value * value for value in values)


def _step(columns: Sequence[Sequence[float]], here: Sequence[float], damping: float) -> list[float]:
    """Solve the damped normal equations; a step is never longer than one unit of a logarithm."""
    size = len(columns)
    rows = []
    for one in range(size):
        row = [sum(a * b for a, b in zip(columns[one], columns[two], strict=True)) for two in range(size)]
        # A parameter that nothing depends on stays where it is.
        row[one] = row[one] * (1 + damping) + 1e-12
        rows.append([*row, -sum(a * b for a, b in zip(columns[one], here, strict=True))])
    for one in range(size):
        pivot = max(range(one, size), key=lambda number: abs(rows[number][one]))
        rows[one], rows[pivot] = rows[pivot], rows[one]
        for other in range(size):
            if other != one:
                factor = rows[other][one] / rows[one][one]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[one], strict=True)]
    return [max(-1.0, min(1.0, rows[number][-1] / rows[number][number])) for number in range(size)]
