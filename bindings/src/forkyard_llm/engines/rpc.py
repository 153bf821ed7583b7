"""Servers of the engines' RPC, whose devices a model may use: their addresses, and a greeting before an engine calls.

Without the stack ``rpc`` an engine ends the process over a server that is not there, closes, or answers what no server
does. So each is greeted here first, and what is wrong is said of its address. A server serves one connection at a time:
one that this process uses is not greeted again.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable
from types import ModuleType

from ..checks import flag, shown
from ..errors import EngineError, UsageError

__all__ = ["Servers", "addresses"]

_PATIENCE_S = 10.0
# enum rpc_cmd of ggml-rpc.cpp, the same in both families; upstream promises the first for all versions.
_HELLO = 14
_DEVICE_COUNT = 15
_LONGEST = 64
_MOST_DEVICES = 64


def addresses(given: Iterable[object], allow_remote: object) -> tuple[str, ...]:
    """``rpc_servers`` as the engines take them: ``IPv4:PORT``, names resolved.

    Args:
        given: texts ``HOST:PORT``.
        allow_remote: whether they may be of other machines.

    Raises:
        UsageError: one is no such text, is not known, is there twice, or is another machine's without leave.
    """
    flag("allow_remote_rpc", allow_remote)
    if isinstance(given, str) or not isinstance(given, Iterable):
        msg = f'rpc_servers must be a sequence of addresses, as ["127.0.0.1:50052"]; got {shown(given)}'
        raise UsageError(msg)
    found: list[str] = []
    for word in given:
        address = _resolved(word)
        if not allow_remote and not ipaddress.ip_address(address.partition(":")[0]).is_loopback:
            msg = (
                f"the RPC server {word} is another machine's, and RPC is neither authenticated nor encrypted: reach it"
                " through a tunnel (ssh -L 50052:127.0.0.1:50052 HOST), or allow it (allow_remote_rpc=True, on the"
                " command line --allow-remote-rpc) if everybody on the way is trusted"
            )
            raise UsageError(msg)
        if address in found:
            msg = f"rpc_servers names {address} twice"
            raise UsageError(msg)
        found.append(address)
    return tuple(found)


def _resolved(word: object) -> str:
    host, _, port = word.rpartition(":") if isinstance(word, str) else ("", "", "")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    # The engines take what follows the first colon for the port, and know IPv4 alone.
    if not host or ":" in host or not 1 <= number <= 65535:
        msg = f"an RPC server is HOST:PORT, with an IPv4 address or a name, as 127.0.0.1:50052; got {shown(word)}"
        raise UsageError(msg)
    try:
        entries = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a name, such as a..b
        why = error.strerror if isinstance(error, OSError) else error
        msg = f"the RPC server {word}: {host} has no IPv4 address: {why}"
        raise UsageError(msg) from error
    return f"{entries[0][4][0]}:{number}"


class Servers:
    """The servers one payload may call, and those that its open models use.

    Args:
        version: major and minor version of the payload's RPC.
        greeting: what its client sends with the greeting.
    """

    def __init__(self, version: tuple[int, int], greeting: bytes) -> None:
        self._version = version
        self._greeting = greeting
        self._devices: dict[str, int] = {}
        self._used: Counter[str] = Counter()

    @classmethod
    def of(cls, abi: ModuleType, greeting: bytes) -> Servers:
        """Those of the payload whose generated module is ``abi``; of one without RPC nobody asks for any."""
        words = ("RPC_PROTO_MAJOR_VERSION", "RPC_PROTO_MINOR_VERSION")
        major, minor = (int(getattr(abi, word, 0)) for word in words)
        return cls((major, minor), greeting)

    def use(self, servers: Iterable[str]) -> None:
        """Note that a model uses these servers, until :meth:`leave`."""
        self._used.update(servers)

    def leave(self, servers: Iterable[str]) -> None:
        """Note that a model no longer uses these servers."""
        self._used.subtract(servers)

    def greet(self, address: str) -> int:
        """How many devices the server at ``address`` has.

        Raises:
            EngineError: it is not there, does not answer in time, or is no server that the payload can work with.
        """
        if self._used[address] <= 0:
            self._devices[address] = _devices(address, self._version, self._greeting)
        return self._devices[address]


def _devices(address: str, version: tuple[int, int], greeting: bytes) -> int:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + _PATIENCE_S
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE_S) as link:
            hello = _ask(link, _HELLO, greeting, deadline)
            theirs = tuple(hello[:2])
            if len(hello) < 3:
                raise _NoServerError
            if theirs[0] != version[0] or theirs[1] > version[1]:
                msg = (
                    f"the RPC server at {address} speaks version {theirs[0]}.{theirs[1]}, this payload"
                    f" {version[0]}.{version[1]}: start there the server of the same payload"
                )
                raise EngineError(msg)
            answer = _ask(link, _DEVICE_COUNT, b"", deadline)
            if len(answer) != 4:
                raise _NoServerError
            count = int.from_bytes(answer, "little")
            if not 1 <= count <= _MOST_DEVICES:
                raise _NoServerError
            return count
    except TimeoutError as error:
        msg = (
            f"the RPC server at {address} does not answer within {_PATIENCE_S:.0f} s; a server serves one engine at a"
            " time: does another one use it?"
        )
        raise EngineError(msg) from error
    except (_NoServerError, EOFError, ConnectionResetError, BrokenPipeError) as error:
        does = "answers what no RPC server does" if isinstance(error, _NoServerError) else "closes the connection"
        msg = (
            f"what listens at {address} {does} when it is greeted: it is no RPC server, or one of another engine or"
            " version; start there the server of the same payload"
        )
        raise EngineError(msg) from error
    except OSError as error:
        msg = f"there is no RPC server at {address}: {error.strerror or error}; start one there, or correct the address"
        raise EngineError(msg) from error


class _NoServerError(Exception):
    """It answers, and not as a server does."""


def _ask(link: socket.socket, command: int, payload: bytes, deadline: float) -> bytes:
    """Request: command (1 byte), size (8), what it is about. Answer: size (8), what it says."""
    link.sendall(struct.pack("<BQ", command, len(payload)) + payload)
    (size,) = struct.unpack("<Q", _receive(link, 8, deadline))
    if size > _LONGEST:
        raise _NoServerError
    return _receive(link, size, deadline)


def _receive(link: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        # A server that sends a byte now and then must not keep us for ever.
        link.settimeout(max(deadline - time.monotonic(), 0.001))
        more = link.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
