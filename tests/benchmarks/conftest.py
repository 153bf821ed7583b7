"""The engines and the model the integration tests use, for benchmarks; and every run goes into their history."""

from __future__ import annotations

from typing import Any

import pytest

from ..integration.conftest import (
    dist,
    engine_payload,
    lift_limit,
    payloads,
    pytest_runtest_protocol,
    smollm2,
    variant,
)
from .history import storage

__all__ = ["dist", "engine_payload", "lift_limit", "payloads", "pytest_runtest_protocol", "smollm2", "variant"]


def pytest_configure(config: pytest.Config) -> None:
    """Before pytest-benchmark looks: a run of its own words for them keeps those."""
    if not (config.option.benchmark_save or config.option.benchmark_autosave):
        config.option.benchmark_autosave = True
        config.option.benchmark_storage = storage().as_uri()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Nothing says whose machine it is."""
    machine_info.pop("node", None)
