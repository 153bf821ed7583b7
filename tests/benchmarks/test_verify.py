"""How long `stack verify` takes when there is nothing to verify. Nothing here passes or fails by time.

    nox -s bench -- tests/benchmarks/test_verify.py -s

The project is a copy with made-up stacks (40 patches in all) whose results are put into a cache beforehand: a verify
with nothing to do reads keys and records, whatever it took to get them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from forkyard.cache import Cache
from forkyard.recipes import load_variants
from forkyard.toolchain import detect
from forkyard.verifying import Result, default_variant, plan_units
from forkyard.verifying.records import Records
from forkyard.workshop import Workshop

ROOT = Path(__file__).resolve().parents[2]
STACKS, PATCHES = 5, 8
PATCH = "Subject: x\n\nWhy.\n\nUpstream-Status: Pending\n\ndiff --git a/x b/x\n"


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project with more stacks, everything in it recorded as good."""
    root = tmp_path / "project"
    for name in ("recipes", "patches", "wheels", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = root / "recipes" / "llama.cpp.toml"
    names = ["fixes", *(f"made-up-{number}" for number in range(STACKS))]
    recipe.write_text(recipe.read_text().replace('stacks = ["fixes"]', f"stacks = {json.dumps(names)}"))
    for number in range(STACKS):
        folder = root / "patches" / f"made-up-{number}" / "llama.cpp"
        folder.mkdir(parents=True)
        for patch in range(PATCHES):
            (folder / f"p{patch}.patch").write_text(PATCH)
        (folder / "series").write_text("".join(f"p{patch}.patch\n" for patch in range(PATCHES)))
        (folder.parent / "stack.toml").write_text(
            'title = "x"\nintent = "x"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n'
            'test = ["tests/integration/fixes/test_kshift.py"]\n'
        )
    monkeypatch.setenv("FORKYARD_ROOT", str(root))
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    cache = Cache.default()
    cache.prepare()
    records, variants, toolchain = Records(cache, root, "test"), load_variants(root), detect(cache)
    shop = Workshop.open()
    for name in ("llama.cpp", "ik_llama.cpp"):
        found = shop.recipe(name)
        variant = default_variant(variants, found.family, toolchain)
        for unit in plan_units(found, variants, variant, root, toolchain).units:
            records.write(records.key(unit), unit, Result("good", "test"))
    return root


def test_nothing_to_verify(benchmark: BenchmarkFixture, big: Path) -> None:
    """The whole command, Python's start included."""
    answers: list[dict[str, Any]] = []

    def run() -> None:
        command = [sys.executable, "-m", "forkyard", "stack", "verify", "--json"]
        done = subprocess.run(command, cwd=big, env=os.environ, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stdout
        answers.append(json.loads(done.stdout))

    benchmark.pedantic(run, rounds=5, iterations=1, warmup_rounds=1)
    units = [unit for recipe in answers[-1]["recipes"] for unit in recipe["units"]]
    assert all(unit["cached"] for unit in units)
    benchmark.extra_info["units"] = len(units)
    print(f"\n{len(units)} units, nothing to verify: median {benchmark.stats.stats.median:.2f} s (goal 5 s)")
