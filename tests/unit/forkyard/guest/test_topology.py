from __future__ import annotations

import itertools

import pytest

from forkyard.guest.topology import GAP, Node, Topology


def numa(topology: Topology) -> list[str]:
    words = topology.qemu_arguments()
    return [value for name, value in itertools.pairwise(words) if name == "-numa"]


def test_nodes_get_their_cpus_memory_and_distances() -> None:
    two = Topology("two", "", (Node(2, 512), Node(1, 256)))
    words = two.qemu_arguments()
    assert words[:4] == ["-m", "768M", "-smp", "3,sockets=3,cores=1,threads=1"]
    assert "memory-backend-ram,id=m1,size=256M" in words
    assert numa(two) == [
        "node,nodeid=0,memdev=m0",
        "cpu,node-id=0,socket-id=0",
        "cpu,node-id=0,socket-id=1",
        "node,nodeid=1,memdev=m1",
        "cpu,node-id=1,socket-id=2",
        "dist,src=0,dst=0,val=10",
        "dist,src=0,dst=1,val=21",
        "dist,src=1,dst=0,val=21",
        "dist,src=1,dst=1,val=10",
    ]
    assert two.kernel_arguments() == []
    assert two.cpus() == {0: (0, 1), 1: (2,)}


def test_a_gap_has_a_socket_and_no_memory_and_its_cpu_is_left_alone() -> None:
    gap = Topology("gap", "", (Node(2, 512), GAP, Node(1, 512)))
    assert "node,nodeid=1" in numa(gap)
    assert "cpu,node-id=1,socket-id=2" in numa(gap)
    assert gap.kernel_arguments() == ["disable_cpu_apicid=2"]
    assert gap.cpus() == {0: (0, 1), 2: (2,)}


def test_a_node_without_cpus_is_known_to_the_kernel() -> None:
    assert Topology("memory", "", (Node(1, 512), Node(0, 64))).cpus() == {0: (0,), 1: ()}


@pytest.mark.parametrize(
    "nodes",
    [(Node(0, 512),), (Node(1, 512), Node(0, 64), Node(1, 512)), (Node(1, 6145),)],
    ids=["no CPU at all", "a node without CPUs is not last", "too large"],
)
def test_machines_that_would_not_be_as_described_are_refused(nodes: tuple[Node, ...]) -> None:
    with pytest.raises(ValueError, match="no machine"):
        Topology("bad", "", nodes).qemu_arguments()


def test_the_kernel_can_leave_one_cpu_alone() -> None:
    with pytest.raises(ValueError, match="no machine"):
        Topology("bad", "", (Node(1, 512), GAP, GAP, Node(1, 64))).kernel_arguments()
