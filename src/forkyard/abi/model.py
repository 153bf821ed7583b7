"""What a C interface is, as values: functions, records, enums, callbacks, constants, and their canonical JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, TypeAlias

from forkyard.errors import BuildError

SCHEMA = 1
"""Version of the ``abi.json`` layout; raised when a reader of the old one would misread the new one."""

Json: TypeAlias = "str | int | list[Json] | dict[str, Json]"
"""What :func:`json.dumps` takes, as far as it is needed here."""

SCALARS: Mapping[str, int] = {
    "bool": 1, "char": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8,
    "f32": 4, "f64": 8,
}  # fmt: skip
"""Names of the scalar types and their size in bytes."""


class AbiError(BuildError):
    """The headers cannot be described: they do not parse, or hold something ctypes cannot express."""

    kind: ClassVar[str] = "abi"


@dataclass(frozen=True)
class Void:
    """``void``: no value, or the target of an untyped pointer."""


@dataclass(frozen=True)
class Scalar:
    """A number, ``bool`` or ``char``; ``name`` is a key of :data:`SCALARS`."""

    name: str


@dataclass(frozen=True)
class EnumRef:
    """An enum type by name; ``scalar`` is the integer it is passed as."""

    name: str
    scalar: str


@dataclass(frozen=True)
class RecordRef:
    """A struct or union by name, complete or opaque."""

    name: str


@dataclass(frozen=True)
class Pointer:
    """A data pointer; ``const`` says whether the target may be written through it."""

    target: CType
    const: bool = False


@dataclass(frozen=True)
class Array:
    """A fixed array inside a record; ``count`` 0 is a flexible array member."""

    target: CType
    count: int


@dataclass(frozen=True)
class Callback:
    """A pointer to a function."""

    result: CType
    params: tuple[CType, ...]
    variadic: bool = False


CType: TypeAlias = Void | Scalar | EnumRef | RecordRef | Pointer | Array | Callback


@dataclass(frozen=True)
class Param:
    """One parameter; ``name`` may be empty, as in a prototype."""

    name: str
    type: CType


@dataclass(frozen=True)
class Function:
    """A function a library may export. ``header`` is the bare file name that declares it."""

    name: str
    result: CType
    params: tuple[Param, ...]
    header: str
    deprecated: bool = False
    variadic: bool = False


@dataclass(frozen=True)
class Field:
    """One member. ``offset`` and ``size`` in bytes; an ``anonymous`` one lends its names to the record around it."""

    name: str
    type: CType
    offset: int
    size: int
    anonymous: bool = False


@dataclass(frozen=True)
class Record:
    """A complete struct or union. ``spelling`` is how C names it, empty where C has no name for it."""

    name: str
    kind: str
    spelling: str
    size: int
    align: int
    fields: tuple[Field, ...]
    header: str


@dataclass(frozen=True)
class Enum:
    """An enum and its values; ``name`` is empty for an unnamed one."""

    name: str
    scalar: str
    values: tuple[tuple[str, int], ...]
    header: str


@dataclass(frozen=True)
class Skipped:
    """A declaration left out of the bindings on purpose, and why."""

    name: str
    reason: str
    header: str


@dataclass(frozen=True)
class Abi:
    """Everything the bindings need to know of one engine's C interface.

    All collections are sorted by name, ``includes`` keeps the order the headers were asked for in. No path, date or
    machine fact is in here, so equal headers give equal bytes.

    ``tags`` lists, per header, the ``enum X`` or ``struct X`` it uses as plain ``X``, as C++ allows: they need a
    typedef before the header is included in C. ``not_c`` names the headers that hold declarations no C compiler takes
    at all; those declarations are among ``skipped``, and the probe leaves the whole header out.
    """

    target: str
    includes: tuple[str, ...]
    defines: tuple[str, ...]
    headers: Mapping[str, str]
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    not_c: tuple[str, ...] = ()
    functions: tuple[Function, ...] = ()
    records: tuple[Record, ...] = ()
    opaque: tuple[str, ...] = ()
    enums: tuple[Enum, ...] = ()
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    typedefs: Mapping[str, CType] = field(default_factory=dict)
    macros: Mapping[str, int | str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def to_json(self) -> bytes:
        """Canonical JSON (sorted keys, one space of indent, UTF-8, a final newline): what the sha256 is taken of."""
        described = {member.name: _plain(getattr(self, member.name)) for member in fields(self)}
        document = {"schema": SCHEMA, **described}
        return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Hex sha256 of :meth:`to_json`; written into the generated module and the probe."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def record(self, name: str) -> Record:
        """The complete record called ``name``.

        Raises:
            KeyError: there is none, or it is opaque.
        """
        for record in self.records:
            if record.name == name:
                return record
        raise KeyError(name)


_TYPE_KINDS: Mapping[type, str] = {
    Void: "void", Scalar: "scalar", EnumRef: "enum", RecordRef: "record", Pointer: "pointer", Array: "array",
    Callback: "callback",
}  # fmt: skip


def _plain(value: object) -> Json:
    """``value`` as JSON types; type nodes carry their kind, empty and false members of a node are left out."""
    if isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    names = [member.name for member in fields(value)]  # type: ignore[arg-type]
    members = {name: item for name in names if (item := _plain(getattr(value, name))) is not False}
    kind = _TYPE_KINDS.get(type(value))
    return members if kind is None else {"kind": kind, **members}


def render_include(header: str, tags: Iterable[str]) -> str:
    """The C lines that include ``header``, with a typedef for each tag it uses without saying struct or enum."""
    typedefs = "".join(f"typedef {tag} {tag.split()[1]};\n" for tag in tags)
    return f'{typedefs}#include "{header}"\n'


@dataclass(frozen=True)
class LayoutRow:
    """One number the probe reports: its label, the value the headers promise, the C expression that gives it."""

    label: str
    expected: int
    expression: str


def layout_rows(abi: Abi) -> Iterator[LayoutRow]:
    """Size, alignment, member offsets and member sizes of every record C can name, in the one order all readers use."""
    for record in abi.records:
        c_name = record.spelling
        if not c_name or record.header in abi.not_c:
            continue
        yield LayoutRow(f"sizeof({c_name})", record.size, f"sizeof({c_name})")
        yield LayoutRow(f"alignof({c_name})", record.align, f"_Alignof({c_name})")
        for name, offset, size in named_members(abi, record):
            yield LayoutRow(f"offsetof({c_name}, {name})", offset, f"offsetof({c_name}, {name})")
            yield LayoutRow(f"sizeof({c_name}.{name})", size, f"sizeof((({c_name} *) 0)->{name})")


def named_members(abi: Abi, record: Record, base: int = 0) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the members reachable by name, those of anonymous members included.

    A flexible array member is left out: it has an offset but no size to ask for.
    """
    for member in record.fields:
        if member.anonymous and isinstance(member.type, RecordRef):
            yield from named_members(abi, abi.record(member.type.name), base + member.offset)
        elif member.size:
            yield member.name, base + member.offset, member.size
