"""The table is data: what it says must be possible, and each row must be able to fail."""

from __future__ import annotations

import re

import pytest

from forkyard.guest.cases import CASES, SERVERS, TOPOLOGIES, Case, Outcome, numa_words
from forkyard.recipes import FAMILIES


def test_names_are_unique_and_fit_for_files_and_shells() -> None:
    names = [case.name for case in CASES] + [topology.name for topology in TOPOLOGIES if topology.name not in
                                             {case.name for case in CASES}]  # fmt: skip
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in [*names, *(case.twin for case in CASES)])
    assert not {case.name for case in CASES} & {case.twin for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_says_what_can_be(case: Case) -> None:
    assert case.topology in TOPOLOGIES
    nodes = case.topology.cpus()
    cpus = [cpu for of_node in nodes.values() for cpu in of_node]
    assert set(case.gone) <= set(cpus)
    assert 0 < case.threads <= len(cpus) - len(case.gone)
    assert case.expect
    for expect in case.expect:
        assert set(expect.nodes) <= nodes.keys()
        assert bool(expect.nodes) == (expect.outcome is not Outcome.OFF)
        assert (expect.outcome is Outcome.SPLIT) <= (case.numa == "split")


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: topology.name)
def test_every_topology_can_be_made_and_is_used(topology) -> None:
    assert topology.qemu_arguments()
    assert any(case.topology == topology for case in CASES)


def test_all_that_was_asked_for_is_there() -> None:
    wanted = {"two-nodes", "four-nodes", "small-node", "memory-only", "number-gap"}
    assert {topology.name for topology in TOPOLOGIES} == wanted
    assert {case.numa for case in CASES} == {"mirror", "split"}
    assert {case.mmap for case in CASES} == {True, False}
    assert {1, 2, 3, 4} == {case.threads for case in CASES}
    assert {expect.outcome for case in CASES for expect in case.expect} == set(Outcome)


def test_what_prepares_a_guest_for_good_is_done_last() -> None:
    for topology in TOPOLOGIES:
        mine = [case for case in CASES if case.topology == topology]
        assert not any(case.gone for case in mine[:-1])


def test_every_engine_has_a_server() -> None:
    assert set(SERVERS) == set(FAMILIES)
    mapped = SERVERS["llama.cpp"].words("/m", 1, 3, mmap=True)
    assert mapped[:9] == ["llama-server", "-m", "/m", "--host", "127.0.0.1", "--port", "1", "-t", "3"]
    assert "--no-mmap" in SERVERS["ik_llama.cpp"].words("/m", 1, 3, mmap=False)
    assert "--no-mmap" not in SERVERS["ik_llama.cpp"].words("/m", 1, 3, mmap=True)


def test_the_words_of_a_case() -> None:
    (split,) = [case for case in CASES if case.name == "split"]
    (partly,) = [case for case in CASES if case.name == "too-small-best-effort"]
    assert numa_words(split) == ["--numa", "split"]
    assert numa_words(partly) == ["--numa", "mirror", "--numa-mirror", "best-effort"]
