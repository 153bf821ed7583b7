"""Machines QEMU can pretend to be: nodes, their CPUs and memory, as its command line and the kernel's say it."""

from __future__ import annotations

from dataclasses import dataclass

_NEAR, _FAR = 10, 21
"""Distances as a usual two-socket machine's firmware gives them (ACPI 6.5, 5.2.17: 10 is a node to itself)."""
LARGEST_MIB = 6144


@dataclass(frozen=True)
class Node:
    """One node of the machine."""

    cpus: int
    mib: int
    """Memory."""


GAP = Node(1, 0)
"""A node the kernel does not bring up, so that the numbers of the others are not consecutive.

Linux numbers nodes in the order in which the firmware's table (SRAT) mentions them, so a gap cannot just be asked for.
This node has a CPU in that table, which gives it a number; but no memory, and the kernel is told not to use the CPU.
"""


@dataclass(frozen=True)
class Topology:
    """One machine. Nodes without CPUs come last: that is how the kernel would number them anyway."""

    name: str
    title: str
    nodes: tuple[Node, ...]

    @property
    def mib(self) -> int:
        """All memory."""
        return sum(node.mib for node in self.nodes)

    def cpus(self) -> dict[int, tuple[int, ...]]:
        """What the kernel has to know: the online nodes, each with the numbers of its CPUs."""
        known, first = {}, 0
        for number, node in enumerate(self.nodes):
            if node != GAP:
                known[number] = tuple(range(first, first + node.cpus))
                first += node.cpus
        return known

    def qemu_arguments(self) -> list[str]:
        """Its part of QEMU's command line.

        Raises:
            ValueError: there is no such machine.
        """
        counts = [node.cpus for node in self.nodes]
        if self.mib > LARGEST_MIB or not counts[0] or sorted(counts, key=bool, reverse=True) != counts:
            msg = f"no machine can be like {self.name}"
            raise ValueError(msg)
        # A socket for each CPU: then the number of a CPU is that of its socket and of its interrupt controller.
        arguments = ["-m", f"{self.mib}M", "-smp", f"{sum(counts)},sockets={sum(counts)},cores=1,threads=1"]
        socket = 0
        for number, node in enumerate(self.nodes):
            memory = f",memdev=m{number}" if node.mib else ""
            if node.mib:
                arguments += ["-object", f"memory-backend-ram,id=m{number},size={node.mib}M"]
            arguments += ["-numa", f"node,nodeid={number}{memory}"]
            for _ in range(node.cpus):
                arguments += ["-numa", f"cpu,node-id={number},socket-id={socket}"]
                socket += 1
        numbers = range(len(self.nodes))
        for source, target in ((source, target) for source in numbers for target in numbers):
            arguments += ["-numa", f"dist,src={source},dst={target},val={_NEAR if source == target else _FAR}"]
        return arguments

    def kernel_arguments(self) -> list[str]:
        """Its part of the kernel's command line.

        Raises:
            ValueError: it has two gaps; the kernel can leave one CPU alone.
        """
        gaps = [number for number, node in enumerate(self.nodes) if node == GAP]
        if len(gaps) > 1:
            msg = f"no machine can be like {self.name}"
            raise ValueError(msg)
        return [f"disable_cpu_apicid={sum(node.cpus for node in self.nodes[: gaps[0]])}"] if gaps else []
