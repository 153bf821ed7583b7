"""How fast the machine builds decides no test."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


@pytest.mark.timeout(0.5)
def test_the_limit_of_a_test_is_lifted_for_a_build(lift_limit: Callable[[], None]) -> None:
    lift_limit()
    time.sleep(0.7)
