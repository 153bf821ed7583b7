from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from forkyard.benching.nodes import MemoryNode
from forkyard.cli import main
from forkyard.commands import bench as command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run ``forkyard bench numa`` on a machine of our choosing."""
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))

    def bench(nodes: tuple[MemoryNode, ...], *words: str) -> tuple[int, str]:
        monkeypatch.setattr(command, "read_nodes", lambda: nodes)
        done = CliRunner().invoke(main, ["bench", "numa", "--quiet", *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout

    return bench


def test_from_words_to_a_table(
    make_payload: Callable[..., Any], run: Any, model: Path, two_nodes: tuple[MemoryNode, ...], tmp_path: Path
) -> None:
    payload = make_payload()
    out = tmp_path / "answer.json"
    status, text = run(
        two_nodes, "--model", str(model), "--wheel", str(payload.wheel), "--repetitions", "1", "--out", str(out)
    )
    assert status == 0
    assert "mirror t/s" in text
    assert json.loads(out.read_text())["rows"][0]["test"] == "pp512"
    (log,) = (tmp_path / "cache" / "logs").glob("bench-numa-*.log")
    assert log.read_text().count("$ ") == 4


def test_words_after_two_dashes_go_to_llama_bench(
    make_payload: Callable[..., Any], run: Any, model: Path, two_nodes: tuple[MemoryNode, ...]
) -> None:
    payload = make_payload()
    words = ["--model", str(model), "--wheel", str(payload.wheel), "--repetitions", "1", "--modes", "mirror,isolate"]
    status, text = run(two_nodes, *words, "--json", "--", "-b", "16", "-rtr", "1")
    assert status == 0
    assert [call["mode"] for call in payload.calls] == ["isolate", "mirror"]
    assert payload.calls[0]["words"][-6:] == ["-b", "16", "-rtr", "1", "-o", "json"]
    assert json.loads(text)["scenario"] == "numa"


def test_one_node_is_said_before_anything_is_built(
    run: Any, model: Path, one_node: tuple[MemoryNode, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_built", lambda *_, **__: pytest.fail("it was built"))
    status, text = run(one_node, "--model", str(model), "--json")
    assert status == 2
    assert "nothing to compare" in json.loads(text)["what"]


@pytest.mark.parametrize("modes", ["mirror", "mirror,mirror", "mirror,elsewhere", ""])
def test_modes_that_cannot_be_compared(run: Any, model: Path, two_nodes: tuple[MemoryNode, ...], modes: str) -> None:
    assert run(two_nodes, "--model", str(model), "--modes", modes, "--json")[0] == 2


def test_a_run_that_fails_ends_as_a_build_does(
    make_payload: Callable[..., Any], run: Any, model: Path, two_nodes: tuple[MemoryNode, ...]
) -> None:
    payload = make_payload(broken=("split",))
    status, text = run(two_nodes, "--model", str(model), "--wheel", str(payload.wheel), "--json")
    assert status == 9
    assert "--numa split" in json.loads(text)["what"]


def test_a_model_that_cannot_be_read_is_said_before_the_first_run(
    make_payload: Callable[..., Any], run: Any, model: Path, two_nodes: tuple[MemoryNode, ...]
) -> None:
    payload = make_payload()
    words = ["--model", str(model), "--wheel", str(payload.wheel), "--bandwidth", "100", "--json"]
    assert run(two_nodes, *words)[0] == 2
    assert payload.calls == []


def test_an_output_that_is_a_folder(run: Any, model: Path, two_nodes: tuple[MemoryNode, ...], tmp_path: Path) -> None:
    assert run(two_nodes, "--model", str(model), "--out", str(tmp_path), "--json")[0] == 2


def test_the_engine_is_built_as_any_build_is(
    make_payload: Callable[..., Any],
    run: Any,
    model: Path,
    two_nodes: tuple[MemoryNode, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    payload = make_payload()

    class Shop:
        variants, toolchain = "variants", "toolchain"

        def plans(self, variant: str, refs: tuple[str, ...]) -> tuple[list[str], list[str]]:
            asked.append((variant, refs))
            return ["plan"], []

        def build(self, plans: list[str], console: Any, **options: Any) -> list[Any]:
            asked.append((plans, options))
            return [type("Built", (), {"wheel": payload.wheel})()]

    monkeypatch.setattr(command.Workshop, "open", lambda: Shop())
    monkeypatch.setattr(command, "host_variant", lambda *_: "avx2")
    words = ["--model", str(model), "--engine", "ik_llama.cpp", "--repetitions", "1", "--offline"]
    assert run(two_nodes, *words)[0] == 0
    assert asked == [("avx2", ("ik_llama.cpp",)), (["plan"], {"source": None, "offline": True})]
