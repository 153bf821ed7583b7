"""GGUF files, put together byte by byte: keys, tensors and what stands around them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

U8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
_FORMATS = {U8: "B", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", F64: "d"}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def u32(key: bytes, value: int) -> bytes:
    return text(key) + struct.pack("<II", U32, value)


def string(key: bytes, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", STRING) + text(value)


def array(key: bytes, kind: int, count: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + data


def strings(key: bytes, values: Sequence[bytes]) -> bytes:
    return array(key, STRING, len(values), b"".join(map(text, values)))


def tensor(name: bytes, shape: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    alignment: int = 32,
) -> bytes:
    head = magic + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values) + b"".join(tensors)
    if tensors:
        head += b"\0" * (-len(head) % alignment)
    return head + data


def scalar(key: str, kind: int, value: float) -> bytes:
    return text(key.encode()) + struct.pack(f"<I{_FORMATS[kind]}", kind, value)


def numbers(key: str, kind: int, values: Sequence[float]) -> bytes:
    return array(key.encode(), kind, len(values), struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path
