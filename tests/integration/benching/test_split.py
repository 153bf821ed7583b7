"""``forkyard bench split`` with the engines' own programs, over devices that are RPC servers on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from forkyard_llm.payloads import Payload

from forkyard.cli import main

from ..numa import arch_models

Bench = Callable[..., tuple[int, dict[str, Any]]]
SHORT = ("--prompt", "8", "--generate", "2", "--depths", "0,16", "--repetitions", "1")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Measure a payload; the exit status and the answer for machines."""

    def run(package: Path, model: Path, *words: str) -> tuple[int, dict[str, Any]]:
        archive = shutil.make_archive(str(tmp_path / package.name), "zip", package.parent, package.name)
        monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "llm"))
        command = ["bench", "split", "--json", "--quiet", "--model", str(model), "--wheel", archive, *SHORT, *words]
        done = CliRunner().invoke(main, command)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model with two layers."""
    return arch_models.write_model("dense", tmp_path)


def rows_of(answer: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["split_mode"], row["cache_type"]): row for row in answer["rows"]}


def test_upstream_shares_a_model_between_servers(
    rpc_payload: Callable[[str], Payload], bench: Bench, model: Path, tmp_path: Path
) -> None:
    words = ("--rpc-devices", "3", "--cache-types", "f16,q4_0", "--modes", "layer,row,tensor")
    status, answer = bench(rpc_payload("llama.cpp").root, model, *words)
    assert status == 0, answer
    assert [device["name"] for device in answer["engines"][0]["devices"]] == ["RPC0", "RPC1", "RPC2"]
    rows = rows_of(answer)
    for mode in ("layer", "tensor"):
        for word in ("f16", "q4_0"):
            assert sorted(rows[mode, word]["tests"]) == ["pp8", "pp8 @ d16", "tg2", "tg2 @ d16"], rows[mode, word]
    # What row split needs, the RPC backend does not have: the engine itself says so.
    assert rows["row", "f16"]["tests"] == {}
    assert "does not support split buffers" in rows["row", "f16"]["refused"]
    assert answer["baseline"] == "llama.cpp, layer, f16"
    assert answer["rpc_loopback"] is True
    assert any("no speeds of GPUs" in remark for remark in answer["remarks"])
    assert len(list((tmp_path / "cache" / "logs").glob("bench-split-*.rpc*.log"))) == 3


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_an_engine_for_processors_has_nothing_to_split_over(
    engine_payload: Callable[[str], Path], bench: Bench, model: Path, engine: str
) -> None:
    status, answer = bench(engine_payload(engine), model, "--cache-types", "f16")
    assert status == 2
    assert f"{engine} has no device here" in answer["what"]
    status, answer = bench(engine_payload(engine), model, "--rpc-devices", "3")
    assert status == 2
    assert "carries no RPC server" in answer["why"]
