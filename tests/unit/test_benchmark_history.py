"""Every run of the benchmarks goes into a history that says nothing of whose machine it is, and can be looked at."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def call(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # A run of pytest below another must not take itself for a worker of it.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**kept, "FORKYARD_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_a_run_is_kept_and_shown(tmp_path: Path) -> None:
    nothing = call(tmp_path, "tests.benchmarks.history")
    assert nothing.returncode == 2
    assert "no history" in nothing.stderr
    one = ("pytest", "tests/benchmarks/test_import.py", "-k", "nothing", "-q", "-n", "0", "-p", "no:cacheprovider")
    done = call(tmp_path, *one)
    assert done.returncode == 0, done.stdout
    (kept,) = (tmp_path / "benchmarks").glob("*/*.json")
    facts = json.loads(kept.read_text())
    assert "node" not in facts["machine_info"]
    assert platform.node() not in facts["machine_info"].values()
    assert facts["benchmarks"][0]["stats"]["rounds"] == 20
    shown = call(tmp_path, "tests.benchmarks.history")
    assert shown.returncode == 0, shown.stderr
    assert "test_start[nothing]" in shown.stdout
    assert "Median" in shown.stdout
