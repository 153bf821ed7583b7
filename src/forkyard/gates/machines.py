"""The machines that payloads are for, as the gates tell them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from auditwheel.architecture import Architecture

from forkyard.gates import aarch64, instructions
from forkyard.gates.elf import ElfFile
from forkyard.gates.instructions import CodeUse


@dataclass(frozen=True)
class Machine:
    """One machine, on Linux."""

    title: str
    elf: str
    """As ELF names it; all are of 64 bits."""
    architecture: Architecture
    loader: str
    """Its dynamic loader, which libraries may need."""
    baseline: frozenset[str]
    """Instruction sets that any of its code may use."""
    code_use: Callable[[ElfFile], CodeUse]
    question: str
    """What a file holds if its code asks for the CPU's features."""


MACHINES = {
    "x86_64": Machine(
        "x86-64",
        "EM_X86_64",
        Architecture.x86_64,
        "ld-linux-x86-64.so.2",
        instructions.BASELINE,
        instructions.code_use,
        "CPUID",
    ),
    "aarch64": Machine(
        "64-bit ARM",
        "EM_AARCH64",
        Architecture.aarch64,
        "ld-linux-aarch64.so.1",
        aarch64.BASELINE,
        aarch64.code_use,
        "getauxval",
    ),
}
"""Those of the variants, as ``uname -m`` names them."""
