"""Read C headers with libclang and describe what they declare as an :class:`~forkyard.abi.model.Abi`."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from forkyard.abi.macros import constants
from forkyard.abi.model import (
    Abi,
    AbiError,
    Array,
    Callback,
    CType,
    Enum,
    EnumRef,
    Field,
    Function,
    Param,
    Pointer,
    Record,
    RecordRef,
    Scalar,
    Skipped,
    Void,
    render_include,
)

STUB_INCLUDE = Path(__file__).with_name("include")
"""Our own minimal C library headers: libclang's wheel brings none, and a system's would make output depend on it."""

DEFAULT_TARGET = "x86_64-unknown-linux-gnu"

# libclang ships no types: these say which of its classes is meant.
ClangCursor: TypeAlias = Any
ClangDiagnostic: TypeAlias = Any
ClangType: TypeAlias = Any
ClangUnit: TypeAlias = Any

_MAIN = "forkyard-abi-main.c"
# It is only in memory, but has to be somewhere: C looks for quoted headers beside it first. In the current folder, a
# stranger's header would be taken for the engine's, and a folder one may not enter would end the search.
_MAIN_PATH = str(Path(__file__).with_name(_MAIN))
_INTEGER_KINDS = {
    "SCHAR": "i", "SHORT": "i", "INT": "i", "LONG": "i", "LONGLONG": "i",
    "UCHAR": "u", "USHORT": "u", "UINT": "u", "ULONG": "u", "ULONGLONG": "u",
}  # fmt: skip
_OTHER_SCALARS = {"BOOL": "bool", "CHAR_S": "char", "CHAR_U": "char", "FLOAT": "f32", "DOUBLE": "f64"}


_MISSING_TAG = re.compile(r"must use '(?P<kind>enum|struct|union)' tag to refer to type '(?P<name>\w+)'")


class _Unsupported(Exception):
    """A type ctypes has no word for; becomes an AbiError in a record and a Skipped entry in a function."""


def generate(
    headers: Sequence[Path],
    include_dirs: Sequence[Path],
    defines: Sequence[str],
    *,
    target: str = DEFAULT_TARGET,
) -> Abi:
    """Parse ``headers`` as C11 and describe everything they and their neighbours declare.

    Args:
        headers: the headers to include, in this order. What they include from the same folders is described too;
            anything else (the C library) only lends its types.
        include_dirs: further ``-I`` folders, searched after the headers' own.
        defines: ``NAME`` or ``NAME=VALUE`` as the real compiler gets them, without ``-D``.
        target: the clang triple whose sizes and alignments hold.

    Raises:
        AbiError: a header is missing or does not parse, or a record holds what ctypes cannot express.
    """
    for header in headers:
        if not header.is_file():
            msg = f"header {header.name} is not there"
            raise AbiError(msg, where=str(header), next_step="check the patched tree and the header list of the recipe")
    return _Reader(tuple(headers), tuple(include_dirs), tuple(defines), target).read()


class _Reader:
    """One parse: holds what was seen so far, and names for the types C leaves unnamed."""

    def __init__(
        self, headers: tuple[Path, ...], include_dirs: tuple[Path, ...], defines: tuple[str, ...], target: str
    ) -> None:
        self._clang: Any = importlib.import_module("clang.cindex")
        self._headers = headers
        self._defines = defines
        self._target = target
        self._folders = {header.resolve().parent for header in headers}
        self._arguments = [
            "-xc", "-std=c11", f"--target={target}", "-nostdinc", "-isystem", str(STUB_INCLUDE),
            *(f"-I{header.parent}" for header in headers),
            *(f"-I{folder}" for folder in include_dirs),
            *(f"-D{define}" for define in defines),
        ]  # fmt: skip
        self._tags: dict[str, list[str]] = {header.name: [] for header in headers}
        self._not_c: dict[tuple[str, str], str] = {}
        self._names: dict[str, str] = {}
        self._spellings: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._functions: dict[str, Function] = {}
        self._records: dict[str, Record] = {}
        self._mentioned: set[str] = set()
        self._enums: list[Enum] = []
        self._callbacks: dict[str, Callback] = {}
        self._typedefs: dict[str, CType] = {}
        self._skipped: dict[str, Skipped] = {}

    def read(self) -> Abi:
        unit = self._parse()
        errors = self._errors(unit)
        declarations = [cursor for cursor in unit.cursor.get_children() if self._is_ours(cursor)]
        self._set_not_c_apart(errors, declarations)
        for cursor in declarations:
            self._name_unnamed(cursor)
        for cursor in declarations:
            self._declare(cursor)
        return Abi(
            target=self._target,
            includes=tuple(header.name for header in self._headers),
            tags={name: tuple(tags) for name, tags in self._tags.items() if tags},
            not_c=self._headers_not_c(unit),
            defines=self._defines,
            headers={name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(self._files.items())},
            functions=tuple(self._functions[name] for name in sorted(self._functions)),
            records=tuple(self._records[name] for name in sorted(self._records)),
            opaque=tuple(sorted(self._mentioned - self._records.keys())),
            enums=tuple(sorted(self._enums, key=lambda enum: (enum.name, enum.values))),
            callbacks=dict(sorted(self._callbacks.items())),
            typedefs=dict(sorted(self._typedefs.items())),
            macros=constants(self._macro_definitions(unit)),
            skipped=tuple(self._skipped[name] for name in sorted(self._skipped)),
        )

    def _parse(self) -> ClangUnit:
        """Parse, once more for each tag a header for C++ uses as a type name (see :attr:`Abi.tags`)."""
        while True:
            unit = self._parse_once()
            if not self._learn_tags(unit):
                return unit

    def _parse_once(self) -> ClangUnit:
        source = "".join(render_include(header.name, self._tags[header.name]) for header in self._headers)
        options = self._clang.TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD
        try:
            return self._clang.Index.create().parse(
                _MAIN_PATH, args=self._arguments, unsaved_files=[(_MAIN_PATH, source)], options=options
            )
        except self._clang.LibclangError as error:
            msg = "libclang cannot be loaded"
            raise AbiError(
                msg,
                why=str(error).partition(". To provide")[0],
                next_step="raise a limit on memory if there is one (`ulimit -v`); else delete .nox and run nox again",
            ) from error
        except self._clang.TranslationUnitLoadError as error:
            msg = "libclang could not parse the headers at all"
            raise AbiError(msg, where=", ".join(h.name for h in self._headers), why=str(error)) from error

    def _errors(self, unit: ClangUnit) -> list[ClangDiagnostic]:
        return [d for d in unit.diagnostics if d.severity >= self._clang.Diagnostic.Error]

    def _learn_tags(self, unit: ClangUnit) -> bool:
        learned = False
        for diagnostic in self._errors(unit):
            match = _MISSING_TAG.match(diagnostic.spelling)
            header = Path(diagnostic.location.file.name).name if diagnostic.location.file else ""
            if match is None or header not in self._tags:
                continue
            tag = f"{match['kind']} {match['name']}"
            if tag not in self._tags[header]:
                self._tags[header].append(tag)
                learned = True
        return learned

    def _set_not_c_apart(self, errors: list[ClangDiagnostic], declarations: list[ClangCursor]) -> None:
        """Note the functions whose declaration is not C (C++ types in a C header); any other error is fatal."""
        extents = [
            (self._header(c), c.extent.start.line, c.extent.end.line, c.spelling)
            for c in declarations
            if c.kind.name == "FUNCTION_DECL"
        ]
        for error in errors:
            file, line = error.location.file, error.location.line
            header = Path(file.name).name if file else _MAIN
            names = [name for where, first, last, name in extents if where == header and first <= line <= last]
            if error.severity >= self._clang.Diagnostic.Fatal or not names:
                msg = f"the headers do not parse as C ({len(errors)} errors)"
                raise AbiError(
                    msg,
                    where=f"{_MAIN if header == _MAIN else file}:{line}",
                    why=error.spelling,
                    next_step="pass the include folders and defines the engine itself is compiled with",
                )
            for name in names:
                self._not_c.setdefault((header, name), error.spelling)

    def _headers_not_c(self, unit: ClangUnit) -> tuple[str, ...]:
        """Headers no C compiler takes: those with such a declaration, and those that include them."""
        found = {header for header, _ in self._not_c}
        # Directives, not files entered: an include guard keeps the second inclusion of a header from being entered.
        edges = [
            (self._header(cursor), Path(cursor.displayname).name)
            for cursor in unit.cursor.get_children()
            if cursor.kind.name == "INCLUSION_DIRECTIVE" and cursor.location.file is not None
        ]
        while more := {source for source, target in edges if target in found and source != _MAIN} - found:
            found |= more
        return tuple(sorted(found))

    def _is_ours(self, cursor: ClangCursor) -> bool:
        """Whether the declaration stands in a header beside the asked ones; notes that header's name."""
        file = cursor.location.file
        if file is None or cursor.location.is_in_system_header:
            return False
        path = Path(file.name).resolve()
        if path.parent not in self._folders:
            return False
        known = self._files.setdefault(path.name, path)
        if known != path:
            msg = f"two headers are called {path.name}"
            raise AbiError(msg, where=f"{known} and {path}", why="the description names headers without their folder")
        return True

    def _place(self, cursor: ClangCursor) -> str:
        return f"{cursor.location.file}:{cursor.location.line}"

    def _header(self, cursor: ClangCursor) -> str:
        return Path(cursor.location.file.name).name

    def _name_unnamed(self, cursor: ClangCursor) -> None:
        """``typedef struct { .. } name;``: the typedef is the only name such a type has."""
        if cursor.kind.name != "TYPEDEF_DECL":
            return
        declaration = cursor.underlying_typedef_type.get_declaration()
        if declaration.kind.name in {"STRUCT_DECL", "UNION_DECL", "ENUM_DECL"} and self._is_unnamed(declaration):
            self._names.setdefault(declaration.get_usr(), cursor.spelling)
            self._spellings.setdefault(declaration.get_usr(), cursor.spelling)

    @staticmethod
    def _is_unnamed(cursor: ClangCursor) -> bool:
        # An unnamed tag's type is spelled as its typedef's bare name, or as "struct (unnamed at file:line)".
        spelling = cursor.type.get_canonical().spelling
        return "(" in spelling or not spelling.startswith(("struct ", "union ", "enum "))

    def _tag_name(self, declaration: ClangCursor) -> str:
        name: str = self._names.get(declaration.get_usr(), "")
        return name or ("" if self._is_unnamed(declaration) else str(declaration.spelling))

    def _declare(self, cursor: ClangCursor) -> None:
        kind = cursor.kind.name
        if kind == "FUNCTION_DECL":
            self._function(cursor)
        elif kind in {"STRUCT_DECL", "UNION_DECL"}:
            self._record(cursor)
        elif kind == "ENUM_DECL":
            self._enum(cursor)
        elif kind == "TYPEDEF_DECL":
            self._typedef(cursor)
        elif kind == "VAR_DECL":
            self._skip(cursor, "a variable, not a function")

    def _skip(self, cursor: ClangCursor, reason: str) -> None:
        self._skipped[cursor.spelling] = Skipped(cursor.spelling, reason, self._header(cursor))

    def _function(self, cursor: ClangCursor) -> None:
        if cursor.storage_class.name == "STATIC" or self._is_inline(cursor):
            self._skip(cursor, "inline: no library exports it")
            return
        not_c = self._not_c.get((self._header(cursor), cursor.spelling))
        if not_c is not None:
            self._skip(cursor, f"its declaration is not C: {not_c}")
            return
        try:
            result = self._type(cursor.type.get_result())
            types = cursor.type.argument_types() if cursor.type.kind.name == "FUNCTIONPROTO" else ()
            names = [parameter.spelling for parameter in cursor.get_arguments()]
            params = tuple(Param(name, self._parameter(ctype)) for name, ctype in zip(names, types, strict=True))
        except _Unsupported as error:
            self._skip(cursor, f"its signature has {error}")
            return
        deprecated = cursor.availability.name == "DEPRECATED"
        variadic = cursor.type.kind.name == "FUNCTIONPROTO" and bool(cursor.type.is_function_variadic())
        function = Function(cursor.spelling, result, params, self._header(cursor), deprecated, variadic)
        known = self._functions.get(function.name)
        if known is None or (deprecated and not known.deprecated):
            self._functions[function.name] = function

    def _is_inline(self, cursor: ClangCursor) -> bool:
        return bool(self._clang.conf.lib.clang_Cursor_isFunctionInlined(cursor))

    def _enum(self, cursor: ClangCursor) -> None:
        if not cursor.is_definition():
            return
        name = self._tag_name(cursor)
        values = tuple((c.spelling, c.enum_value) for c in cursor.get_children() if c.kind.name == "ENUM_CONSTANT_DECL")
        scalar = self._scalar(cursor.enum_type.get_canonical())
        self._enums.append(Enum(name, scalar.name, values, self._header(cursor)))

    def _typedef(self, cursor: ClangCursor) -> None:
        try:
            ctype = self._type(cursor.underlying_typedef_type)
        except _Unsupported as error:
            self._skip(cursor, f"the typedef is {error}")
            return
        if isinstance(ctype, Callback):
            self._callbacks[cursor.spelling] = ctype
        elif not (isinstance(ctype, (RecordRef, EnumRef)) and ctype.name == cursor.spelling):
            self._typedefs[cursor.spelling] = ctype

    def _record(self, cursor: ClangCursor, fallback: str = "") -> str:
        """Describe a record; returns its name. An unnamed one gets ``fallback`` and has no spelling in C."""
        name = self._tag_name(cursor) or fallback
        if not name:
            return ""
        self._mentioned.add(name)
        if not cursor.is_definition() or name in self._records:
            return name
        kind = "union" if cursor.kind.name == "UNION_DECL" else "struct"
        usr = cursor.get_usr()
        unnamed = self._is_unnamed(cursor)
        spelling = self._spellings.get(usr, "") if unnamed else f"{kind} {name}"
        self._names.setdefault(usr, name)
        try:
            fields = tuple(self._fields(cursor, name))
        except _Unsupported as error:
            msg = f"{kind} {name} has {error}"
            raise AbiError(
                msg,
                where=self._place(cursor),
                why="ctypes cannot express it, and a guessed layout would corrupt memory",
                next_step="leave this header out of the bindings or give the record another shape",
            ) from error
        size, align = cursor.type.get_size(), cursor.type.get_align()
        self._records[name] = Record(name, kind, spelling, size, align, fields, self._header(cursor))
        return name

    def _fields(self, cursor: ClangCursor, owner: str) -> Iterator[Field]:
        for index, member in enumerate(cursor.type.get_fields()):
            if member.is_bitfield():
                msg = f"a bitfield ({member.spelling}, {member.get_bitfield_width()} bits)"
                raise _Unsupported(msg)
            declaration = member.type.get_canonical().get_declaration()
            # libclang spells an unnamed member "union owner::(anonymous at file:line)".
            anonymous = not member.spelling or "(" in member.spelling
            name = f"anonymous{index}" if anonymous else member.spelling
            if declaration.kind.name in {"STRUCT_DECL", "UNION_DECL"} and not self._tag_name(declaration):
                self._record(declaration, f"{owner}__{name}")
            size = max(member.type.get_size(), 0)
            yield Field(name, self._type(member.type), member.get_field_offsetof() // 8, size, anonymous)

    def _type(self, ctype: ClangType) -> CType:
        """``ctype`` in our words, typedefs resolved.

        Raises:
            _Unsupported: no word for it.
        """
        canonical = ctype.get_canonical()
        kind = canonical.kind.name
        if kind == "VOID":
            return Void()
        if kind in _OTHER_SCALARS or kind in _INTEGER_KINDS:
            return self._scalar(canonical)
        if kind == "ENUM":
            declaration = canonical.get_declaration()
            return EnumRef(self._tag_name(declaration), self._scalar(declaration.enum_type.get_canonical()).name)
        if kind == "RECORD":
            return self._record_ref(canonical)
        if kind == "POINTER":
            return self._pointer(canonical.get_pointee())
        if kind == "CONSTANTARRAY":
            return Array(self._type(canonical.element_type), canonical.element_count)
        if kind == "INCOMPLETEARRAY":
            return Array(self._type(canonical.element_type), 0)
        msg = f"a type ctypes has no word for ({ctype.spelling})"
        raise _Unsupported(msg)

    def _parameter(self, ctype: ClangType) -> CType:
        """The type of a parameter: an array is passed as a pointer to its first element (C11 6.7.6.3)."""
        canonical = ctype.get_canonical()
        if canonical.kind.name in {"CONSTANTARRAY", "INCOMPLETEARRAY"}:
            # clang keeps an element's const on the array.
            return Pointer(self._type(canonical.element_type), bool(canonical.is_const_qualified()))
        return self._type(ctype)

    def _record_ref(self, canonical: ClangType) -> RecordRef:
        declaration = canonical.get_declaration()
        name = self._tag_name(declaration)
        if not name or name == "__va_list_tag":
            msg = f"a type without a name ({canonical.spelling})" if not name else "a va_list"
            raise _Unsupported(msg)
        self._mentioned.add(name)
        return RecordRef(name)

    def _pointer(self, pointee: ClangType) -> CType:
        canonical = pointee.get_canonical()
        if canonical.kind.name == "FUNCTIONPROTO":
            result = self._type(canonical.get_result())
            params = tuple(self._parameter(argument) for argument in canonical.argument_types())
            return Callback(result, params, bool(canonical.is_function_variadic()))
        if canonical.kind.name == "FUNCTIONNOPROTO":
            return Callback(self._type(canonical.get_result()), ())
        return Pointer(self._type(pointee), bool(canonical.is_const_qualified()))

    def _scalar(self, canonical: ClangType) -> Scalar:
        kind = canonical.kind.name
        if kind in _OTHER_SCALARS:
            return Scalar(_OTHER_SCALARS[kind])
        sign = _INTEGER_KINDS.get(kind)
        if sign is None:
            msg = f"a number ctypes has no word for ({canonical.spelling})"
            raise _Unsupported(msg)
        return Scalar(f"{sign}{8 * canonical.get_size()}")

    def _macro_definitions(self, unit: ClangUnit) -> Iterator[tuple[str, list[str]]]:
        for cursor in unit.cursor.get_children():
            if cursor.kind.name != "MACRO_DEFINITION" or not self._is_ours(cursor):
                continue
            tokens = [token.spelling for token in cursor.get_tokens()]
            if self._clang.conf.lib.clang_Cursor_isMacroFunctionLike(cursor) or len(tokens) < 2:
                continue
            yield cursor.spelling, tokens[1:]
