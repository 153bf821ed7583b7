"""Addresses of RPC servers, and greeting what listens there: servers, things that are none, and nothing."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from forkyard_llm.engines import rpc
from forkyard_llm.engines.rpc import Servers, addresses
from forkyard_llm.errors import EngineError, UsageError

GREETING = bytes(24)
VERSION = (7, 2)
Talk = Callable[[socket.socket], None]


def answered(*parts: bytes) -> Talk:
    """Answers one request after the other with these, each after its size."""

    def talk(link: socket.socket) -> None:
        for part in parts:
            head = link.recv(9, socket.MSG_WAITALL)
            link.recv(int.from_bytes(head[1:9], "little"), socket.MSG_WAITALL)
            link.sendall(struct.pack("<Q", len(part)) + part)
        link.recv(1)

    return talk


def hello(major: int, minor: int, more: int = 25) -> bytes:
    return bytes([major, minor, 0]) + bytes(more)


def devices(count: int) -> bytes:
    return count.to_bytes(4, "little")


@pytest.fixture
def listening() -> Iterator[Callable[[Talk], str]]:
    """A function that has something listen on a port, once, and gives its address."""
    threads, sockets = [], []

    def listen(talk: Talk) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def serve() -> None:
            try:
                with server, server.accept()[0] as link:
                    link.settimeout(30)
                    talk(link)
            except OSError:
                return

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for server in sockets:
        server.close()


@pytest.fixture
def servers() -> Servers:
    return Servers(VERSION, GREETING)


@pytest.mark.parametrize(("version", "count"), [((7, 2), 1), ((7, 0), 3)])
def test_a_server_says_how_many_devices_it_has(
    listening: Callable[[Talk], str], servers: Servers, version: tuple[int, int], count: int
) -> None:
    heard: list[bytes] = []

    def talk(link: socket.socket) -> None:
        heard.append(link.recv(9 + len(GREETING), socket.MSG_WAITALL))
        link.sendall(struct.pack("<Q", 28) + hello(*version))
        heard.append(link.recv(9, socket.MSG_WAITALL))
        link.sendall(struct.pack("<Q", 4) + devices(count))

    assert servers.greet(listening(talk)) == count
    assert heard == [bytes([14]) + struct.pack("<Q", 24) + GREETING, bytes([15]) + struct.pack("<Q", 0)]


def drip(link: socket.socket) -> None:
    while True:
        link.sendall(b"\x01")
        time.sleep(0.05)


def silence(link: socket.socket) -> None:
    while link.recv(100):
        pass


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (lambda link: None, "closes the connection when it is greeted: it is no RPC server, or one of another engine"),
        (lambda link: link.sendall(b"\x1c"), "closes the connection"),
        (lambda link: link.sendall(struct.pack("<Q", 28) + b"\x07"), "closes the connection"),
        (answered(hello(7, 0)), "closes the connection"),
        (lambda link: link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "answers what no RPC server does"),
        (lambda link: link.sendall(b"\xff" * 64), "answers what no RPC server does"),
        (answered(b"\x07\x00"), "answers what no RPC server does"),
        (answered(b""), "answers what no RPC server does"),
        (answered(hello(7, 0), devices(0)), "answers what no RPC server does"),
        (answered(hello(7, 0), devices(2**32 - 1)), "answers what no RPC server does"),
        (answered(hello(7, 0), b"\x01"), "answers what no RPC server does"),
        (answered(hello(7, 3)), r"speaks version 7\.3, this payload 7\.2: start there the server of the same payload"),
        (answered(hello(3, 5, 0)), r"speaks version 3\.5, this payload 7\.2"),
        (silence, "does not answer within 1 s; a server serves one engine at a time: does another one use it"),
        (drip, r"answers what no RPC server does|does not answer within 1 s"),
    ],
)
def test_what_is_no_server_for_this_payload(
    listening: Callable[[Talk], str], servers: Servers, monkeypatch: pytest.MonkeyPatch, talk: Talk, said: str
) -> None:
    monkeypatch.setattr(rpc, "_PATIENCE_S", 1.0)
    address = listening(talk)
    with pytest.raises(EngineError, match=said) as caught:
        servers.greet(address)
    assert address in str(caught.value)


def test_nothing_listens(servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EngineError, match=f"there is no RPC server at 127.0.0.1:{port}: .*; start one there"):
        servers.greet(f"127.0.0.1:{port}")


def test_a_server_that_this_process_uses_is_not_greeted_again(
    listening: Callable[[Talk], str], servers: Servers
) -> None:
    """It serves one connection at a time, and that is the model's."""
    address = listening(answered(hello(7, 0), devices(2)))
    assert servers.greet(address) == 2
    servers.use([address])
    servers.use([address])
    servers.leave([address])
    assert servers.greet(address) == 2
    servers.leave([address])
    with pytest.raises(EngineError):
        servers.greet(address)


def test_the_version_is_that_of_the_headers() -> None:
    abi = cast("Any", SimpleNamespace(RPC_PROTO_MAJOR_VERSION=7, RPC_PROTO_MINOR_VERSION=2))
    assert Servers.of(abi, GREETING)._version == (7, 2)
    assert Servers.of(cast("Any", SimpleNamespace()), b"")._version == (0, 0)


# -- addresses


def test_addresses_are_resolved_before_an_engine_sees_them() -> None:
    assert addresses(["127.0.0.1:50052", "localhost:50053"], False) == ("127.0.0.1:50052", "127.0.0.1:50053")
    assert addresses(["127.9.9.9:1"], False) == ("127.9.9.9:1",)
    assert addresses((), False) == ()


@pytest.mark.parametrize(
    "given",
    [
        *("127.0.0.1:50052", 7, None, [7], ["127.0.0.1"], ["127.0.0.1:"], [":50052"], ["127.0.0.1:0"]),
        *(["127.0.0.1:65536"], ["127.0.0.1:-1"], ["127.0.0.1:5x"], ["127.0.0.1:٣"], ["[::1]:50052"], ["::1:50052"]),
        *(["127.0.0.1:50052", "localhost:50052"], ["a..b:1"], ["127.0.0.1:50052,127.0.0.1:50053"], ["127.0.0.1:1|0"]),
    ],
)
def test_what_is_no_address(given: Any) -> None:
    with pytest.raises(UsageError):
        addresses(given, True)


def test_another_machine_is_called_only_when_that_is_asked_for() -> None:
    for host in ("192.0.2.7", "0.0.0.0"):
        with pytest.raises(
            UsageError, match=f"{host}:50052 is another machine's, .*neither authenticated nor encrypted"
        ):
            addresses([f"{host}:50052"], False)
        assert addresses([f"{host}:50052"], True) == (f"{host}:50052",)
    for odd in (1, "yes", None):
        with pytest.raises(UsageError, match="allow_remote_rpc must be True or False"):
            addresses([], odd)
