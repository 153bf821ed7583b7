"""Which instruction sets the code of a library for 64-bit ARM uses, by disassembly.

Every instruction is one word of 32 bits, and the sets it needs follow from the word alone, so each distinct word is
looked at once. Capstone says which of LLVM's predicates it needs: ``HasDotProd``, ``HasSVEorSME``.
"""

from __future__ import annotations

from array import array

import capstone

from forkyard.gates.elf import ElfFile
from forkyard.gates.instructions import CodeUse

BASELINE: frozenset[str] = frozenset()
"""What code may use for which capstone names a set: nothing. Any variant lists what it has."""

# Of these classes of the architecture's encoding index no instruction needs anything: most words of a program are of
# them, and capstone does some 50000 a second. Mask, value.
_PLAIN = (
    (0x7C000000, 0x14000000),  # unconditional branch (immediate)
    (0x7C000000, 0x34000000),  # compare and branch, test and branch
    (0x1F000000, 0x10000000),  # PC-relative addressing
    (0x3F000000, 0x39000000),  # load/store register (unsigned immediate), general
    (0x7E000000, 0x28000000),  # load/store register pair, general; with bit 30 set one of them stores tags
)

_known: dict[int, tuple[str, frozenset[str]] | None] = {}
"""Word -> its name and what it needs; None for what is no instruction."""


def code_use(elf: ElfFile) -> CodeUse:
    """Disassemble *elf*, which must be a 64-bit ARM file."""
    undecodable: int | None = None
    sets: dict[str, set[str]] = {}
    for address, data in elf.code:
        words = array("I", data[: len(data) // 4 * 4])
        distinct = set(words)
        _look_at(distinct)
        for word in distinct:
            found = _known.get(word, ("", frozenset()))
            if found is None:
                place = address + 4 * words.index(word)
                undecodable = place if undecodable is None else min(undecodable, place)
                continue
            for name in found[1]:
                sets.setdefault(name, set()).add(found[0])
    asks = b"\0getauxval\0" in elf.dynamic_names
    return CodeUse({name: frozenset(members) for name, members in sorted(sets.items())}, undecodable, asks)


def _look_at(words: set[int]) -> None:
    new = [word for word in words if word not in _known and not any(word & mask == value for mask, value in _PLAIN)]
    machine = capstone.Cs(capstone.CS_ARCH_AARCH64, capstone.CS_MODE_LITTLE_ENDIAN)
    machine.detail = machine.skipdata = True
    for word, instruction in zip(new, machine.disasm(array("I", new).tobytes(), 0), strict=True):
        if instruction.id == 0:
            _known[word] = None
            continue
        groups = (str(instruction.group_name(group)) for group in instruction.groups)
        _known[word] = str(instruction.mnemonic), frozenset(_set(name) for name in groups if name.startswith("Has"))


def _set(predicate: str) -> str:
    """The instruction set of one of LLVM's predicates: of those that need one of two, the first. SVE, not SME."""
    return predicate.removeprefix("Has").partition("or")[0].upper()
