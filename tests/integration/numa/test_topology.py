"""What the engine makes of a machine's nodes, from trees as the kernel lays them out, and of words on the command line."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.patch("numa-nodes")

MAX_CPUS = 1024
MAX_NODES = 16
WORDS = {"weights": 1, "kv": 2, "all": 3, "none": 0, "best-effort": 4}


class Node(ctypes.Structure):
    """``struct ggml_numa_mirror_node``."""

    _fields_ = (("id", ctypes.c_int), ("n_cpus", ctypes.c_int), ("cpus", ctypes.c_ubyte * MAX_CPUS))


@pytest.fixture(scope="module")
def ggml(engine_payload: Callable[[str], Path]) -> ctypes.CDLL:
    return ctypes.CDLL(str(next((engine_payload("llama.cpp") / "lib").glob("libggml-base*.so"))))


def sysfs(root: Path, nodes: Mapping[int, tuple[str, int]], online: str | None = None) -> Path:
    """A tree as /sys/devices/system/node: for each node its cpulist and MiB of memory."""
    root.mkdir()
    (root / "online").write_text((online if online is not None else ",".join(map(str, sorted(nodes)))) + "\n")
    for number, (cpus, mib) in nodes.items():
        folder = root / f"node{number}"
        folder.mkdir()
        (folder / "cpulist").write_text(cpus + "\n")
        (folder / "meminfo").write_text(f"Node {number} MemTotal: {mib * 1024:>15} kB\nNode {number} MemFree: 1 kB\n")
    return root


def read(ggml: ctypes.CDLL, root: Path, allowed: Iterable[int] = range(MAX_CPUS)) -> dict[int, list[int]]:
    """Node ids the engine would use, each with its CPUs."""
    mask = (ctypes.c_ubyte * MAX_CPUS)()
    for cpu in allowed:
        mask[cpu] = 1
    nodes = (Node * MAX_NODES)()
    count = ggml.ggml_numa_mirror_read_nodes(str(root).encode(), mask, nodes, MAX_NODES)
    found = {node.id: [cpu for cpu in range(MAX_CPUS) if node.cpus[cpu]] for node in nodes[:count]}
    assert [node.n_cpus for node in nodes[:count]] == [len(cpus) for cpus in found.values()]
    return found


def test_two_nodes(ggml: ctypes.CDLL, tmp_path: Path) -> None:
    root = sysfs(tmp_path / "node", {0: ("0-3,8-11", 1024), 1: ("4-7,12-15", 1024)}, "0-1")
    assert read(ggml, root) == {0: [0, 1, 2, 3, 8, 9, 10, 11], 1: [4, 5, 6, 7, 12, 13, 14, 15]}


def test_gaps_in_the_numbers(ggml: ctypes.CDLL, tmp_path: Path) -> None:
    assert read(ggml, sysfs(tmp_path / "node", {0: ("0", 64), 3: ("1", 64), 250: ("2", 64)}, "0,3,250")) == {
        0: [0],
        3: [1],
        250: [2],
    }


def test_nodes_without_cpus_or_memory_are_passed_over(ggml: ctypes.CDLL, tmp_path: Path) -> None:
    root = sysfs(tmp_path / "node", {0: ("0-1", 64), 1: ("", 64), 2: ("2-3", 0), 3: ("4", 64)})
    assert read(ggml, root) == {0: [0, 1], 3: [4]}


def test_only_cpus_the_process_may_use(ggml: ctypes.CDLL, tmp_path: Path) -> None:
    root = sysfs(tmp_path / "node", {0: ("0-3", 64), 1: ("4-7", 64)})
    assert read(ggml, root, [1, 4, 6]) == {0: [1], 1: [4, 6]}
    assert read(ggml, root, [5]) == {1: [5]}
    assert read(ggml, root, []) == {}


def test_more_nodes_than_there_is_room_for(ggml: ctypes.CDLL, tmp_path: Path) -> None:
    root = sysfs(tmp_path / "node", {number: (str(number), 64) for number in range(40)})
    assert list(read(ggml, root)) == list(range(MAX_NODES))


def test_no_tree(ggml: ctypes.CDLL, tmp_path: Path) -> None:
    assert read(ggml, tmp_path / "absent") == {}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lists=st.lists(st.sets(st.integers(0, MAX_CPUS - 1), max_size=20), min_size=1, max_size=4),
    allowed=st.sets(st.integers(0, MAX_CPUS - 1), max_size=300),
)
def test_any_lists(
    ggml: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory, lists: list[set[int]], allowed: set[int]
) -> None:
    root = sysfs(
        tmp_path_factory.mktemp("any") / "node",
        {number: (",".join(map(str, sorted(cpus))), 64) for number, cpus in enumerate(lists)},
    )
    expected = {number: sorted(cpus & allowed) for number, cpus in enumerate(lists) if cpus & allowed}
    assert read(ggml, root, allowed) == expected


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("0123456789,- \nx"), max_size=40))
def test_any_text_is_survived(ggml: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = sysfs(tmp_path_factory.mktemp("odd") / "node", {0: (text, 64)}, "0")
    for cpus in read(ggml, root).values():
        assert cpus
    (root / "online").write_text(text)
    read(ggml, root)


def parse(ggml: ctypes.CDLL, text: str) -> int | None:
    what = ctypes.c_int(-1)
    ggml.ggml_numa_mirror_parse.restype = ctypes.c_bool
    if ggml.ggml_numa_mirror_parse(text.encode(), ctypes.byref(what)):
        return what.value
    assert what.value == -1, "refused, but written"
    return None


@given(words=st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words(ggml: ctypes.CDLL, words: list[str]) -> None:
    bits = 0
    for word in words:
        bits |= WORDS[word]
    if "none" in words and bits & 3:
        assert parse(ggml, ",".join(words)) is None
    elif bits == 4 and "none" not in words:
        assert parse(ggml, ",".join(words)) == 7, "best-effort alone is of all"
    else:
        assert parse(ggml, ",".join(words)) == bits


@pytest.mark.parametrize(
    "text", ["", ",", "weights,", ",kv", "weight", "weightss", "all kv", "KV", "kv,,all", "none,kv"]
)
def test_other_words_are_refused(ggml: ctypes.CDLL, text: str) -> None:
    assert parse(ggml, text) is None
