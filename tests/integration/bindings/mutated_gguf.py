"""A GGUF file taken apart into keys, tensors and data, to be put together again with one of them changed."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = dict(zip((U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64), "BbHhIif?Qqd", strict=True))
LIMITS = {
    U8: (0, 2**8 - 1),
    I8: (-(2**7), 2**7 - 1),
    U16: (0, 2**16 - 1),
    I16: (-(2**15), 2**15 - 1),
    U32: (0, 2**32 - 1),
    I32: (-(2**31), 2**31 - 1),
    U64: (0, 2**64 - 1),
    I64: (-(2**63), 2**63 - 1),
}
INTEGERS = (-1, 0, 1, 2, 3, 5, 7, 16, 31, 64, 255, 256, 513, 4096, 65535, 100_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0, -1.0, 1e-45, 1e30, 1e10, 1e5, -1e5, 1e-10, 1.0)
LENGTHS = (0, 1, 513, 5000)


@dataclass(frozen=True)
class Entry:
    """The value of a key: its type and its bytes."""

    kind: int
    raw: bytes


@dataclass(frozen=True)
class Tensor:
    """What is said of one tensor, and its bytes."""

    name: bytes
    shape: tuple[int, ...]
    kind: int
    data: bytes


@dataclass(frozen=True)
class Gguf:
    """A file: keys in order, tensors in order."""

    keys: dict[bytes, Entry]
    tensors: Sequence[Tensor]

    def with_key(self, key: str, entry: Entry | None) -> Gguf:
        """The file with another value of ``key``, or without it."""
        keys = dict(self.keys)
        keys.pop(key.encode(), None) if entry is None else keys.update({key.encode(): entry})
        return replace(self, keys=keys)

    def to_bytes(self) -> bytes:
        """The file, with the default alignment."""
        head = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))]
        head += [_text(key) + struct.pack("<I", entry.kind) + entry.raw for key, entry in self.keys.items()]
        offset, data = 0, []
        for tensor in self.tensors:
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            head.append(_text(tensor.name) + shape + struct.pack("<IQ", tensor.kind, offset))
            data.append(tensor.data + b"\0" * (-len(tensor.data) % 32))
            offset += len(data[-1])
        start = b"".join(head)
        return start + b"\0" * (-len(start) % 32) + b"".join(data)


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 4

    def take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return values

    def text(self) -> bytes:
        (length,) = self.take("<Q")
        self.at += length
        return self.raw[self.at - length : self.at]

    def entry(self) -> Entry:
        (kind,) = self.take("<I")
        start = self.at
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            element, count = self.take("<IQ")
            for _ in range(count if element == STRING else 0):
                self.text()
            self.at += count * struct.calcsize(FORMATS[element]) if element != STRING else 0
        else:
            self.at += struct.calcsize(FORMATS[kind])
        return Entry(kind, self.raw[start : self.at])


def parse(raw: bytes) -> Gguf:
    """Take a sound file apart."""
    reader = _Reader(raw)
    _, tensors, count = reader.take("<IQQ")
    keys = {reader.text(): reader.entry() for _ in range(count)}
    infos = []
    for _ in range(tensors):
        name, (dimensions,) = reader.text(), reader.take("<I")
        infos.append((name, reader.take(f"<{dimensions}Q"), *reader.take("<IQ")))
    data = raw[-(-reader.at // 32) * 32 :]
    ends = [*sorted(offset for *_, offset in infos), len(data)]
    return Gguf(
        keys,
        [Tensor(name, shape, kind, data[at : ends[ends.index(at) + 1]]) for name, shape, kind, at in infos],
    )


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def scalar(kind: int, value: float) -> Entry:
    """A number; one that does not fit a float32 becomes the largest that does."""
    if kind == F32 and math.isfinite(value) and abs(value) > 3e38:
        value = math.copysign(3e38, value)
    return Entry(kind, struct.pack(f"<{FORMATS[kind]}", value))


def string(value: bytes) -> Entry:
    """A text."""
    return Entry(STRING, _text(value))


def numbers(kind: int, values: Sequence[float]) -> Entry:
    """An array of numbers."""
    raw = struct.pack(f"<IQ{len(values)}{FORMATS[kind]}", kind, len(values), *values)
    return Entry(ARRAY, raw)


def strings(values: Sequence[bytes]) -> Entry:
    """An array of texts."""
    return Entry(ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(_text, values)))


OTHER_TYPES = {
    "a string": string(b"x"),
    "uint64": scalar(U64, 2**40),
    "int32": scalar(I32, -1),
    "int16": scalar(I16, -1),
    "bool": scalar(BOOL, True),
    "float32": scalar(F32, 1.5),
    "float64": scalar(F64, 1.5),
    "uint8": scalar(U8, 1),
    "uint32": scalar(U32, 1),
    "no numbers": numbers(U32, []),
    "one number": numbers(U32, [1]),
    "one float": numbers(F32, [1.0]),
    "one text": strings([b"x"]),
    "900 numbers": numbers(U32, [1] * 900),
}


def mutations(model: Gguf) -> Iterator[tuple[str, Gguf]]:
    """The model with each of its numbers in turn at each extreme, each key of another type, and each key gone."""
    for raw_key, entry in model.keys.items():
        key = raw_key.decode()
        if key == "general.architecture":
            continue
        for label, changed in _extremes(entry):
            yield f"{key} = {label}", model.with_key(key, changed)
        for label, changed in OTHER_TYPES.items():
            if changed.kind != entry.kind or entry.kind == ARRAY:
                yield f"{key} as {label}", model.with_key(key, changed)
        yield f"no {key}", model.with_key(key, None)


def _extremes(entry: Entry) -> Iterator[tuple[str, Entry]]:
    if entry.kind == ARRAY:
        yield from _array_extremes(entry)
    elif entry.kind == STRING:
        for value in (b"", b"zzz", b"x" * 300):
            yield repr(value[:5]), string(value)
    else:
        (now,) = struct.unpack(f"<{FORMATS[entry.kind]}", entry.raw)
        for number in _numbers(entry.kind, now):
            yield f"{number}", scalar(entry.kind, number)


def _array_extremes(entry: Entry) -> Iterator[tuple[str, Entry]]:
    kind, count = struct.unpack_from("<IQ", entry.raw)
    if kind == STRING:
        yield "[]", strings([])
        yield "[x]", strings([b"x"])
        return
    now = list(struct.unpack_from(f"<{count}{FORMATS[kind]}", entry.raw, 12))
    for number in _numbers(kind, now[0]) if now else ():
        for place in {0, count - 1}:
            yield f"{number} at {place}", numbers(kind, [*now[:place], number, *now[place + 1 :]])
        yield f"{number} everywhere", numbers(kind, [number] * count)
    for length in (*LENGTHS, count - 1, count + 1):
        yield f"{length} of them", numbers(kind, (now * length)[: max(length, 0)])


def _numbers(kind: int, now: float) -> Sequence[float]:
    if kind in (F32, F64):
        return [*FLOATS, -now]
    if kind == BOOL:
        return [not now]
    low, high = LIMITS[kind]
    wanted = dict.fromkeys((*INTEGERS, int(now) - 1, int(now) + 1, int(now) * 2))
    return [number for number in wanted if low <= number <= high and number != now]
