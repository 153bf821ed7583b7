"""What forkyard costs on top of raw cmake and ninja, in pairs within one run. Nothing here passes or fails by time.

    nox -s bench -- tests/benchmarks/test_orchestration.py -s

FORKYARD_BENCH_ENGINES (default ``llama.cpp``), FORKYARD_BENCH_ROUNDS (default 1) and FORKYARD_BENCH_VARIANTS
(default ``avx512,avx2``) choose what is measured: a cold build of ik_llama.cpp takes ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import cmake
import ninja
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).resolve().parents[2]
ENGINES = os.environ.get("FORKYARD_BENCH_ENGINES", "llama.cpp").split(",")
ROUNDS = int(os.environ.get("FORKYARD_BENCH_ROUNDS", "1"))
FIRST, SECOND = os.environ.get("FORKYARD_BENCH_VARIANTS", "avx512,avx2").split(",")


def forkyard(cache: Path, out: Path, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Seconds and JSON answer of one forkyard command as a whole process."""
    environment = {**os.environ, "FORKYARD_CACHE": str(cache)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "forkyard", *arguments, "--out", str(out), "--json"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stdout
    return seconds, json.loads(done.stdout)["built"][0]


def raw(project: Path, folder: Path, jobs: int) -> float:
    """Seconds of cmake and ninja typed by hand for the project forkyard generated: same tree, targets and flags."""
    settings = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["scikit-build"]
    arguments = [word for word in settings["cmake"]["args"] if "COMPILER_LAUNCHER" not in word]
    source = folder / "source"
    shutil.copytree(project, source, ignore=shutil.ignore_patterns("cmake"))
    environment = {
        **os.environ,
        "PATH": f"{project / 'shim'}:{cmake.CMAKE_BIN_DIR}:{ninja.BIN_DIR}:{os.environ['PATH']}",
    }
    environment["SKBUILD_METADATA_DIR"] = "metadata"
    started = time.perf_counter()
    with (folder / "log").open("wb") as log:
        for command in (
            ["cmake", "-S", str(source), "-B", str(folder / "b"), "-DCMAKE_BUILD_TYPE=Release", *arguments],
            ["ninja", "-C", str(folder / "b"), f"-j{jobs}", "forkyard-payload"],
        ):
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    return time.perf_counter() - started


def cold_copy(cache: Path, target: Path) -> Path:
    """A cache that has the sources and nothing built."""
    target.mkdir()
    for name in ("store", "downloads"):
        shutil.copytree(cache / name, target / name, symlinks=True)
    return target


def report(benchmark: BenchmarkFixture, text: str, **facts: Any) -> None:
    """Print a line and keep the figures in the benchmark's record."""
    benchmark.extra_info.update(facts)
    print(f"\n{text}")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the pins of the measured engines, obtained once."""
    cache = tmp_path_factory.mktemp("sources")
    for engine in ENGINES:
        subprocess.run(
            [sys.executable, "-m", "forkyard", "lock", "--check", engine],
            cwd=ROOT, env={**os.environ, "FORKYARD_CACHE": str(cache)}, check=True,
        )  # fmt: skip
    return cache


@pytest.mark.parametrize("engine", ENGINES)
def test_cold_build_and_what_follows(benchmark: BenchmarkFixture, engine: str, sources: Path, tmp_path: Path) -> None:
    """Cold build against raw; then a build with nothing to do; then a second variant, with ccache."""
    jobs = len(os.sched_getaffinity(0))
    ours, theirs = [], []
    cache = out = tmp_path
    built: dict[str, Any] = {}

    def rounds() -> None:
        nonlocal cache, out, built
        for number in range(ROUNDS):
            cache, out = cold_copy(sources, tmp_path / f"cache{number}"), tmp_path / f"out{number}"
            seconds, built = forkyard(cache, out, "build", FIRST, engine)
            ours.append(seconds)
            folder = tmp_path / f"raw{number}"
            folder.mkdir()
            theirs.append(raw(cache / "build" / engine / FIRST, folder, jobs))

    benchmark.pedantic(rounds, rounds=1, iterations=1)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    report(
        benchmark,
        f"{engine} {FIRST}: cold build {statistics.median(ours):.1f} s, "
        f"raw cmake + ninja {statistics.median(theirs):.1f} s, ratio {ratio:.3f} (goal 1.05); steps {shlex.join(f'{k}={v}' for k, v in built['seconds'].items())}",
        cold_s=ours, raw_s=theirs, ratio=ratio, steps=built["seconds"],
    )  # fmt: skip
    again, nothing = forkyard(cache, out, "build", FIRST, engine)
    report(
        benchmark,
        f"{engine} {FIRST}: second build {again:.2f} s, steps run {nothing['steps']}",
        noop_s=again,
        noop_steps=nothing["steps"],
    )
    second, other = forkyard(cache, out, "build", SECOND, engine)
    uses = other["ccache"]
    share = uses["hits"] / max(1, sum(uses.values())) if uses else 0.0
    report(
        benchmark,
        f"{engine} {SECOND} after {FIRST}: {second:.1f} s, {second / ours[-1]:.2f} of the first; "
        f"{100 * share:.0f} % of {sum(uses.values()) if uses else 0} compiles from ccache",
        second_s=second, second_ratio=second / ours[-1], ccache=uses,
    )  # fmt: skip


def test_nothing_to_do_through_nox(benchmark: BenchmarkFixture) -> None:
    """The whole of ``nox -s build-<variant>`` when everything is there, nox's own start included."""
    nox = shutil.which("nox") or str(ROOT / ".venv" / "bin" / "nox")
    command = [nox, "-s", f"build-{FIRST}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    benchmark.pedantic(
        lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True),
        rounds=7,
        iterations=1,
        warmup_rounds=1,
    )
    report(benchmark, f"nox -s build-{FIRST}, nothing to do: median {benchmark.stats.stats.median:.2f} s (goal 3 s)")
