"""The room for measuring with real engines and a real model: that every scenario runs, not how fast anything is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from forkyard.cli import main

ROOT = Path(__file__).parents[3]
ENGINES = ("llama.cpp", "ik_llama.cpp")


@pytest.fixture
def call(engine_payload: Callable[[str], Path], smollm2: Path, tmp_path: Path) -> Callable[..., Any]:
    """``forkyard-llm`` with both engines; the document it answers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "src"), "FORKYARD_LLM_CACHE": str(tmp_path)}
    environment["FORKYARD_LLM_PAYLOAD_PATH"] = ":".join(str(engine_payload(one)) for one in ENGINES)
    environment.pop("FORKYARD_LLM_PAYLOAD", None)

    def called(*words: str, code: int = 0) -> Any:
        words = tuple(str(smollm2) if word == "MODEL" else word for word in words)
        command = [sys.executable, "-m", "forkyard_llm", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    return called


def medians(document: Any) -> dict[str, dict[str, float]]:
    return {arm["name"]: {test: one["median"] for test, one in arm["results"].items()} for arm in document["arms"]}


@pytest.mark.parametrize(
    ("words", "arms", "tests"),
    [
        (["threads", "--threads", "1,2", "--prompt", "16", "--generate", "4", "--depths", "0,16"], 4, 4),
        (["variants", "--prompt", "16", "--generate", "4"], 2, 2),
        (["batch", "--parallel", "1,2", "--prompt", "16", "--generate", "4"], 4, 2),
        pytest.param(["spec", "--generate", "8"], 10, 3, marks=pytest.mark.deep),
    ],
    ids=["threads", "variants", "batch", "spec"],
)
def test_every_scenario_runs_on_both_engines(call: Callable[..., Any], words: list[str], arms: int, tests: int) -> None:
    document = call("bench", *words, "-m", "MODEL", "--rounds", "1", "--json")
    assert not [arm["failed"] for arm in document["arms"] if arm["failed"]]
    found = medians(document)
    assert len(found) == arms
    assert max(map(len, found.values())) == tests
    assert all(speed > 0 for one in found.values() for speed in one.values())


def test_two_builds_and_their_export(call: Callable[..., Any]) -> None:
    words = ("-m", "MODEL", "--prompt", "16", "--generate", "4", "--rounds", "1", "--json")
    document = call("compare", "llama.cpp", "ik_llama.cpp -ub 64", *words)
    assert list(medians(document)) == ["llama.cpp", "ik_llama.cpp -ub 64"]
    assert {gain["verdict"] for arm in document["arms"][1:] for one in arm["results"].values() if (gain := one["gain"])}


@pytest.mark.deep
def test_upstreams_own_comparison_reads_two_exports(
    call: Callable[..., Any], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    words = ("-m", "MODEL", "--prompt", "16", "--generate", "4", "--rounds", "2", "--json")
    document = call("compare", "llama.cpp", "ik_llama.cpp", *words)
    keys = [arm["values"]["build_key"][:8] for arm in document["arms"]]
    out = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "forkyard_llm", "results", "export", "last", "--format", "llama-bench"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "src"), "FORKYARD_LLM_CACHE": str(tmp_path)}
    subprocess.run([*command, "--out", str(out)], env=environment, check=True)
    script = sources("llama.cpp") / "scripts" / "compare-llama-bench.py"
    asked = [sys.executable, str(script), "-t", "llama-bench", "-i", str(out), "-b", keys[0], "-c", keys[1]]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in done.stdout.splitlines()
        if "16" in line or "tg4" in line
    ]
    speeds = {row[-4]: [float(row[-3]), float(row[-2])] for row in rows}
    for test in ("pp16", "tg4"):
        means = [
            sum(samples) / len(samples) for arm in document["arms"] for samples in [arm["results"][test]["samples"]]
        ]
        assert speeds[test] == pytest.approx(means, rel=0.001)


def test_a_tuned_command_is_one_that_both_the_server_and_python_take(call: Callable[..., Any]) -> None:
    document = call("tune", "MODEL", "--prompt", "16", "--generate", "4", "--budget", "10s", "--json")
    assert document["command"][0].endswith("llama-server")
    assert document["call"].startswith("Llama(")
    assert document["not_tried"]
    assert document["speedup"] >= 1


def test_stock_compares_an_engine_with_its_upstream(
    engine_payload: Callable[[str], Path], smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "llm"))
    words = []
    for name in ("llama.cpp-stock", "llama.cpp"):
        package = engine_payload(name)
        base = tmp_path / name / package.name
        words += ["--wheel", shutil.make_archive(str(base), "zip", package.parent, package.name)]
    command = ["bench", "stock", "--model", str(smollm2), *words, "--prompt", "16", "--generate", "4", "--json"]
    done = CliRunner().invoke(main, [*command, "--repetitions", "1", "--quiet"])
    assert done.exit_code == 0, done.output
    (run,) = json.loads(done.stdout)["runs"]
    assert run["run"]["anchor"] == "llama.cpp without stacks"
    assert [len(arm["results"]) for arm in run["arms"]] == [2, 2]
