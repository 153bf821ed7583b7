from __future__ import annotations

import os
from pathlib import Path

from forkyard_llm.engines.cores import physical_cores


def topology(folder: Path, cores: dict[int, tuple[int, int]]) -> Path:
    for cpu, (package, core) in cores.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "physical_package_id").write_text(f"{package}\n")
        (place / "core_id").write_text(f"{core}\n")
    return folder


def test_hyperthreads_of_one_core_count_once(tmp_path: Path):
    folder = topology(tmp_path, {0: (0, 0), 1: (0, 1), 2: (0, 0), 3: (0, 1)})
    assert physical_cores([0, 1, 2, 3], folder) == 2
    assert physical_cores([0, 2], folder) == 1


def test_equal_core_ids_in_two_packages_are_two_cores(tmp_path: Path):
    assert physical_cores([0, 1], topology(tmp_path, {0: (0, 0), 1: (1, 0)})) == 2


def test_unknown_topology_counts_every_cpu(tmp_path: Path):
    assert physical_cores([0, 1, 5], tmp_path) == 3


def test_there_is_always_one(tmp_path: Path):
    assert physical_cores([], tmp_path) == 1


def test_the_default_stays_within_the_affinity_mask():
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
