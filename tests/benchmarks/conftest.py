"""The engines and the model the integration tests use, for benchmarks."""

from __future__ import annotations

from ..integration.conftest import (
    dist,
    engine_payload,
    lift_limit,
    payloads,
    pytest_runtest_protocol,
    smollm2,
    variant,
)

__all__ = ["dist", "engine_payload", "lift_limit", "payloads", "pytest_runtest_protocol", "smollm2", "variant"]
