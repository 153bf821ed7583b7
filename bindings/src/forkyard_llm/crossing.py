"""What crosses between a program and its engine's process: frames, and the values in those that the engine sends.

The engine reads files of anybody, and one that is made for it may have taken over its process. So the program reads no
pickles of that: values come as JSON. What JSON has no word for is ``{"$": [word, ...]}``, and bytes follow the JSON in
the order in which they occur. Dataclasses are those of this package alone, and their fields are set without a call of
anything; exceptions are this package's and Python's own. In the other direction there are pickles.
"""

from __future__ import annotations

import builtins
import ctypes
import dataclasses
import json
import numbers
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from .errors import EngineError, ForkyardLlmError, UnsupportedOption

__all__ = ["Frame", "decode", "encode", "frame", "read_frame"]

Frame = tuple[bytes, bytes]
"""JSON, or a pickle, and the bytes that belong to it."""

_LENGTHS = struct.Struct("<QQ")
_PART = 1 << 20
_WORD = "$"
_LARGE = 2**63  # Python refuses to write, or to read, numbers of very many digits
_PACKAGE = __name__.rpartition(".")[0]


def read_frame(stream: BinaryIO) -> Frame | None:
    """The next frame, written as two lengths and two parts; None at the end.

    Memory is taken as the bytes arrive, whatever length was announced.
    """
    head = stream.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    first, second = (_read(stream, length) for length in _LENGTHS.unpack(head))
    return None if first is None or second is None else (first, second)


def _read(stream: BinaryIO, length: int) -> bytes | None:
    if length <= _PART:
        # Nearly always all there is.
        read = stream.read(length)
        return read if len(read) == length else None
    whole = bytearray()
    while len(whole) < length:
        read = stream.read(min(length - len(whole), _PART))
        if not read:
            return None
        whole += read
    return bytes(whole)


def frame(first: bytes, *rest: bytes | memoryview) -> list[bytes | memoryview]:
    """What :func:`read_frame` reads, as parts to be sent one after the other."""
    return [_LENGTHS.pack(len(first), sum(map(len, rest))) + first, *rest]


def encode(value: Any, hold: Callable[[Any], int]) -> list[bytes | memoryview]:
    """The frame of a value.

    Args:
        hold: keeps an object that is good for nothing elsewhere, and numbers it.

    Raises:
        UnsupportedOption: it is of a type that does not cross.
    """
    writer = _Writer(hold)
    text = json.dumps(writer.plain(value), separators=(",", ":")).encode("ascii")
    return frame(text, *writer.raw)


class _Stays(Exception):
    """A part of an object is good for nothing in another process."""


class _Writer:
    def __init__(self, hold: Callable[[Any], int]) -> None:
        self.hold = hold
        self.raw: list[bytes | memoryview] = []

    def plain(self, value: Any) -> Any:
        try:
            return self._plain(value)
        except _Stays as error:
            msg = f"isolate=True has no way to bring {error} out of the engine's process; make a Llama without it"
            raise UnsupportedOption(msg) from error

    def _plain(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, str, float):
            return value
        if kind is int:
            return value if -_LARGE < value < _LARGE else self._word("int", hex(value))
        if kind is list:
            return [self._plain(item) for item in value]
        if kind is dict and _WORD not in value and all(type(key) is str for key in value):
            return {key: self._plain(item) for key, item in value.items()}
        return self._worded(value)

    @staticmethod
    def _word(word: str, *values: Any) -> dict[str, Any]:
        return {_WORD: [word, *values]}

    def _worded(self, value: Any) -> Any:
        if isinstance(value, str):
            return str(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            raw = bytes(value)
            self.raw.append(raw)
            return self._word("bytes", len(raw))
        if isinstance(value, ctypes.Array) and value._type_ is ctypes.c_float:
            self.raw.append(memoryview(value).cast("B"))
            return self._word("floats", ctypes.sizeof(value))
        if isinstance(value, BaseException):
            return self._error(value)
        if dataclasses.is_dataclass(value) and _is_ours(type(value)):
            return self._object(value)
        if isinstance(value, tuple):
            return self._word("tuple", [self._plain(item) for item in value])
        if isinstance(value, (set, frozenset)):
            return self._word(type(value).__name__, [self._plain(item) for item in value])
        if isinstance(value, Mapping):
            return self._word("dict", [[self._plain(key), self._plain(item)] for key, item in value.items()])
        if isinstance(value, PurePath):
            return self._word("path", str(value))
        if isinstance(value, Sequence):
            return [self._plain(item) for item in value]
        if isinstance(value, numbers.Integral):
            return self._plain(int(value))
        if isinstance(value, numbers.Real):
            return float(value)
        raise _Stays(f"a {type(value).__name__}")

    def _object(self, value: Any) -> Any:
        fields = {}
        held = None
        for field in dataclasses.fields(value):
            count = len(self.raw)
            try:
                fields[field.name] = self._plain(getattr(value, field.name))
            except _Stays:
                del self.raw[count:]
                held = self.hold(value) if held is None else held
        return self._word("object", type(value).__module__, type(value).__name__, fields, held)

    def _error(self, error: BaseException) -> Any:
        kind = type(error)
        known = isinstance(error, ForkyardLlmError) or getattr(builtins, kind.__name__, None) is kind
        if not known:
            error = EngineError(f"{kind.__module__}.{kind.__name__}: {error}")
            kind = type(error)
        facts = {}
        for name, fact in vars(error).items():
            try:
                facts[name] = self._plain(fact)
            except _Stays:
                continue
        texts = [argument if isinstance(argument, (int, float, str)) else str(argument) for argument in error.args]
        return self._word("error", kind.__module__, kind.__name__, texts, facts)


def decode(given: Frame, held: Callable[[Any, int], None] | None = None) -> Any:
    """The value of a frame.

    Args:
        held: told of each object of which a part was kept, and its number there.

    Raises:
        Exception: of any kind: it is no value.
    """
    text, raw = given
    reader = _Reader(memoryview(raw), held)
    value = reader.value(json.loads(text))
    if reader.at != len(raw):
        msg = "there are more bytes than were announced"
        raise ValueError(msg)
    return value


class _Reader:
    def __init__(self, raw: memoryview, held: Callable[[Any, int], None] | None) -> None:
        self.raw = raw
        self.at = 0
        self.held = held

    def value(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return [self.value(item) for item in plain]
        if not isinstance(plain, dict):
            return plain
        if _WORD not in plain:
            return {key: self.value(item) for key, item in plain.items()}
        word, *rest = plain[_WORD]
        return _READERS[word](self, *rest)

    def bytes(self, length: int) -> bytes:
        start, self.at = self.at, self.at + length
        if not start <= self.at <= len(self.raw):
            msg = "there are fewer bytes than were announced"
            raise ValueError(msg)
        return bytes(self.raw[start : self.at])

    def floats(self, length: int) -> Any:
        return (ctypes.c_float * (length // 4)).from_buffer_copy(self.bytes(length))

    def object(self, module: str, name: str, fields: dict[str, Any], number: int | None) -> Any:
        kind: type = _ours(module, name)
        if not dataclasses.is_dataclass(kind) or name.startswith("_"):
            msg = f"{module}.{name} does not cross"
            raise TypeError(msg)
        made = object.__new__(kind)
        for field in dataclasses.fields(kind):
            object.__setattr__(made, field.name, None if field.name not in fields else self.value(fields[field.name]))
        if number is not None and self.held is not None:
            self.held(made, int(number))
        return made

    def error(self, module: str, name: str, texts: list[Any], facts: dict[str, Any]) -> Exception:
        kind: type = getattr(builtins, name) if module == "builtins" else _ours(module, name)
        if not issubclass(kind, Exception) or not all(isinstance(text, (int, float, str)) for text in texts):
            msg = f"{module}.{name} does not cross"
            raise TypeError(msg)
        if module == "builtins":
            try:
                built: Exception = kind(*texts)
                return built
            except TypeError:
                return EngineError(f"{name}: {' '.join(map(str, texts))}")
        error: Exception = kind.__new__(kind, *texts)
        vars(error).update({str(key): self.value(fact) for key, fact in facts.items()})
        return error


_READERS: Mapping[str, Callable[..., Any]] = {
    "int": lambda _, text: int(text, 16),
    "bytes": _Reader.bytes,
    "floats": _Reader.floats,
    "tuple": lambda reader, items: tuple(reader.value(items)),
    "set": lambda reader, items: set(reader.value(items)),
    "frozenset": lambda reader, items: frozenset(reader.value(items)),
    "dict": lambda reader, pairs: dict(reader.value(pairs)),
    "path": lambda _, text: Path(text),
    "object": _Reader.object,
    "error": _Reader.error,
}


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith(f"{_PACKAGE}.")


def _ours(module: str, name: str) -> Any:
    """A class of this package that is there already: nothing is imported for a name from outside."""
    kind = getattr(sys.modules[module], name) if module.startswith(f"{_PACKAGE}.") else None
    if not isinstance(kind, type) or kind.__module__ != module:
        msg = f"{module}.{name} does not cross"
        raise TypeError(msg)
    return kind
