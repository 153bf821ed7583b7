"""The parts of an ELF file the gates look at: names, search paths, version needs and code.

Reading is pyelftools'; this module turns a file into plain values once, and any damage into one exception.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.segments import InterpSegment

# pyelftools trusts offsets and sizes; on a damaged file that ends in any of these.
_DAMAGE = (
    ELFError,
    ConstructError,
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RecursionError,
    EOFError,
)
_EXECUTABLE = 0x4  # SHF_EXECINSTR
_SEGMENT_EXECUTABLE = 0x1  # PF_X


class DamagedElfError(Exception):
    """The file begins like an ELF file but is none that can be loaded."""


@dataclass(frozen=True)
class ElfFile:
    """What one ELF file says about itself."""

    machine: str
    """As ELF names it, e.g. ``EM_X86_64``."""
    bits: int
    soname: str | None
    needed: tuple[str, ...]
    runpath: str | None
    rpath: str | None
    interpreter: str | None
    """The dynamic loader, for a program; None for a library."""
    version_needs: Mapping[str, frozenset[str]]
    """Library -> versioned symbol sets wanted of it, e.g. ``libc.so.6`` -> ``{GLIBC_2.34}``."""
    executable_stack: bool
    dynamic_names: bytes = field(repr=False)
    """Names of dynamic symbols and libraries, a zero byte before and after each."""
    code: tuple[tuple[int, bytes], ...] = field(repr=False)
    """Address and bytes of every executable section."""


def is_elf(data: bytes) -> bool:
    """Return whether *data* begins like an ELF file."""
    return data[:4] == b"\x7fELF"


def read_elf(data: bytes) -> ElfFile:
    """Read an ELF file; raises :class:`DamagedElfError` if it is damaged."""
    try:
        return _read(ELFFile(io.BytesIO(data)))
    except _DAMAGE as error:
        msg = f"not a whole ELF file ({type(error).__name__}: {error})"
        raise DamagedElfError(msg) from None


def _read(elf: ELFFile) -> ElfFile:
    tags: dict[str, list[str]] = {"DT_NEEDED": [], "DT_SONAME": [], "DT_RUNPATH": [], "DT_RPATH": []}
    interpreter, executable_stack, segments = None, False, []
    for segment in elf.iter_segments():
        if isinstance(segment, DynamicSegment):
            for tag in segment.iter_tags():
                if tag.entry.d_tag in tags:
                    # pyelftools names the value of each of these tags after the tag: needed, soname, ...
                    name = tag.entry.d_tag.removeprefix("DT_").lower()
                    tags[tag.entry.d_tag].append(str(getattr(tag, name)))
        elif isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name()
        elif segment["p_type"] == "PT_GNU_STACK":
            executable_stack = bool(segment["p_flags"] & _SEGMENT_EXECUTABLE)
        if segment["p_type"] == "PT_LOAD" and segment["p_flags"] & _SEGMENT_EXECUTABLE:
            segments.append((int(segment["p_vaddr"]), bytes(segment.data())))
    needs: dict[str, frozenset[str]] = {}
    sections, names = [], b""
    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for need, versions in section.iter_versions():
                library = str(need.name)
                needs[library] = needs.get(library, frozenset()) | {str(v.name) for v in versions}
        elif section.name == ".dynstr":
            names = bytes(section.data())
        elif section["sh_flags"] & _EXECUTABLE and section["sh_type"] == "SHT_PROGBITS":
            sections.append((int(section["sh_addr"]), bytes(section.data())))
    return ElfFile(
        machine=str(elf["e_machine"]),
        bits=int(elf.elfclass),
        soname=next(iter(tags["DT_SONAME"]), None),
        needed=tuple(tags["DT_NEEDED"]),
        runpath=next(iter(tags["DT_RUNPATH"]), None),
        rpath=next(iter(tags["DT_RPATH"]), None),
        interpreter=interpreter,
        version_needs=needs,
        executable_stack=executable_stack,
        dynamic_names=names,
        # Without section headers the loadable segments are all there is; they hold constants, too.
        code=tuple(sections or segments),
    )
