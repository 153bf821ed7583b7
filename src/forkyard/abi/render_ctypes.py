"""Write the ctypes module of one ABI: distinct pointer types, records, callbacks, constants and ``bind``."""

from __future__ import annotations

from collections.abc import Iterator

from forkyard.abi.model import (
    Abi,
    AbiError,
    Array,
    Callback,
    CType,
    EnumRef,
    Function,
    Pointer,
    Record,
    RecordRef,
    Scalar,
    Void,
    layout_rows,
)

_CTYPES_SCALARS = {
    "bool": "c_bool", "char": "c_char", "i8": "c_int8", "u8": "c_uint8", "i16": "c_int16", "u16": "c_uint16",
    "i32": "c_int32", "u32": "c_uint32", "i64": "c_int64", "u64": "c_uint64", "f32": "c_float", "f64": "c_double",
}  # fmt: skip

_PREAMBLE = '''\
"""ctypes description of one engine's C interface, generated from its own headers. Do not edit."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, Union
from ctypes import c_bool, c_char, c_char_p, c_double, c_float, c_int8, c_int16, c_int32, c_int64
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64, c_void_p

'''

_BIND = '''

class Api:
    """The functions ``bind`` found, as attributes; ``missing`` names the declared ones no library exports."""

    missing = ()

    def __getattr__(self, name):
        if name in self.missing:
            msg = f"{name} is declared in the headers but no library of this payload exports it"
        else:
            msg = f"{name} is not a function of this engine"
        raise AttributeError(msg)


def bind(*libraries):
    """An Api with every function of the headers that one of ``libraries`` (ctypes.CDLL) exports; the first one wins."""
    api = Api()
    missing = []
    for name, restype, argtypes in _signatures():
        for library in libraries:
            # Not library.name: that would cache one shared object, and two callers may set different types on it.
            try:
                function = library[name]
            except AttributeError:
                continue
            function.restype = restype
            function.argtypes = argtypes
            setattr(api, name, function)
            break
        else:
            missing.append(name)
    api.missing = tuple(missing)
    return api


def _named_members(record, base=0):
    anonymous = getattr(record, "_anonymous_", ())
    for name, ctype in record._fields_:
        member = getattr(record, name)
        if name in anonymous:
            yield from _named_members(ctype, base + member.offset)
        elif member.size:
            yield base + member.offset
            yield member.size


def ctypes_layout():
    """What ctypes makes of PROBE_LAYOUT on this machine: the same numbers in the same order."""
    values = []
    for record in PROBED_RECORDS:
        values += [ctypes.sizeof(record), ctypes.alignment(record), *_named_members(record)]
    return tuple(values)
'''


def render_ctypes(abi: Abi) -> str:
    """The text of ``_abi.py`` for ``abi``. It imports only ctypes and loads nothing.

    It defines: a class per record (opaque ones without members, so that ``POINTER`` of each is a type of its own);
    a CFUNCTYPE per callback typedef; enum values and macros as ints and strings, and ``ENUMS`` by enum name;
    ``bind``, ``PROBE_LAYOUT``, ``ctypes_layout`` and ``ABI_SHA256``.

    Raises:
        AbiError: a record contains itself by value.
    """
    return "".join(_parts(abi))


def _parts(abi: Abi) -> Iterator[str]:
    yield _PREAMBLE
    yield f'ABI_SHA256 = "{abi.sha256}"\n\n'
    yield from _constants(abi)
    yield "\n"
    for name in abi.opaque:
        yield f"class {name}(Structure):\n    pass\n\n"
    for record in abi.records:
        yield f"class {record.name}({'Union' if record.kind == 'union' else 'Structure'}):\n    pass\n\n"
    for name, callback in abi.callbacks.items():
        yield f"{name} = {_expression(callback)}\n"
    yield "\n"
    for record in _by_value_order(abi):
        yield from _record_fields(record)
    yield "\n\ndef _signatures():\n    return (\n"
    for function in abi.functions:
        yield f"        {_signature(function)},\n"
    yield "    )\n\n\n"
    probed = [record.name for record in abi.records if record.spelling and record.header not in abi.not_c]
    yield "PROBED_RECORDS = (" + "".join(f"\n    {name}," for name in probed) + "\n)\n\n"
    yield "PROBE_LAYOUT = (\n"
    for row in layout_rows(abi):
        yield f"    ({row.label!r}, {row.expected}),\n"
    yield ")\n"
    yield _BIND


def _constants(abi: Abi) -> Iterator[str]:
    for name, value in abi.macros.items():
        yield f"{name} = {value!r}\n"
    for enum in abi.enums:
        for name, number in enum.values:
            yield f"{name} = {number}\n"
    yield "\nENUMS = {\n"
    for enum in abi.enums:
        if enum.name:
            values = ", ".join(f"{name!r}: {number}" for name, number in enum.values)
            yield f"    {enum.name!r}: {{{values}}},\n"
    yield "}\n"


def _record_fields(record: Record) -> Iterator[str]:
    anonymous = [member.name for member in record.fields if member.anonymous]
    if anonymous:
        yield f"{record.name}._anonymous_ = ({''.join(f'{name!r}, ' for name in anonymous)})\n"
    yield f"{record.name}._fields_ = [\n"
    for member in record.fields:
        yield f"    ({member.name!r}, {_expression(member.type)}),\n"
    yield "]\n"


def _signature(function: Function) -> str:
    arguments = "".join(f"{_expression(param.type)}, " for param in function.params)
    return f"({function.name!r}, {_expression(function.result)}, ({arguments}))"


def _expression(ctype: CType) -> str:
    """The ctypes expression for ``ctype``; a ``const char *`` is text going in, a ``char *`` is a buffer to write."""
    match ctype:
        case Void():
            return "None"
        case Scalar(name) | EnumRef(_, name):
            return _CTYPES_SCALARS[name]
        case RecordRef(name):
            return name
        case Pointer(Void()):
            return "c_void_p"
        case Pointer(Scalar("char"), const=True):
            return "c_char_p"
        case Pointer(target):
            return f"POINTER({_expression(target)})"
        case Array(target, count):
            return f"({_expression(target)} * {count})"
        case Callback(result, params):
            return f"CFUNCTYPE({', '.join([_expression(result), *map(_expression, params)])})"


def _by_value_order(abi: Abi) -> Iterator[Record]:
    """Records such that each comes after those it holds by value: ctypes fixes a layout when it is first used."""
    records = {record.name: record for record in abi.records}
    done: set[str] = set()
    open_: list[str] = []

    def visit(name: str) -> Iterator[Record]:
        if name in done or name not in records:
            return
        if name in open_:
            msg = f"record {name} contains itself by value"
            raise AbiError(msg, why=" -> ".join([*open_, name]))
        open_.append(name)
        for member in records[name].fields:
            held = _held_by_value(member.type)
            if held:
                yield from visit(held)
        open_.pop()
        done.add(name)
        yield records[name]

    for name in records:
        yield from visit(name)


def _held_by_value(ctype: CType) -> str:
    while isinstance(ctype, Array):
        ctype = ctype.target
    return ctype.name if isinstance(ctype, RecordRef) else ""
