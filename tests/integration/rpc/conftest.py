"""The engine with RPC, and how its servers are greeted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from forkyard_llm.payloads import Payload

from ..conftest import RpcServers, only_named_payloads, payload_under_test, whole_rpc_payload_under_test

__all__ = ["ANSWER", "ENGINE", "HELLO", "RpcServers", "payload"]

ENGINE = "llama.cpp"
# RPC_CMD_HELLO with its length and no capabilities; the answer is a length and as much again.
HELLO = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)
ANSWER = 8 + 28


@pytest.fixture(scope="module")
def payload(rpc_payload: Callable[[str], Payload]) -> Payload:
    """The engine with RPC as the recipe has it."""
    named = whole_rpc_payload_under_test(ENGINE) or payload_under_test(f"{ENGINE}-few-rpc") is not None
    if only_named_payloads() and not named:
        pytest.skip(f"few-rpc of {ENGINE} is not under test")
    return rpc_payload(ENGINE)
