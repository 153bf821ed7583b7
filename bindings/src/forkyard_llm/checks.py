"""Numbers and flags as callers give them: checked, and made the plain Python value that C is handed.

ctypes checks no number: it cuts an integer to the width of its field and turns a number beyond a C float into infinity.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

from .errors import UsageError

__all__ = ["FLOAT_MAX", "INT_MAX", "flag", "integer", "number", "shown", "token_ids"]

INT_MAX = 2**31 - 1
"""The largest C int."""
FLOAT_MAX = (2 - 2**-23) * 2.0**127
"""The largest C float (IEEE 754 binary32)."""
_SHOWN = 80
_FLOAT_TINY = 2.0**-126  # the smallest number above 0 that a C float holds in full precision


def flag(name: str, value: object) -> bool:
    """``value`` if it is True or False; 1, "no" and the like are not.

    Raises:
        UsageError: naming the option.
    """
    if not isinstance(value, bool):
        msg = f"{name} must be True or False; got {shown(value)}"
        raise UsageError(msg)
    return value


def integer(name: str, value: object, low: int, high: int = INT_MAX) -> int:
    """``value`` as an int, if it is an integer (numpy's too, no bool) from ``low`` to ``high``.

    Raises:
        UsageError: naming the option and the range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        msg = f"{name} must be an integer from {low} to {high}; got {shown(value)}"
        raise UsageError(msg)
    return int(value)


def number(name: str, value: object, low: float = -FLOAT_MAX, high: float = FLOAT_MAX) -> float:
    """``value`` as a float, if it is a finite number (numpy's too, no bool) from ``low`` to ``high``.

    What a C float would round to 0 is refused as well: 0 often has a meaning of its own.

    Raises:
        UsageError: naming the option and the range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value or abs(value) == math.inf:
        msg = f"{name} must be a finite number; got {shown(value)}"
        raise UsageError(msg)
    # An integer too large for a Python float is compared as it is.
    exact = value if isinstance(value, int) else float(value)
    if not low <= exact <= high or 0 < abs(exact) < _FLOAT_TINY:
        upper = "" if high == FLOAT_MAX else f" and at most {high:g}"
        msg = f"{name} must be at least {low:g}{upper}; got {shown(value)}"
        raise UsageError(msg)
    return float(exact)


def token_ids(what: str, tokens: Iterable[object]) -> list[int]:
    """Token ids as plain ints; whether the vocabulary has them is for the session to say.

    Raises:
        UsageError: ``tokens`` is no sequence, or holds something that is no integer.
    """
    try:
        given = list(tokens)
    except TypeError as error:
        msg = f"{what} must be a sequence of token ids; got {shown(tokens)}"
        raise UsageError(msg) from error
    return [
        # Nearly all are plain already, and a prompt may have many.
        token if type(token) is int else integer(f"token {index} of {what}", token, -INT_MAX - 1)
        for index, token in enumerate(given)
    ]


def shown(value: object) -> str:
    """A value as an error message shows it: what Python writes, not too much of it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out an integer of thousands of digits
        return "an integer of very many digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
