"""Run every gate on a finished payload wheel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from forkyard.errors import GateError
from forkyard.gates import archive_gates, binary_gates, gpu_gates
from forkyard.gates.contents import UnreadableWheelError, WheelContents, read_wheel
from forkyard.gates.elf import DamagedElfError, ElfFile, is_elf, read_elf
from forkyard.gates.gpu_gates import GpuLimits
from forkyard.gates.instructions import IsaLimits
from forkyard.gates.machines import MACHINES
from forkyard.gates.report import Finding, GateReport

GATES: tuple[str, ...] = (
    "readable",
    "names",
    "modes",
    "dates",
    "layout",
    "record",
    "manifest",
    "sonames",
    "linkage",
    "platform",
    "instructions",
    "identity",
    "traces",
    "size",
)
"""The gates, in the order they run."""

GPU_GATES: tuple[str, ...] = ("gpu-libraries", "architectures")
"""Those of payloads for GPUs, after the others."""


def check_wheel(
    path: Path,
    *,
    package: str,
    limits: IsaLimits,
    gpu: GpuLimits | None = None,
    forbidden_prefixes: Sequence[str] = (),
) -> GateReport:
    """Check the payload wheel at *path*; nothing is raised for anything the wheel may be.

    Args:
        path: the wheel.
        package: the one import package it is to hold.
        limits: what its code may and must use; see :func:`forkyard.gates.instructions.limits_for`.
        gpu: what its GPU code may link to and must hold; None if it has none.
        forbidden_prefixes: absolute paths of build, source and home folders that must be in no file.
    """
    started = time.perf_counter()
    ran = GATES if gpu is None else GATES + GPU_GATES
    facts: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    try:
        wheel = read_wheel(path)
    except UnreadableWheelError as error:
        return GateReport(path.name, ran, (Finding("readable", path.name, str(error)),), facts, seconds)
    elves, findings = _elves(wheel)
    names, members, contradictions = archive_gates.payload_libraries(wheel, package)
    foreign = (gpu.needs, gpu.folders) if gpu else ()
    machine = MACHINES[limits.machine]
    seconds["readable"] = time.perf_counter() - started
    gates: dict[str, Callable[[], Iterator[Finding]]] = {
        "names": lambda: archive_gates.check_names(wheel),
        "modes": lambda: archive_gates.check_modes(wheel),
        "dates": lambda: archive_gates.check_dates(wheel),
        "layout": lambda: archive_gates.check_layout(wheel, package),
        "record": lambda: archive_gates.check_record(wheel),
        "manifest": lambda: iter(contradictions),
        "sonames": lambda: binary_gates.check_sonames(elves, members),
        "linkage": lambda: binary_gates.check_linkage(elves, package, wheel, machine, *foreign),
        "platform": lambda: binary_gates.check_platform(elves, wheel, machine, facts),
        "instructions": lambda: binary_gates.check_instructions(elves, names, members, limits, facts),
        "identity": lambda: binary_gates.check_identity(wheel, elves, package),
        "traces": lambda: binary_gates.check_traces(wheel, forbidden_prefixes),
        "size": lambda: gpu_gates.check_size(wheel),
    }
    if gpu is not None:
        limits_of_gpu = gpu
        gates |= {
            "gpu-libraries": lambda: gpu_gates.check_needs(elves, names, limits_of_gpu),
            "architectures": lambda: gpu_gates.check_architectures(
                wheel, names, limits_of_gpu, forbidden_prefixes, facts
            ),
        }
    for gate, check in gates.items():
        started = time.perf_counter()
        findings.extend(check())
        seconds[gate] = time.perf_counter() - started
    return GateReport(path.name, ran, tuple(findings), facts, seconds)


def platform_floor(path: Path) -> str:
    """Return the oldest platform tag the wheel at *path* deserves, e.g. ``manylinux_2_35_x86_64``.

    Raises :class:`GateError` if the wheel or a library in it cannot be read.
    """
    try:
        elves, damaged = _elves(read_wheel(path))
    except UnreadableWheelError as error:
        raise GateError("the wheel cannot be read", where=path.name, why=str(error)) from None
    if damaged:
        raise GateError("a file in the wheel is damaged", where=path.name, why=str(damaged[0]))
    return str(binary_gates.platform_needs(elves, binary_gates.machine_of(elves))[0].name)


def _elves(wheel: WheelContents) -> tuple[dict[str, ElfFile], list[Finding]]:
    elves: dict[str, ElfFile] = {}
    damaged: list[Finding] = []
    for name, data in sorted(wheel.files.items()):
        if is_elf(data):
            try:
                elves[name] = read_elf(data)
            except DamagedElfError as error:
                damaged.append(Finding("readable", name, str(error)))
    return elves, damaged
