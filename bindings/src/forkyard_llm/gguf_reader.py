"""Read the metadata of a GGUF file and check that it is well-formed: engines abort the process on some damage.

The format is the one llama.cpp documents as `docs/gguf.md` in the ggml project: little endian; magic, version
(2 or 3), tensor count, key count; key/value pairs; tensor infos; padding to `general.alignment`; tensor data.
What is checked is what the engines' own readers would otherwise meet with an assertion, a division by zero or
an out-of-bounds read: every length and count against the file's size, names, types, alignment, tensor shapes
and places, and the shapes of the tokenizer's arrays. What the values say is judged elsewhere (gguf_values).

The cost is one pass over the metadata through a window of bounded size; tensor data is never read. The file
is read, not mapped: a mapped file that someone truncates meanwhile kills the process with SIGBUS.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

from .errors import ModelError
from .gguf_foreign import known_format
from .gguf_types import TENSOR_TYPES, TensorType

__all__ = [
    "BOOL", "FLOATS", "INTEGERS", "STRING", "UINT32", "GgufSummary", "Value", "fail", "read", "shown", "type_name",
]  # fmt: skip

Scalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Value:
    """The value of one key.

    `kind` is its GGUF type, for an array that of the elements, of which `count` says how many there are (None: no
    array). `data` is the value, or the elements if they are numbers; None for arrays of strings and for long texts.
    """

    kind: int
    count: int | None
    data: Scalar | Sequence[int | float] | None
    offset: int

    @property
    def numbers(self) -> Sequence[int | float]:
        """The number, or the numbers, of it; none if it holds other things. A bool is 0 or 1."""
        if self.data is None or isinstance(self.data, str):
            return ()
        return (self.data,) if isinstance(self.data, (int, float)) else self.data


@dataclass(frozen=True)
class GgufSummary:
    """What is in the file: `values` by key, `shapes` by tensor name (as GGUF has them, the row length first)."""

    path: Path
    version: int
    architecture: str | None
    alignment: int
    data_offset: int
    file_size: int
    values: Mapping[str, Value]
    shapes: Mapping[str, tuple[int, ...]]
    model_bytes: int = 0
    """Of all files of the model, where they were looked at."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Of each tensor, by its name."""

    @property
    def layers(self) -> int:
        """How many layers the metadata has; 0 if it does not say."""
        value = self.values.get(f"{self.architecture}.block_count")
        return int(value.numbers[0]) if value is not None and value.numbers else 0

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return len(self.values)

    @property
    def tensors(self) -> int:
        """How many tensors there are."""
        return len(self.shapes)


# Limits far above any real model, so that a damaged count cannot cost more than a second or two.
MAX_KEYS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 20
MAX_STRINGS: Final = 1 << 24  # in arrays, whole file; the largest vocabularies have about 2^19 tokens and merges
MAX_VOCABULARY_BYTES: Final = 64 << 20  # the largest have about 3 MB
MAX_KEY_BYTES: Final = (1 << 16) - 1  # docs/gguf.md
MAX_TENSOR_NAME_BYTES: Final = 63  # GGML_MAX_NAME less the terminator
MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
DEFAULT_ALIGNMENT: Final = 32
MAX_NUMBERS_BYTES: Final = 64 << 20  # of one array; the largest have a number for each token
_WINDOW_BYTES: Final = 1 << 20
_TOKENS: Final = b"tokenizer.ggml.tokens"
_BYTE_TOKEN: Final = 6  # LLAMA_TOKEN_TYPE_BYTE
_BYTE_SPELLING: Final = re.compile(rb"<0x[0-9A-Fa-f]{2}>")

BOOL: Final = 7
STRING: Final = 8
_ARRAY: Final = 9
FLOATS: Final = (6, 12)
INTEGERS: Final = (0, 1, 2, 3, 4, 5, 10, 11)
# By GGUF type: the format of struct and of array.
_NUMBERS: Final = dict(zip((*INTEGERS, *FLOATS, BOOL), "BbHhIiQqfdB", strict=True))
_SCALARS: Final = {kind: struct.Struct(f"<{code}") for kind, code in _NUMBERS.items()}
UINT32: Final = 4
_FOUR_BYTE_NUMBERS: Final = (4, 5, 6)
_VALUE_TYPE_NAMES: Final = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64",
    "int64", "float64",
)  # fmt: skip

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_HEADER: Final = struct.Struct("<IIQQ")
_START_BYTES: Final = 1024
_MAGIC_REVERSED: Final = int.from_bytes(b"GGUF", "big")


def read(path: str | os.PathLike[str], *, engine: str | None = None) -> GgufSummary:
    """Read the metadata of the GGUF file at `path` and check its structure.

    `engine` ("llama.cpp" or "ik_llama.cpp") also refuses tensor types that engine does not have; without it a
    type is good if either has it. Raises ModelError, with the byte offset where there is one, for a file that
    is missing, unreadable, truncated, damaged, of another format or of a version this does not know.
    """
    file = Path(path)
    try:
        with _open(file) as handle:
            return _Reader(handle, file, engine).run()
    except OSError as error:
        msg = f"cannot read the model {file}: {error.strerror or error}"
        raise ModelError(msg) from error


def _open(path: Path) -> RawIOBase:
    # Opened before asking what it is, so that both are about the same file; O_NONBLOCK so that a FIFO cannot
    # hang us.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        msg = f"there is no model file {path}; give a .gguf file or a name of `forkyard-llm models list`"
        raise ModelError(msg) from error
    except ValueError as error:  # a NUL in the path
        msg = f"not a usable path: {str(path)!r}: {error}"
        raise ModelError(msg) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        msg = f"{path} is not a regular file; a model is one .gguf file (the first of them, if it is split)"
        raise ModelError(msg)
    return os.fdopen(descriptor, "rb", buffering=0)


class _Reader:
    """One pass over one file: a window of bytes at `_base`, a position `_at` inside it."""

    def __init__(self, handle: RawIOBase, path: Path, engine: str | None) -> None:
        self._handle = handle
        self._path = path
        self._size = os.fstat(handle.fileno()).st_size
        self._window = b""
        self._base = 0
        self._at = 0
        self._strings = 0
        self._values: dict[str, Value] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._names_of_types: dict[str, str] = {}
        self._engine = engine
        if engine is None:
            self._types: dict[int, TensorType] = {**TENSOR_TYPES["ik_llama.cpp"], **TENSOR_TYPES["llama.cpp"]}
        else:
            self._types = dict(TENSOR_TYPES[engine])

    def run(self) -> GgufSummary:
        version, tensors, keys = self._header()
        alignment, architecture = self._key_values(keys)
        self._tokenizer_arrays()
        places = self._tensor_infos(tensors, alignment)
        end = self._position
        data_offset = -(-end // alignment) * alignment if tensors else end
        self._tensor_places(places, data_offset)
        return GgufSummary(
            self._path,
            version,
            architecture,
            alignment,
            data_offset,
            self._size,
            self._values,
            self._shapes,
            types=self._names_of_types,
        )

    # -- the parts of the file -------------------------------------------------------------------------------

    def _header(self) -> tuple[int, int, int]:
        start = os.pread(self._handle.fileno(), _START_BYTES, 0)
        if not start.startswith((b"GGUF", b"FUGG")):
            if b"GGUF".startswith(start) and start:
                self._too_short()
            self._fail(known_format(start, self._size), 0)
        if self._size < _HEADER.size:
            self._too_short()
        magic, version, tensors, keys = self._unpack(_HEADER, "the header")
        if magic == _MAGIC_REVERSED:
            self._fail("a big-endian GGUF file; this machine's engines read little-endian ones only", 0)
        if version not in (2, 3):
            if version & 0xFFFF == 0 and version:
                self._fail(
                    "a big-endian GGUF file (its version field is byte-swapped); convert it with"
                    " gguf_convert_endian.py of the gguf package, or get the little-endian file",
                    4,
                )
            advice = "; convert the original model again" if version == 1 else ""
            self._fail(f"GGUF version {version}; versions 2 and 3 can be read{advice}", 4)
        # The smallest key has 1 byte and a 1-byte value; the smallest tensor info an empty name and no
        # dimensions.
        self._count(tensors, MAX_TENSORS, 8 + 4 + 4 + 8, "tensors", 8)
        self._count(keys, MAX_KEYS, 8 + 1 + 4 + 1, "keys", 16)
        return version, tensors, keys

    def _too_short(self) -> NoReturn:
        self._fail(f"the file is {self._size} bytes, too short even for a GGUF header; download it again", 0)

    def _key_values(self, keys: int) -> tuple[int, str | None]:
        alignment = DEFAULT_ALIGNMENT
        architecture: str | None = None
        seen: set[bytes] = set()
        for index in range(keys):
            start = self._position
            raw = self._bytes(MAX_KEY_BYTES, f"key {index}")
            if not raw or b"\0" in raw:
                self._fail(f"key {index} is {'empty' if not raw else 'not a text'}", start)
            if raw in seen:
                self._fail(f"the key {shown(raw)} occurs twice", start)
            seen.add(raw)
            what = f"the value of {shown(raw)}"
            offset = self._position
            (kind,) = self._unpack(_U32, f"the type of {shown(raw)}")
            if raw == b"general.alignment" and kind != UINT32:
                self._fail(f"general.alignment is {type_name(kind)}, not uint32", offset)
            if raw == b"general.architecture" and kind != STRING:
                self._fail(f"general.architecture is {type_name(kind)}, not string", offset)
            value = self._value(kind, what, offset, distinct=raw == _TOKENS)
            self._values[raw.decode("utf-8", "backslashreplace")] = value
            if raw == b"general.alignment":
                alignment = int(value.data)  # type: ignore[arg-type]  # uint32
                if alignment == 0 or alignment & (alignment - 1):
                    self._fail(f"general.alignment is {alignment}, not a power of two", offset + 4)
            elif raw == b"general.architecture":
                if not isinstance(value.data, str):
                    self._fail(f"{what} is longer than any architecture's name", offset)
                architecture = value.data
        return alignment, architecture

    def _value(self, kind: int, what: str, offset: int, *, distinct: bool) -> Value:
        """Read a value. `distinct`: the strings of an array must be."""
        if kind in _SCALARS:
            (number,) = self._unpack(_SCALARS[kind], what)
            return Value(kind, None, bool(number) if kind == BOOL else number, offset)
        if kind == STRING:
            return Value(kind, None, self._text(what), offset)
        if kind != _ARRAY:
            self._fail(f"{what} has type {kind}, which GGUF does not define", offset)
        element, count = self._unpack(_ARRAY_HEAD, what)
        if element in _SCALARS:
            return Value(element, count, self._numbers(element, count, what, offset), offset)
        if element != STRING:
            self._fail(f"{what} is an array of {type_name(element)}, which no engine reads", offset + 4)
        self._strings += count
        if self._strings > MAX_STRINGS:
            self._fail(f"{what} has {count} strings; at most {MAX_STRINGS} are accepted in a file", offset + 8)
        self._count(count, MAX_STRINGS, 8, f"strings in {what}", offset + 8)
        if distinct:
            self._distinct_strings(count, what)
        else:
            self._skip_strings(count, what)
        return Value(element, count, None, offset)

    def _text(self, what: str) -> str | None:
        """A string; None for one longer than any name, such as a chat template."""
        self._need(8, what)
        (length,) = _U64.unpack_from(self._window, self._at)
        if length <= MAX_KEY_BYTES:
            return self._bytes(MAX_KEY_BYTES, what).decode("utf-8", "backslashreplace")
        self._skip_strings(1, what)
        return None

    def _numbers(self, kind: int, count: int, what: str, offset: int) -> Sequence[int | float]:
        width = _SCALARS[kind].size
        size = count * width
        if self._position + size > self._size:
            self._truncated(what, f"it needs {size} bytes, {self._size - self._position} are left")
        if size > MAX_NUMBERS_BYTES:
            self._fail(f"{what} has {count} numbers, more than any model", offset + 8)
        numbers: array[int] | array[float] = array(_NUMBERS[kind])
        while size:
            part = min(size, _WINDOW_BYTES // 2)
            self._need(part, what)
            numbers.frombytes(self._window[self._at : self._at + part])
            self._at += part
            size -= part
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def _tokenizer_arrays(self) -> None:
        """The engines index these by token id after looking at the token count only."""
        tokens = self._values.get("tokenizer.ggml.tokens")
        merges = self._values.get("tokenizer.ggml.merges")
        for key, found in (("tokens", tokens), ("merges", merges)):
            if found is not None and (found.count is None or found.kind != STRING):
                self._fail(f"tokenizer.ggml.{key} is not an array of strings", found.offset)
        for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            found = self._values.get(key)
            if found is None:
                continue
            if found.count is None or found.kind not in _FOUR_BYTE_NUMBERS:
                self._fail(f"{key} is not an array of four-byte numbers", found.offset)
            if tokens is not None and tokens.count is not None and found.count < tokens.count:
                self._fail(f"{key} has {found.count} entries for {tokens.count} tokens", found.offset)
        types = self._values.get("tokenizer.ggml.token_type")
        if tokens is not None and types is not None and isinstance(types.data, array):
            self._byte_tokens(tokens, [token for token, kind in enumerate(types.data) if kind == _BYTE_TOKEN])

    def _byte_tokens(self, tokens: Value, wanted: Sequence[int]) -> None:
        """The engines cut two hexadecimal digits out of these without looking at the rest of the token."""
        model = self._values.get("tokenizer.ggml.model")
        if wanted and model is not None and model.data == "bert":
            self._fail("tokenizer.ggml.token_type has byte tokens, which a bert tokenizer cannot have", tokens.offset)
        end, self._base, self._at, self._window = self._position, tokens.offset + 4 + _ARRAY_HEAD.size, 0, b""
        last = -1
        for token in wanted:
            if token >= (tokens.count or 0):
                break
            self._skip_strings(token - last - 1, "tokenizer.ggml.tokens")
            start, last = self._position, token
            spelling = self._bytes(_WINDOW_BYTES // 2, "a string of tokenizer.ggml.tokens")
            if not _BYTE_SPELLING.fullmatch(spelling):
                self._fail(f"token {token} is for a byte, but is {shown(spelling)!r}, not like '<0x0A>'", start)
        self._base, self._at, self._window = end, 0, b""

    def _tensor_infos(self, tensors: int, alignment: int) -> list[tuple[int, int, str, int]]:
        """(offset in the data, bytes, name, where it is described) of every tensor."""
        places = []
        for index in range(tensors):
            start = self._position
            raw = self._bytes(MAX_TENSOR_NAME_BYTES, f"the name of tensor {index}")
            if b"\0" in raw:
                self._fail(f"the name of tensor {index} is not a text", start)
            name, key = shown(raw), raw.decode("utf-8", "backslashreplace")
            if key in self._shapes:
                self._fail(f"two tensors are called {name}", start)
            offset = self._position
            (dimensions,) = self._unpack(_U32, f"the dimensions of tensor {name}")
            if dimensions > MAX_DIMENSIONS:
                self._fail(f"tensor {name} has {dimensions} dimensions, at most {MAX_DIMENSIONS} exist", offset)
            values = self._unpack(_INFO_TAILS[dimensions], f"the shape of tensor {name}")
            shape, kind, place = values[:dimensions], values[dimensions], values[dimensions + 1]
            self._shapes[key] = shape
            size = self._tensor_bytes(name, shape, kind, offset + 4)
            self._names_of_types[key] = self._types[kind].name
            if place % alignment:
                where = self._position - 8
                self._fail(f"the data of tensor {name} is at {place}, not a multiple of {alignment}", where)
            places.append((place, size, name, start))
        return places

    def _tensor_bytes(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> int:
        if any(extent == 0 or extent > 0x7FFFFFFFFFFFFFFF for extent in shape):
            self._fail(f"tensor {name} has the shape {list(shape)}", offset)
        layout = self._types.get(kind)
        if layout is None:
            self._fail(self._unknown_type(name, kind), offset + 8 * len(shape))
        width = shape[0] if shape else 1
        if width % layout.block:
            self._fail(
                f"tensor {name} has rows of {width} elements, {layout.name} has blocks of {layout.block}",
                offset,
            )
        rows = 1
        for extent in shape[1:]:
            rows *= extent
        return layout.data_bytes(width, rows)

    def _unknown_type(self, name: str, kind: int) -> str:
        others = [family for family, types in TENSOR_TYPES.items() if kind in types]
        if others and self._engine is not None:
            layout = TENSOR_TYPES[others[0]][kind]
            return (
                f"tensor {name} has the type {layout.name} ({kind}), which {self._engine} does not have;"
                f" use engine={others[0]!r}"
            )
        return f"tensor {name} has the unknown type {kind}: the file is damaged or newer than this forkyard-llm"

    def _tensor_places(self, places: list[tuple[int, int, str, int]], data_offset: int) -> None:
        end = 0
        for place, size, name, start in sorted(places):
            if place < end:
                self._fail(f"the data of tensor {name} overlaps that of the tensor before it", start)
            end = place + size
            if data_offset + end > self._size:
                self._fail(
                    f"the data of tensor {name} ends at byte {data_offset + end}, the file at {self._size}:"
                    " it is truncated; download it again",
                    start,
                )

    # -- the window ------------------------------------------------------------------------------------------

    @property
    def _position(self) -> int:
        return self._base + self._at

    def _slide(self) -> None:
        """Make the window start at the current position, which is inside the file."""
        self._base += self._at
        self._at = 0
        self._window = os.pread(self._handle.fileno(), _WINDOW_BYTES, self._base)

    def _need(self, count: int, what: str) -> None:
        """Have `count` bytes (fewer than a window) at the current position in the window."""
        if self._at + count <= len(self._window):
            return
        if self._position + count > self._size:
            self._truncated(what)
        self._slide()
        if count > len(self._window):  # the file shrank under us
            self._truncated(what)

    def _unpack(self, layout: struct.Struct, what: str) -> tuple[int, ...]:
        self._need(layout.size, what)
        values: tuple[int, ...] = layout.unpack_from(self._window, self._at)
        self._at += layout.size
        return values

    def _bytes(self, limit: int, what: str) -> bytes:
        """A length-prefixed byte string of at most `limit` bytes (`limit` is less than a window)."""
        offset = self._position
        (length,) = self._unpack(_U64, f"the length of {what}")
        if length > limit:
            self._fail(f"{what} is {length} bytes long, at most {limit} are allowed", offset)
        self._need(length, what)
        value = self._window[self._at : self._at + length]
        self._at += length
        return value

    def _skip_strings(self, count: int, what: str) -> None:
        """Skip `count` length-prefixed strings; large vocabularies make this loop the costly one."""
        unpack = _U64.unpack_from
        while count:
            self._need(8, what)
            window, at, before = self._window, self._at, self._at
            limit = len(window) - 8
            while count and at <= limit:
                before = at
                at += 8 + unpack(window, at)[0]
                count -= 1
            self._at = at
            if self._base + at > self._size:
                self._at = before
                self._truncated(what, "a string of it is longer than the rest of the file")

    def _distinct_strings(self, count: int, what: str) -> None:
        """Read `count` strings, all different: the engines assert that of a vocabulary's tokens.

        They take a token for a C string, so it ends at its first zero byte. Several empty ones are fine: the
        engines give each a name of its own.
        """
        seen: set[bytes] = set()
        unpack, start, left, empty = _U64.unpack_from, self._position, count, 0
        while left:
            window, at = self._window, self._at
            limit = len(window) - 8
            while left and at <= limit:
                end = at + 8 + unpack(window, at)[0]
                if end > len(window):
                    break
                seen.add(window[at + 8 : end])
                empty += end == at + 8
                at = end
                left -= 1
            self._at = at
            if left:  # the next one crosses the end of the window
                token = self._bytes(_WINDOW_BYTES // 2, f"a string of {what}")
                seen.add(token)
                empty += not token
                left -= 1
            if self._position - start > MAX_VOCABULARY_BYTES:
                self._fail(f"{what} is larger than any vocabulary", start)
        heads = [token.partition(b"\0")[0] for token in seen if b"\0" in token]
        heads = [head for head in heads if head]
        twice = len(seen) + max(empty - 1, 0) != count or len(set(heads)) != len(heads)
        if twice or not seen.isdisjoint(heads):
            self._fail(f"{what} holds the same token twice", start)

    # -- errors ----------------------------------------------------------------------------------------------

    def _count(self, count: int, limit: int, least: int, what: str, offset: int) -> None:
        """Refuse a count that cannot be true, before looping over it."""
        if count > limit or count * least > self._size - offset:
            self._fail(f"{count} {what} cannot be in a file of {self._size} bytes", offset)

    def _truncated(self, what: str, detail: str = "") -> NoReturn:
        detail = f" ({detail})" if detail else ""
        self._fail(f"the file ends inside {what}{detail}: truncated or damaged, download it again", self._position)

    def _fail(self, problem: str, offset: int) -> NoReturn:
        fail(self._path, problem, offset)


def fail(path: Path, problem: str, offset: int) -> NoReturn:
    """Raise the ModelError for what is wrong with the file at `path`, seen at byte `offset`."""
    msg = f"{path}: {problem} [byte {offset}]"
    raise ModelError(msg, offset=offset)


_ARRAY_HEAD: Final = struct.Struct("<IQ")
_INFO_TAILS: Final = tuple(struct.Struct(f"<{n}QIQ") for n in range(MAX_DIMENSIONS + 1))


def shown(raw: bytes | str) -> str:
    """A name from the file, safe to print in one line of a message."""
    text = raw[:80] if isinstance(raw, str) else raw[:80].decode("utf-8", "backslashreplace")
    printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return printable + "..." if len(raw) > 80 else printable


def type_name(kind: int) -> str:
    """The name GGUF gives a type of value."""
    return _VALUE_TYPE_NAMES[kind] if kind < len(_VALUE_TYPE_NAMES) else f"of the unknown type {kind}"
