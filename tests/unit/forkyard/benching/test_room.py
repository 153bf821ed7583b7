"""``forkyard bench`` of scenarios that the bindings' room measures, on wheels whose llama-bench is a script."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from forkyard.commands.bench_room import bench

SCRIPT = """\
#!/bin/sh
case "$*" in *--help*) echo "  -d, --n-depth <n>"; exit 0;; esac
echo '[ {{"model_type": "fake", "n_prompt": 0, "n_gen": 4, "n_depth": 0, "avg_ts": {speed} }} ]' | sed 's/ {{/\\n{{/'
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, speed: float) -> Path:
        path = tmp_path / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            manifest = {"engine": "llama.cpp", "variant": name, "build_key": name}
            archive.writestr(f"{name}/manifest.json", json.dumps(manifest))
            info = zipfile.ZipInfo(f"{name}/bin/llama-bench")
            info.external_attr = 0o100755 << 16
            archive.writestr(info, SCRIPT.format(speed=speed))
        return path

    return make


@pytest.fixture
def call(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "llm"))

    def called(*words: str) -> Any:
        return CliRunner().invoke(bench, [*words, "--model", str(model), "--prompt", "0", "--generate", "4", "--json"])

    return called


@pytest.mark.parametrize("scenario", ["stock", "variants"])
def test_two_wheels(call: Any, wheel: Any, scenario: str) -> None:
    words = ["--wheel", str(wheel("one", 10.0)), "--wheel", str(wheel("two", 20.0)), "--repetitions", "5"]
    done = call(scenario, *words)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["scenario"] == scenario
    gain = document["arms"][1]["results"]["tg4"]["gain"]
    assert (gain["ratio"], gain["verdict"]) == (2.0, "faster")


def test_what_cannot_be_compared(call: Any, wheel: Any, tmp_path: Path) -> None:
    done = call("variants", "--wheel", str(wheel("one", 10.0)))
    assert done.exit_code == 2
    assert "2 or more payloads" in done.output
    assert call("threads", "--wheel", str(wheel("one", 10.0)), "--threads", "1,x").exit_code == 2
    assert call("variants", "--wheel", str(tmp_path / "none.whl")).exit_code == 2
