"""Messages to an RPC server, sound and damaged; the structs are those of ggml-rpc.cpp."""

from __future__ import annotations

import random
import socket
import struct
from dataclasses import dataclass

from .conftest import ANSWER, HELLO

COMMANDS = {
    "alloc-buffer": 0,
    "get-alignment": 1,
    "get-max-size": 2,
    "buffer-get-base": 3,
    "free-buffer": 4,
    "buffer-clear": 5,
    "set-tensor": 6,
    "set-tensor-hash": 7,
    "get-tensor": 8,
    "copy-tensor": 9,
    "graph-compute": 10,
    "get-device-memory": 11,
    "init-tensor": 12,
    "get-alloc-size": 13,
    "device-count": 15,
    "graph-recompute": 16,
    "memset-tensor": 17,
}
COMPUTING = ("graph-compute", "graph-recompute")
"""What they compute is the message's: op, shapes and sources."""
DAMAGES = ("field", "bytes", "cut", "size", "early-end", "command")
BUFFER = 4096
TIMEOUT_S = 30.0
ADD, COMPUTE = 2, 16
EXTREME = (0, 1, 2, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@dataclass(frozen=True)
class Tensor:
    """f32 in one row."""

    id: int = 1
    buffer: int = 0
    data: int = 0
    ne: tuple[int, ...] = (16, 1, 1, 1)
    type: int = 0
    op: int = 0
    src: tuple[int, ...] = ()

    def packed(self) -> bytes:
        row = 4 * self.ne[0] & 0xFFFFFFFF
        src = self.src + (0,) * (10 - len(self.src))
        head = struct.pack("<QIQ4I4II", self.id, self.type, self.buffer, *self.ne, 4, row, row, row, self.op)
        return head + bytes(64) + struct.pack("<i10QQQQ64si", COMPUTE, *src, 0, 0, self.data, b"t", 1)


class Client:
    """A greeted connection with one buffer on the server."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        # Its read waits for all, which recv of a socket with a time limit does not.
        self._answers = self._socket.makefile("rb")
        try:
            self._socket.sendall(HELLO)
            self._read(ANSWER)
            self.buffer, _ = struct.unpack("<QQ", self.ask("alloc-buffer", struct.pack("<IQ", 0, BUFFER)))
            (self.base,) = struct.unpack("<Q", self.ask("buffer-get-base", struct.pack("<Q", self.buffer)))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def _read(self, size: int) -> bytes:
        read = self._answers.read(size)
        if len(read) != size:
            msg = "the server closed the connection"
            raise ConnectionError(msg)
        return read

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, command: str, body: bytes) -> None:
        """Send a message that has no answer."""
        self._socket.sendall(message(command, body))

    def ask(self, command: str, body: bytes) -> bytes:
        """Send a message and return its answer."""
        self.tell(command, body)
        (size,) = struct.unpack("<Q", self._read(8))
        return self._read(size)

    def end_with(self, sent: bytes) -> None:
        """Send bytes, and no more, and wait until the server has closed the connection."""
        try:
            self._socket.sendall(sent)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(1 << 16):
                pass
        except TimeoutError:
            raise
        except OSError:
            # Closed by the server, before or while the rest was sent.
            pass

    def sound(self, command: str) -> bytes:
        """The body of a message that the server takes."""
        one, two, sum_ = (
            Tensor(number, self.buffer, self.base + 64 * (number - 1), op=op, src=src)
            for number, op, src in ((1, 0, ()), (2, 0, ()), (3, ADD, (1, 2)))
        )
        packed = one.packed()
        return {
            "alloc-buffer": struct.pack("<IQ", 0, BUFFER),
            "get-alignment": bytes(4),
            "get-max-size": bytes(4),
            "buffer-get-base": struct.pack("<Q", self.buffer),
            "free-buffer": struct.pack("<Q", self.buffer),
            "buffer-clear": struct.pack("<QB", self.buffer, 1),
            "set-tensor": packed + bytes(1) + bytes(8) + struct.pack("<16f", *range(16)),
            "set-tensor-hash": packed + bytes(16),
            "get-tensor": packed + struct.pack("<QQ", 0, 64),
            "copy-tensor": packed + two.packed(),
            "graph-compute": struct.pack("<IIQI", 0, 1, sum_.id, 3) + packed + two.packed() + sum_.packed(),
            "get-device-memory": bytes(4),
            "init-tensor": packed,
            "get-alloc-size": bytes(4) + packed + bytes(10 * len(packed)),
            "device-count": b"",
            "graph-recompute": bytes(4),
            "memset-tensor": packed + struct.pack("<QQB", 0, 64, 7),
        }[command]


def message(command: str, body: bytes) -> bytes:
    return bytes([COMMANDS[command]]) + struct.pack("<Q", len(body)) + body


def damaged(client: Client, command: str, damage: str, chance: random.Random) -> bytes:
    """A sound message of this command with one damage of this kind."""
    body = bytearray(client.sound(command))
    number, size = COMMANDS[command], len(body)
    if damage == "field" and body:
        for _ in range(chance.choice((1, 1, 2))):
            width = chance.choice([width for width in (1, 4, 8) if width <= len(body)])
            at = chance.randrange(0, len(body) - width + 1, min(width, 4))
            value = chance.choice((*EXTREME, client.base, client.base + BUFFER, client.buffer, chance.getrandbits(64)))
            body[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    elif damage == "bytes" and body:
        for _ in range(chance.randint(1, 8)):
            body[chance.randrange(len(body))] = chance.getrandbits(8)
    elif damage == "cut":
        del body[chance.randint(0, len(body)) :]
        size = len(body)
    elif damage == "size":
        size = chance.choice((*EXTREME, len(body) + 1, max(len(body) - 1, 0)))
    elif damage == "early-end":
        del body[chance.randint(0, len(body)) :]
    elif damage == "command":
        number = chance.choice([*COMMANDS.values(), 14, 18, 19, 255])
    return bytes([number]) + struct.pack("<Q", size) + bytes(body)
