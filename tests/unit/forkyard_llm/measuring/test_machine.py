from __future__ import annotations

from pathlib import Path

import pytest
from forkyard_llm.measuring.machine import describe, parse_list, read_nodes


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Two sockets of two cores with two threads each; node ids 0 and 2; node 1 has memory and no processors."""
    for number, cpus in ((0, "0-3"), (1, ""), (2, "4-7")):
        node = tmp_path / "node" / f"node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(f"{cpus}\n")
        (node / "meminfo").write_text(f"Node {number} MemTotal:       1000 kB\n")
    (tmp_path / "node" / "node_is_no_number").mkdir()
    for cpu in range(8):
        topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    return tmp_path


def test_nodes_with_a_gap_and_threads_that_share_a_core(system: Path) -> None:
    first, second = read_nodes(system, range(8))
    assert (first.id, first.cpus, first.cores) == (0, (0, 1, 2, 3), 2)
    assert (second.id, second.cpus, second.cores) == (2, (4, 5, 6, 7), 2)


def test_processors_that_may_not_be_used_do_not_count(system: Path) -> None:
    assert [(node.id, node.cpus) for node in read_nodes(system, {1, 2})] == [(0, (1, 2))]


def test_a_node_without_memory_does_not_count(system: Path) -> None:
    (system / "node" / "node2" / "meminfo").write_text("Node 2 MemTotal:       0 kB\n")
    assert [node.id for node in read_nodes(system, range(8))] == [0]


def test_ten_nodes_are_in_order(tmp_path: Path) -> None:
    for number in range(11):
        node = tmp_path / "node" / f"node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(f"{number}\n")
    assert [node.id for node in read_nodes(tmp_path, range(11))] == list(range(11))


def test_a_kernel_without_nodes_has_one(tmp_path: Path) -> None:
    (only,) = read_nodes(tmp_path, {0, 1})
    assert (only.id, only.cpus) == (0, (0, 1))


def test_this_machine_has_a_node() -> None:
    assert read_nodes()[0].cores >= 1
    assert describe(read_nodes())["cpu"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", set()), ("0", {0}), ("0-2,5", {0, 1, 2, 5}), ("3,1-1\n", {1, 3}), ("x,2-", {2}), ("4-2", set())],
)
def test_lists(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers
