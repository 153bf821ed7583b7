"""What a reader of figures has to know of the machine they are from, and nothing that says whose it is."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cpu
from ..engines.cores import physical_cores
from ..engines.quota import cpu_quota
from .running import chosen_environment

__all__ = ["MemoryNode", "core_sets", "describe", "free_memory", "parse_list", "read_nodes", "thread_counts"]

_SYSTEM = Path("/sys/devices/system")
_TELLING = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512vbmi", "avx512_vnni"),
    *(
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "asimddp",
        "i8mm",
        "bf16",
        "sve",
        "sve2",
    ),
)
"""CPU features that the engines' kernels differ by."""
_NODE = re.compile(r"node(\d+)")


@dataclass(frozen=True)
class MemoryNode:
    """A node with processors this process may use."""

    id: int
    """The kernel's number."""
    cpus: tuple[int, ...]
    """Processors this process may use, sorted."""
    cores: int
    """Physical cores among them."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"id": self.id, "cpus": len(self.cpus), "cores": self.cores}


def read_nodes(system: Path = _SYSTEM, allowed: Collection[int] | None = None) -> tuple[MemoryNode, ...]:
    """Nodes that have memory and processors for us; numbers may have gaps.

    Args:
        system: the kernel's folder of nodes and processors.
        allowed: processors that may be used (default: those of this process).
    """
    usable = set(os.sched_getaffinity(0) if allowed is None else allowed)
    found = []
    for folder in sorted((system / "node").glob("node*"), key=lambda path: (len(path.name), path.name)):
        match = _NODE.fullmatch(folder.name)
        cpus = tuple(sorted(parse_list(_text(folder / "cpulist")) & usable))
        if match is None or not cpus or not _has_memory(folder):
            continue
        cores = {_text(system / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus}
        found.append(MemoryNode(int(match.group(1)), cpus, len(cores)))
    if not found:
        # A kernel without nodes has one.
        found.append(MemoryNode(0, tuple(sorted(usable)), len(usable)))
    return tuple(found)


def parse_list(text: str) -> set[int]:
    """The numbers of a kernel list such as ``0-3,8``; what is no number is passed over."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def describe(nodes: tuple[MemoryNode, ...] | None = None, system: Path = _SYSTEM) -> dict[str, Any]:
    """The machine, ready for JSON: hardware, kernel, and what of its settings changes speeds.

    No name of a host, user or folder is in it, nor any serial number or address.
    """
    host = cpu.host()
    model = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {
        "cpu": model.group(1) if model else host.brand or "unknown",
        "machine": host.machine,
        "features": [name for name in _TELLING if host.has(name)],
        "cpus": len(usable),
        "cores": physical_cores(usable),
        "cpu_quota": cpu_quota(),
        "core_kinds": _core_kinds(usable, system),
        "nodes": [node.as_json() for node in nodes or read_nodes(system)],
        "distances": [
            [int(word) for word in _text(folder / "distance").split() if word.isdigit()]
            for folder in sorted((system / "node").glob("node*"), key=lambda path: (len(path.name), path.name))
        ],
        "memory_bytes": 1024 * int(memory[1]) if memory else None,
        "gpus": _gpus(),
        "numa_balancing": _text(Path("/proc/sys/kernel/numa_balancing")) or None,
        "governor": _text(system / "cpu" / "cpu0" / "cpufreq" / "scaling_governor") or None,
        "kernel": os.uname().release,
        "environment": chosen_environment(os.environ),
    }


def thread_counts(cores: int | None = None) -> list[int]:
    """Numbers of threads that are worth trying: powers of two and between, all cores but one, all cores, all CPUs.

    Args:
        cores: physical cores (default: this process's).
    """
    cores = physical_cores() if cores is None else cores
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts, power = {1, max(1, cores - 1), cores, max(cores, logical)}, 2
    while power < cores:
        counts |= {power, min(cores, power + power // 2)}
        power *= 2
    return sorted(counts)


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that programs may take without making others swap; None if the kernel does not say."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(meminfo), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def core_sets(system: Path = _SYSTEM, allowed: Collection[int] | None = None) -> dict[str, tuple[int, ...]]:
    """Some of the CPUs that may be worth having alone, by a name; none where all are alike.

    ``one of each core`` where cores have several; ``the fast ones`` where some have a higher top frequency.
    """
    usable = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    first: dict[str, int] = {}
    for one in usable:
        first.setdefault(_text(system / "cpu" / f"cpu{one}" / "topology" / "thread_siblings_list") or str(one), one)
    tops = {one: _text(system / "cpu" / f"cpu{one}" / "cpufreq" / "cpuinfo_max_freq") for one in usable}
    best = max((int(top) for top in tops.values() if top.isdigit()), default=0)
    # Single cores of one kind boost a little higher than others; slow cores lack a fifth and more.
    fast = tuple(one for one in usable if tops[one].isdigit() and int(tops[one]) > 0.8 * best)
    sets = {"one of each core": tuple(sorted(first.values())), "the fast ones": fast}
    return {name: cpus for name, cpus in sets.items() if 0 < len(cpus) < len(usable)}


def _core_kinds(usable: Iterable[int], system: Path) -> dict[str, int]:
    """Highest frequency (kHz) -> how many of the CPUs have it; of a hybrid processor more than one, else empty."""
    found = [_text(system / "cpu" / f"cpu{one}" / "cpufreq" / "cpuinfo_max_freq") for one in usable]
    kinds = {one: found.count(one) for one in sorted(set(found), reverse=True) if one}
    return kinds if len(kinds) > 1 else {}


def _gpus() -> list[str]:
    """Names of the graphics units that the kernel's drivers tell."""
    named = [
        match[1].strip()
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        if (match := re.search(r"^Model:\s*(.+)$", _text(path), re.MULTILINE))
    ]
    for device in sorted(Path("/sys/class/drm").glob("card[0-9]*/device")):
        if "-" not in device.parent.name and (driver := device / "driver").is_symlink():
            name = os.path.basename(os.readlink(driver))
            if name != "nvidia" or not named:
                named.append(f"{name} {_text(device / 'vendor')}:{_text(device / 'device')}")
    return named


def _has_memory(node: Path) -> bool:
    match = re.search(r"MemTotal:\s*(\d+)", _text(node / "meminfo"))
    return match is None or int(match.group(1)) > 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
