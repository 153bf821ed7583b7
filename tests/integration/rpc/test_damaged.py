"""Damaged messages to an RPC server: they end the connection, and not the server.

What a graph computes is the message's, and the server checks none of it; such messages are counted, in
docs/stacks/rpc.md.
"""

from __future__ import annotations

import random
import resource
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from forkyard_llm.payloads import Payload

from .conftest import ENGINE, RpcServers
from .damaged import BUFFER, COMMANDS, COMPUTING, DAMAGES, Client, Tensor, damaged, message

SEED = 20261130
ROUNDS = 50
"""For each command and damage."""
MEMORY = 4 << 30
"""A message may ask for any amount; the server has a few hundred MB mapped."""


class Server:
    """One that is there: another is started when it has ended."""

    def __init__(self, start: RpcServers) -> None:
        self._start = start
        self._address = ""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._start.processes[self._address]

    def client(self) -> Client:
        if not self._address or self.process.poll() is not None:
            (self._address,) = self._start(ENGINE, 1)
            resource.prlimit(self.process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))
        return Client(self._address)

    def end_after(self, make: Callable[[Client], bytes]) -> int | None:
        """How the server ended of a message, or None: it serves the next client."""
        try:
            with self.client() as client:
                client.end_with(make(client))
        except TimeoutError:
            self.process.kill()
        process = self.process
        try:
            with self.client():
                pass
        except OSError:
            return process.wait(30)
        return process.poll()


@pytest.fixture(scope="module")
def server(payload: Payload, rpc_servers: RpcServers) -> Server:
    return Server(rpc_servers)


@pytest.mark.patch
def test_messages_are_what_the_server_takes(server: Server) -> None:
    """Otherwise a damage to one of them would show nothing."""
    with server.client() as client:
        answers = {name: len(client.ask(name, client.sound(name))) for name in ("set-tensor-hash", "get-alloc-size")}
        answers |= {name: len(client.ask(name, client.sound(name))) for name in ("device-count", "get-device-memory")}
        answers |= {name: len(client.ask(name, client.sound(name))) for name in ("get-alignment", "get-max-size")}
        assert answers == {
            "set-tensor-hash": 1,
            "get-alloc-size": 8,
            "device-count": 4,
            "get-device-memory": 16,
            "get-alignment": 8,
            "get-max-size": 8,
        }
        client.tell("buffer-clear", client.sound("buffer-clear"))
        client.tell("init-tensor", client.sound("init-tensor"))
        client.tell("set-tensor", client.sound("set-tensor"))
        assert client.ask("copy-tensor", client.sound("copy-tensor")) == b"\1"
        client.tell("graph-compute", client.sound("graph-compute"))
        client.tell("graph-recompute", client.sound("graph-recompute"))
        sums = Tensor(3, client.buffer, client.base + 128).packed() + struct.pack("<QQ", 0, 64)
        assert struct.unpack("<16f", client.ask("get-tensor", sums)) == tuple(2.0 * one for one in range(16))
        client.tell("memset-tensor", client.sound("memset-tensor"))
        assert client.ask("get-tensor", client.sound("get-tensor")) == b"\7" * 64
        client.tell("free-buffer", client.sound("free-buffer"))
        assert len(client.ask("device-count", b"")) == 4


def beyond(client: Client) -> Tensor:
    return Tensor(1, client.buffer, client.base + BUFFER - 60)


CRASHES: dict[str, Callable[[Client], bytes]] = {
    "size-of-message": lambda client: bytes([COMMANDS["set-tensor"]]) + struct.pack("<Q", 1 << 63),
    "size-of-graph": lambda client: bytes([COMMANDS["graph-compute"]]) + struct.pack("<Q", (1 << 64) - 1),
    "too-many-elements": lambda client: message("init-tensor", Tensor(ne=(1 << 31,) * 4).packed()),
    "a-dimension-of-none": lambda client: message("init-tensor", Tensor(ne=(1 << 31, 0, 1 << 31, 1 << 31)).packed()),
    "beyond-the-buffer": lambda client: message("init-tensor", beyond(client).packed()),
    "before-the-buffer": lambda client: message("init-tensor", Tensor(1, client.buffer, client.base - 4).packed()),
    "nowhere": lambda client: message("copy-tensor", Tensor(1, client.buffer, (1 << 64) - 4).packed() * 2),
    "write-beyond-the-tensor": lambda client: message(
        "set-tensor", Tensor(1, client.buffer, client.base).packed() + bytes(9) + bytes(68)
    ),
    "read-beyond-the-tensor": lambda client: message(
        "get-tensor", Tensor(1, client.buffer, client.base).packed() + struct.pack("<QQ", 60, 8)
    ),
    "beyond-the-buffer-in-a-graph": lambda client: message(
        "graph-compute", struct.pack("<IIQI", 0, 1, 1, 1) + beyond(client).packed()
    ),
}


@pytest.mark.patch("rpc-damaged-messages")
@pytest.mark.parametrize("crash", CRASHES)
def test_a_message_that_ended_the_server(server: Server, crash: str) -> None:
    assert server.end_after(CRASHES[crash]) is None


@pytest.mark.deep
def test_damaged_messages_end_the_connection(server: Server, record_property: Callable[[str, object], None]) -> None:
    """Every command with every kind of damage, by chance with a fixed seed."""
    chance = random.Random(SEED)
    ends: Counter[tuple[str, str, int]] = Counter()
    for command in COMMANDS:
        for damage in DAMAGES:
            for _ in range(ROUNDS):
                end = server.end_after(partial(damaged, command=command, damage=damage, chance=chance))
                if end is not None:
                    ends[command, damage, end] += 1
    record_property("ends", sorted(ends.items()))
    print(*sorted(ends.items()), sep="\n")
    assert {key for key in ends if key[0] not in COMPUTING} == set()
