from __future__ import annotations

import math
from fractions import Fraction

import numpy
import pytest
from forkyard_llm.checks import FLOAT_MAX, INT_MAX, flag, integer, number, token_ids
from forkyard_llm.errors import UsageError


@pytest.mark.parametrize("value", [1, 0, "yes", None, numpy.True_, [], 1.0])
def test_only_true_and_false_are_flags(value: object):
    with pytest.raises(UsageError, match="use_mmap must be True or False; got"):
        flag("use_mmap", value)
    assert flag("use_mmap", True) is True


@pytest.mark.parametrize("value", [True, 1.0, "1", None, math.nan, -1, 2**31, numpy.float32(1), [1]])
def test_what_is_no_integer_in_range_is_refused(value: object):
    with pytest.raises(UsageError, match="n_ctx must be an integer from 0 to 2147483647; got"):
        integer("n_ctx", value, 0)


@pytest.mark.parametrize("kind", [numpy.int8, numpy.uint8, numpy.int64, int])
def test_numpy_s_integers_become_plain_ones(kind: type):
    assert type(integer("n_ctx", kind(7), 0)) is int


@pytest.mark.parametrize(
    "value", [True, "1", None, math.nan, math.inf, -math.inf, 1e39, -1e39, 10**400, 1e-40, 1j, numpy.float32("nan")]
)
def test_what_no_c_float_holds_is_refused(value: object):
    with pytest.raises(UsageError, match="temperature must be "):
        number("temperature", value)


def test_numbers_within_their_range():
    assert type(number("x", numpy.float32(0.5))) is float
    assert number("x", Fraction(1, 4), 0, 1) == 0.25
    assert number("x", 0, 0) == number("x", -0.0, 0) == 0
    assert number("x", FLOAT_MAX) == FLOAT_MAX
    with pytest.raises(UsageError, match="x must be at least 0 and at most 1; got 1.5"):
        number("x", 1.5, 0, 1)


def test_long_values_are_not_written_out():
    for value in ("9" * 10_000, 10**5_000):  # the second is more than Python's own repr writes
        with pytest.raises(UsageError) as caught:
            integer("n_ctx", value, 0)
        assert len(str(caught.value)) < 200


def test_tokens_are_integers():
    assert token_ids("tokens", numpy.array([1, 2])) == [1, 2]
    assert token_ids("tokens", iter([3])) == [3]
    for wrong in ([1, True], [1, 2.0], ["1"], [None], "ab"):
        with pytest.raises(UsageError, match="token . of tokens must be an integer"):
            token_ids("tokens", wrong)
    for wrong in (5, None):
        with pytest.raises(UsageError, match="tokens must be a sequence of token ids"):
            token_ids("tokens", wrong)  # type: ignore[arg-type]
    assert INT_MAX == 2**31 - 1
