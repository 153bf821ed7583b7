"""The memory nodes of this machine, as far as a measurement has to know them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SYSTEM = Path("/sys/devices/system")
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


def describe_machine(nodes: tuple[MemoryNode, ...]) -> dict[str, Any]:
    """What a reader of figures wants to know of where they are from."""
    model = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return {
        "cpu": model.group(1) if model else "unknown",
        "nodes": [node.as_json() for node in nodes],
        "numa_balancing": _text(Path("/proc/sys/kernel/numa_balancing")) or None,
        "governor": _text(_SYSTEM / "cpu" / "cpu0" / "cpufreq" / "scaling_governor") or None,
        "kernel": os.uname().release,
    }


def _has_memory(node: Path) -> bool:
    match = re.search(r"MemTotal:\s*(\d+)", _text(node / "meminfo"))
    return match is None or int(match.group(1)) > 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
