"""The CPU quota, read from folders that stand for ``/``; for both distributions that have the same file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from forkyard_llm.engines import cores, quota

import forkyard.quota
from forkyard import building

UNIFIED = "31 23 0:27 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
LEGACY = "31 23 0:27 {top} /sys/fs/cgroup/cpu\\054cpuacct rw - cgroup cgroup rw,cpu,cpuacct"

Make = Callable[..., Path]


@pytest.fixture(params=[quota.cpu_quota, forkyard.quota.cpu_quota], ids=["forkyard_llm", "forkyard"])
def cpu_quota(request: pytest.FixtureRequest) -> Callable[[Path], float | None]:
    function = request.param
    assert callable(function)
    return function


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def root(cgroup: str, mount: str, files: Mapping[str, str], top: str = "/") -> Path:
        place = "sys/fs/cgroup" if mount == UNIFIED else "sys/fs/cgroup/cpu,cpuacct"
        own = {
            "proc/self/cgroup": cgroup,
            "proc/self/mountinfo": f"23 1 8:1 / / rw - ext4 x rw\n{mount.format(top=top)}\n",
        }
        for name, text in {**own, **{f"{place}/{name}": text for name, text in files.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return root


def test_both_distributions_have_the_same_file():
    assert Path(quota.__file__).read_bytes() == Path(forkyard.quota.__file__).read_bytes()


def test_a_container_sees_its_own_group_as_the_topmost(make: Make, cpu_quota: Callable[[Path], float | None]):
    assert cpu_quota(make("0::/\n", UNIFIED, {"cpu.max": "50000 100000\n"})) == 0.5


def test_groups_above_count(make: Make, cpu_quota: Callable[[Path], float | None]):
    files = {"a.slice/cpu.max": "150000 100000\n", "a.slice/b.scope/cpu.max": "max 100000\n"}
    assert cpu_quota(make("0::/a.slice/b.scope\n", UNIFIED, files)) == 1.5


def test_the_narrowest_counts_wherever_it_is(make: Make, cpu_quota: Callable[[Path], float | None]):
    files = {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "200000 100000\n", "c/cpu.max": "1000 100000\n"}
    assert cpu_quota(make("0::/a/b\n", UNIFIED, files)) == 2


def test_version_1(make: Make, cpu_quota: Callable[[Path], float | None]):
    cgroup = "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"
    files = {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}
    inner = {"docker/abc/cpu.cfs_quota_us": "25000\n", "docker/abc/cpu.cfs_period_us": "50000\n"}
    assert cpu_quota(make(cgroup, LEGACY, {**files, **inner})) == 0.5


def test_a_mount_of_the_container_s_own_part(make: Make, cpu_quota: Callable[[Path], float | None]):
    files = {"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}
    assert cpu_quota(make("3:cpu,cpuacct:/docker/abc\n", LEGACY, files, top="/docker/abc")) == 3


def test_a_group_outside_of_what_is_mounted(make: Make, cpu_quota: Callable[[Path], float | None]):
    assert cpu_quota(make("0::/../other\n", UNIFIED, {"cpu.max": "100000 100000\n"})) == 1


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense\n", "0 100000\n", "100000 0\n", "a b\n", "-1 -1\n"])
def test_no_limit_is_none(make: Make, cpu_quota: Callable[[Path], float | None], text: str):
    assert cpu_quota(make("0::/\n", UNIFIED, {"cpu.max": text})) is None


def test_a_system_without_groups(tmp_path: Path, cpu_quota: Callable[[Path], float | None]):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("given", "threads", "jobs"),
    [(None, 4, 4), (0.5, 1, 1), (1.5, 1, 2), (2.0, 2, 2), (3.9, 3, 4), (64.0, 4, 4), (0.01, 1, 1)],
)
def test_threads_and_build_jobs_stay_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, given: float | None, threads: int, jobs: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "physical_cores", lambda: 4)
    monkeypatch.setattr(cores, "cpu_quota", lambda: given)
    monkeypatch.setattr(building, "cpu_quota", lambda: given)
    assert cores.default_threads() == threads
    assert building.default_jobs() == jobs
