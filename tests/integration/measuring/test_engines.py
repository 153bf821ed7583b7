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
    assert document["run"]["model_type"] or words[0] in ("batch", "spec")


def test_two_builds_and_their_export(call: Callable[..., Any]) -> None:
    words = ("-m", "MODEL", "--prompt", "16", "--generate", "4", "--rounds", "1", "--json")
    document = call("compare", "llama.cpp", "ik_llama.cpp -ub 64", *words)
    assert list(medians(document)) == ["llama.cpp", "ik_llama.cpp -ub 64"]
    assert {gain["verdict"] for arm in document["arms"][1:] for one in arm["results"].values() if (gain := one["gain"])}


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
    document = json.loads(done.stdout)
    assert len(document["arms"]) == 2
    assert all(len(arm["results"]) == 2 for arm in document["arms"])
