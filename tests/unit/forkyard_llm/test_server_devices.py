"""What llama-server is told of RPC servers and splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import server_devices
from forkyard_llm.errors import UnsupportedOption, UsageError
from forkyard_llm.payloads import Payload, read_payload
from forkyard_llm.server_devices import device_arguments

MakePayload = Callable[..., Path]
REMOTE = {"library": None, "requires": [], "needs": [], "remote": True}


@pytest.fixture
def greeted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The servers that were greeted, none of which there is."""
    found: list[str] = []

    class Servers:
        def greet(self, address: str) -> None:
            found.append(address)

    monkeypatch.setattr(server_devices, "rpc_servers", lambda _payload: Servers())
    return found


@pytest.fixture
def payload(make_payload: MakePayload) -> Payload:
    return read_payload(make_payload("forkyard-llama-cpp-rpc", kind="backend", backend=REMOTE))


def arguments(payload: Payload, *given: str, allow_remote: bool = False, **environment: str) -> list[str]:
    return device_arguments(payload, given, environment, allow_remote=allow_remote)


def test_servers_are_greeted_and_come_before_the_devices(payload: Payload, greeted: list[str]) -> None:
    given = ["-dev", "RPC0,RPC1", "--rpc", "localhost:50052,127.0.0.1:50053", "-c", "512"]
    both = "127.0.0.1:50052,127.0.0.1:50053"
    assert arguments(payload, *given) == ["--rpc", both, "-dev", "RPC0,RPC1", "-c", "512"]
    assert greeted == both.split(",")
    # The last one counts, as for llama-server; the variable where there is none.
    assert arguments(payload, "--rpc", "127.0.0.1:1", "--rpc", "127.0.0.1:2")[:2] == ["--rpc", "127.0.0.1:2"]
    assert arguments(payload, LLAMA_ARG_RPC="127.0.0.1:3") == ["--rpc", "127.0.0.1:3"]
    assert greeted[2:] == ["127.0.0.1:2", "127.0.0.1:3"]


def test_other_machines_are_called_only_when_that_is_asked_for(payload: Payload, greeted: list[str]) -> None:
    for given, environment in (("--rpc", "192.0.2.7:1"), {}), ((), {"LLAMA_ARG_RPC": "192.0.2.7:1"}):
        with pytest.raises(UsageError, match="another machine's"):
            arguments(payload, *given, **environment)
        assert arguments(payload, *given, allow_remote=True, **environment) == ["--rpc", "192.0.2.7:1"]
    assert greeted == ["192.0.2.7:1"] * 2


def test_a_payload_without_rpc(make_payload: MakePayload, greeted: list[str]) -> None:
    plain = read_payload(make_payload())
    with pytest.raises(
        UnsupportedOption, match="forkyard-llama-cpp-avx2 has no RPC; take a payload of the variant rpc"
    ):
        arguments(plain, "--rpc", "127.0.0.1:1")
    assert arguments(plain, "-c", "512", "--rpc") == ["-c", "512", "--rpc"]
    assert greeted == []


@pytest.mark.parametrize(
    ("given", "environment", "off"),
    [
        (("-sm", "tensor"), {}, True),
        (("--split-mode", "tensor"), {}, True),
        ((), {"LLAMA_ARG_SPLIT_MODE": "tensor"}, True),
        (("-sm", "layer"), {"LLAMA_ARG_SPLIT_MODE": "tensor"}, False),
        (("-sm", "tensor", "-sm", "layer"), {}, False),
        (("-sm", "tensor", "-fit", "on"), {}, False),
        (("-sm", "tensor"), {"LLAMA_ARG_FIT": "off"}, False),
        (("-sm", "layer"), {}, False),
        ((), {}, False),
    ],
)
def test_a_tensor_split_is_not_fitted_to_memory(
    make_payload: MakePayload, given: tuple[str, ...], environment: dict[str, str], off: bool
) -> None:
    plain = read_payload(make_payload())
    assert arguments(plain, *given, **environment) == [*(["-fit", "off"] if off else []), *given]
    ik = read_payload(make_payload("forkyard-ik-llama-cpp-avx2"))
    assert arguments(ik, *given, **environment) == [*given]
