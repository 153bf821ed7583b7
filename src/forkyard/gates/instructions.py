"""Which instruction sets a library's code uses, by disassembly, and whether a variant allows them.

Every executable section is decoded from end to end (gcc and clang put no data between functions on x86-64),
and the set of distinct instruction codes is mapped to CPUID features with iced-x86's tables. That is exact
where a search for opcodes is not, and fast: some three million instructions a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from iced_x86 import Code, CpuidFeature, Decoder, Instruction

from forkyard.gates.elf import ElfFile
from forkyard.recipes.model import Recipe
from forkyard.recipes.variants import X86_64, ResolvedVariant

if TYPE_CHECKING:
    from iced_x86 import Code_

BASELINE: frozenset[str] = frozenset(
    {
        # The x86-64 psABI's level 1, which every 64-bit CPU has.
        *("INTEL8086", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "X64", "CMOV", "CX8"),
        *("FPU", "FPU287", "FPU387", "FXSR", "MMX", "SSE", "SSE2", "SYSCALL"),
        # Not listed there, but in every such CPU.
        *("CPUID", "MULTIBYTENOP", "PAUSE", "TSC", "CLFSH"),
        # Encoded as no-operations where the CPU lacks them.
        *("CET_IBT", "CET_SS"),
    }
)
"""iced-x86's names of what any x86-64 code may use."""

_CPUID_NAMES = {value: name for name, value in vars(CpuidFeature).items() if isinstance(value, int)}
_CODE_NAMES = {value: name for name, value in vars(Code).items() if isinstance(value, int)}


@dataclass(frozen=True)
class IsaLimits:
    """What the code of a payload may and must use."""

    allowed: frozenset[str]
    """Instruction sets beside the baseline that the variant's features allow."""
    cpu_library: str
    """Name of the CPU library, without ``lib`` and what follows the name: ``ggml-cpu``."""
    proof: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Feature -> instruction sets, one instruction of which must be in the CPU library."""
    guarded: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Library name -> instruction sets its code uses only after asking the CPU."""
    members: Mapping[str, IsaLimits] = field(default_factory=dict)
    """Member of the variant -> the same for its own libraries; each must have a CPU library."""
    machine: str = X86_64
    """The machine of all code, as ``uname -m`` names it."""


@dataclass(frozen=True)
class CodeUse:
    """What instructions a file holds."""

    sets: Mapping[str, frozenset[str]]
    """Instruction set -> names of the distinct instructions of it."""
    undecodable: int | None
    """Address of the first byte that is no instruction, None if all are."""
    asks: bool
    """Whether the file holds what code asks for the CPU's features with."""


def limits_for(recipe: Recipe, resolved: ResolvedVariant) -> IsaLimits:
    """Return what *recipe*'s wheel may use when built as *resolved*."""
    guarded: dict[str, frozenset[str]] = {}
    for entry in (*recipe.build.guarded, *(resolved.target.guarded if resolved.target else ())):
        guarded[entry.library] = guarded.get(entry.library, frozenset()) | frozenset(entry.instruction_sets)
    target = recipe.build.cpu_target
    members = {one.name: IsaLimits(one.instruction_sets, target, dict(one.proof), guarded) for one in resolved.members}
    proof = dict(resolved.proof)
    return IsaLimits(resolved.instruction_sets, target, proof, guarded, members, resolved.machine)


def code_use(elf: ElfFile) -> CodeUse:
    """Disassemble *elf*, which must be an x86-64 file."""
    codes: set[Code_] = set()
    undecodable: int | None = None
    for address, data in elf.code:
        found: set[Code_] = set()
        add = found.add
        for instruction in Decoder(64, data, ip=address):
            add(instruction.code)
        if Code.INVALID in found and undecodable is None:
            undecodable = next(i.ip for i in Decoder(64, data, ip=address) if i.code == Code.INVALID)
        codes |= found
    sets: dict[str, set[str]] = {}
    for code in codes:
        for name in _instruction_sets(code):
            sets.setdefault(name, set()).add(_CODE_NAMES[code])
    return CodeUse({name: frozenset(members) for name, members in sorted(sets.items())}, undecodable, "CPUID" in sets)


@cache
def _instruction_sets(code: Code_) -> frozenset[str]:
    instruction = Instruction()
    instruction.code = code
    names = frozenset(_CPUID_NAMES[feature] for feature in instruction.cpuid_features())
    # tzcnt is `rep bsf`, which compilers emit for any CPU where the operand is not zero: no difference then.
    # lzcnt is no such case: `rep bsr` gives another result.
    if _CODE_NAMES[code].startswith("TZCNT_"):
        names -= {"BMI1"}
    # Code that asks whether the system saves the wide registers does it with this, having asked CPUID before.
    if _CODE_NAMES[code] == "XGETBV":
        names -= {"XSAVE"}
    return names
