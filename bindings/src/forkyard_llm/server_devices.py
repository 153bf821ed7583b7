"""What llama-server is told of devices: RPC servers are greeted first, and a tensor split is not fitted to memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from .engines.rpc import addresses
from .errors import UnsupportedOption
from .health import option_name
from .loading import rpc_servers
from .payloads import Payload

__all__ = ["device_arguments", "rpc_arguments"]

_RPC = ("--rpc",)
_SPLIT = ("-sm", "--split-mode")
_FIT = ("-fit", "--fit")
# llama.cpp's; ik_llama.cpp reads none of them.
_VARIABLES = {_RPC: "LLAMA_ARG_RPC", _SPLIT: "LLAMA_ARG_SPLIT_MODE", _FIT: "LLAMA_ARG_FIT"}


def device_arguments(
    payload: Payload, arguments: Sequence[str], environment: Mapping[str, str], *, allow_remote: bool
) -> list[str]:
    """The arguments for the llama-server of `payload`: RPC servers first, as devices are known by name only after them.

    Raises UnsupportedOption (a payload without RPC), UsageError (an address), EngineError (a server that is not there).
    """
    front, others = rpc_arguments(payload, arguments, environment, allow_remote=allow_remote)
    tensor = _last(others, _SPLIT) or _variable(payload, environment, _SPLIT)
    fitting = any(option_name(argument) in _FIT for argument in others) or _variable(payload, environment, _FIT)
    if payload.engine == "llama.cpp" and tensor == "tensor" and not fitting:
        # It has no way to fit such a split to memory; by itself it tries, fails, says so and goes on.
        front += ["-fit", "off"]
    return [*front, *others]


def rpc_arguments(
    payload: Payload, arguments: Sequence[str], environment: Mapping[str, str], *, allow_remote: bool
) -> tuple[list[str], list[str]]:
    """What names the RPC servers, which were greeted, and the arguments without it. Raises as `device_arguments`."""
    own, others = _taken(arguments)
    given = own or _variable(payload, environment, _RPC)
    if not given:
        return [], others
    if not payload.remote:
        msg = (
            f"--rpc {given}: {payload.distribution} has no RPC; take a payload of the variant rpc (--variant rpc;"
            " `nox -s build-rpc` builds one)"
        )
        raise UnsupportedOption(msg)
    found = addresses(given.split(","), allow_remote)
    servers = rpc_servers(payload)
    for address in found:
        servers.greet(address)
    return ["--rpc", ",".join(found)], others


def _taken(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The value of the last --rpc, and the arguments without any."""
    value, others = "", list(arguments)
    while (at := next((i for i, argument in enumerate(others[:-1]) if argument in _RPC), None)) is not None:
        value = others[at + 1]
        del others[at : at + 2]
    return value, others


def _last(arguments: Sequence[str], names: Sequence[str]) -> str:
    values = [value for name, value in itertools.pairwise(arguments) if option_name(name) in names]
    return values[-1] if values else ""


def _variable(payload: Payload, environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return environment.get(_VARIABLES[names], "") if payload.engine == "llama.cpp" else ""
