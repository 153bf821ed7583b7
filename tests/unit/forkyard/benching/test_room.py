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
    def make(name: str, speed: float, engine: str = "llama.cpp", stacks: tuple[str, ...] = ()) -> Path:
        path = tmp_path / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            manifest: dict[str, Any] = {"engine": engine, "variant": name, "build_key": name}
            manifest["stacks"] = [{"name": one} for one in stacks]
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


def runs(done: Any) -> list[Any]:
    assert done.exit_code == 0, done.output
    return list(json.loads(done.stdout)["runs"])


def test_two_wheels(call: Any, wheel: Any) -> None:
    words = ["--wheel", str(wheel("one", 10.0)), "--wheel", str(wheel("two", 20.0)), "--repetitions", "6"]
    (run,) = runs(call("variants", *words))
    gain = run["arms"][1]["results"]["tg4"]["gain"]
    assert (gain["ratio"], gain["verdict"]) == (2.0, "faster")


def test_each_engine_is_compared_with_its_own_upstream(call: Any, wheel: Any) -> None:
    wheels = [
        wheel("one", 10.0, stacks=("fixes",)),
        wheel("two", 40.0, engine="ik_llama.cpp"),
        wheel("three", 20.0),
        wheel("four", 60.0, engine="ik_llama.cpp", stacks=("fixes",)),
    ]
    words = [word for one in wheels for word in ("--wheel", str(one))]
    found = runs(call("stock", *words, "--repetitions", "6"))
    assert [run["run"]["anchor"] for run in found] == ["llama.cpp without stacks", "ik_llama.cpp without stacks"]
    gains = [run["arms"][1]["results"]["tg4"]["gain"] for run in found]
    assert [(gain["ratio"], gain["verdict"]) for gain in gains] == [(0.5, "slower"), (1.5, "faster")]


def test_two_wheels_without_stacks_are_no_stock_and_patched(call: Any, wheel: Any) -> None:
    done = call("stock", "--wheel", str(wheel("one", 10.0)), "--wheel", str(wheel("two", 20.0)))
    assert done.exit_code == 2
    assert "2 of 2 have none" in done.output


def test_a_store_that_is_damaged_is_said(call: Any, wheel: Any, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "measurements.sqlite").write_bytes(b"no database at all " * 100)
    done = call("variants", "--wheel", str(wheel("one", 10.0)), "--wheel", str(wheel("two", 20.0)))
    assert done.exit_code == 2
    assert "is damaged" in done.output


def test_a_wheel_whose_manifest_is_damaged(call: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("x/manifest.json", "{")
    done = call("variants", "--wheel", str(tmp_path / "x.whl"))
    assert done.exit_code == 2
    assert "cannot be read" in done.output


def test_what_cannot_be_compared(call: Any, wheel: Any, tmp_path: Path) -> None:
    done = call("variants", "--wheel", str(wheel("one", 10.0)))
    assert done.exit_code == 2
    assert "2 or more payloads" in done.output
    assert call("threads", "--wheel", str(wheel("one", 10.0)), "--threads", "1,x").exit_code == 2
    assert call("variants", "--wheel", str(tmp_path / "none.whl")).exit_code == 2
