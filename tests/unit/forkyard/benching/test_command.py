from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from forkyard_llm.cli import run as run_llm
from forkyard_llm.measuring.exporting import as_markdown
from forkyard_llm.measuring.machine import MemoryNode
from forkyard_llm.measuring.store import Store

from forkyard.cli import main
from forkyard.commands import bench as command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run ``forkyard bench`` on a machine of our choosing."""
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))

    def bench(nodes: tuple[MemoryNode, ...], *words: str, scenario: str = "numa") -> tuple[int, str]:
        monkeypatch.setattr(command, "read_nodes", lambda: nodes)
        done = CliRunner().invoke(main, ["bench", scenario, "--quiet", *words])
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
    monkeypatch.setattr(command, "built", lambda *_, **__: pytest.fail("it was built"))
    status, text = run(one_node, "--model", str(model), "--json")
    assert status == 2
    assert "nothing to compare" in json.loads(text)["what"]


def test_a_second_round_waits_for_no_time_that_is_over(
    make_payload: Callable[..., Any], run: Any, model: Path, two_nodes: tuple[MemoryNode, ...]
) -> None:
    payload = make_payload()
    status, text = run(two_nodes, "--model", str(model), "--wheel", str(payload.wheel), "--minutes", "0", "--json")
    assert status == 0
    assert len(payload.calls) == 4
    assert json.loads(text)["rounds"] == 1


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
    asked = built_by(monkeypatch, make_payload())
    monkeypatch.setattr(command, "default_variant", lambda *_: "avx2")
    words = ["--model", str(model), "--engine", "ik_llama.cpp", "--repetitions", "1", "--offline"]
    assert run(two_nodes, *words)[0] == 0
    assert asked == [("avx2", ("ik_llama.cpp",)), (["plan"], {"source": None, "offline": True})]


def built_by(monkeypatch: pytest.MonkeyPatch, payload: Any, having: tuple[str, ...] = ()) -> list[Any]:
    """Let builds give a payload; returns what will have been asked of them."""
    asked: list[Any] = []

    class Variants:
        def get(self, name: str) -> None:
            asked.append(name)

    class Shop:
        variants, toolchain = Variants(), "toolchain"

        def plans(self, variant: str, refs: tuple[str, ...], stacks: object = None) -> tuple[list[str], list[str]]:
            asked.append((variant, refs))
            return ["plan"], []

        def build(self, plans: list[str], console: Any, **options: Any) -> list[Any]:
            asked.append((plans, options))
            return [type("Built", (), {"wheel": payload.wheel})()]

    monkeypatch.setattr(command.Workshop, "open", lambda: Shop())
    monkeypatch.setattr(command, "supported", lambda _, family: ["rpc", "cuda13"] if family in having else ["avx2"])
    return asked


SPLIT = ("--repetitions", "1", "--cache-types", "f16", "--json")


def test_a_split_from_words_to_a_table(
    make_split_payload: Callable[..., Any],
    run: Any,
    model: Path,
    one_node: tuple[MemoryNode, ...],
    tmp_path: Path,
) -> None:
    ours, theirs = make_split_payload(), make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph")
    out = tmp_path / "answer.json"
    words = ["--model", str(model), "--wheel", str(ours.wheel), "--wheel", str(theirs.wheel), "--out", str(out)]
    words += ["--repetitions", "1", "--cache-types", "q8_0,f16,q8_0", "--depths", "64,0", "--modes", "tensor,layer"]
    status, text = run(one_node, *words, "--", "-ts", "3/1", scenario="split")
    assert status == 0
    assert "tg128 @ d64 t/s" in text
    document = json.loads(out.read_text())
    assert document["tests"] == ["pp512", "tg128", "pp512 @ d64", "tg128 @ d64"]
    assert [(row["split_mode"], row["cache_type"]) for row in document["rows"]][:2] == [
        ("layer", "q8_0"),
        ("layer", "f16"),
    ]
    assert ours.calls[-1]["words"][-4:-2] == ["-ts", "3/1"]
    (log,) = (tmp_path / "cache" / "logs").glob("bench-split-*.log")
    assert "llama-bench -m" in log.read_text()


def test_a_split_is_built_for_pretended_devices(
    make_split_payload: Callable[..., Any],
    run: Any,
    model: Path,
    one_node: tuple[MemoryNode, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payload = make_split_payload(server=True, devices=(("RPC0", "here"), ("RPC1", "here")))
    asked = built_by(monkeypatch, payload, having=("llama.cpp",))
    status, text = run(one_node, "--model", str(model), "--rpc-devices", "2", *SPLIT, scenario="split")
    assert status == 0
    assert asked == ["rpc", ("rpc", ("llama.cpp",)), (["plan"], {"source": None, "offline": False})]
    assert json.loads(text)["rpc_loopback"] is True


def test_a_split_is_built_of_both_engines(
    make_split_payload: Callable[..., Any],
    run: Any,
    model: Path,
    one_node: tuple[MemoryNode, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = built_by(monkeypatch, make_split_payload(), having=("llama.cpp", "ik_llama.cpp"))
    assert run(one_node, "--model", str(model), "--variant", "cuda13", *SPLIT, scenario="split")[0] == 0
    assert asked[1] == ("cuda13", ("llama.cpp", "ik_llama.cpp"))


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--wheel", "x.whl", "--modes", "sideways"),
        ("--wheel", "x.whl", "--modes", ""),
        ("--wheel", "x.whl", "--depths", "0,deep"),
        ("--wheel", "x.whl", "--depths", ""),
        ("--wheel", "x.whl", "--depths", "-1"),
        ("--wheel", "x.whl", "--cache-types", ","),
        ("--wheel", "x.whl", "--rpc-devices", "1"),
        ("--wheel", "x.whl", "--out", "."),
    ],
)
def test_words_of_a_split_that_mean_nothing(
    run: Any, model: Path, one_node: tuple[MemoryNode, ...], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "unpacked", lambda *_: pytest.fail("it went on"))
    assert run(one_node, "--model", str(model), *words, "--json", scenario="split")[0] == 2


def test_a_split_over_one_device_ends_as_numa_on_one_node_does(
    make_split_payload: Callable[..., Any], run: Any, model: Path, one_node: tuple[MemoryNode, ...]
) -> None:
    payload = make_split_payload(devices=(("CUDA0", "GPU"),))
    status, text = run(one_node, "--model", str(model), "--wheel", str(payload.wheel), *SPLIT, scenario="split")
    assert status == 2
    assert "sharing a model needs two" in json.loads(text)["what"]


def test_a_split_that_cannot_load_the_model_ends_as_a_build_does(
    make_split_payload: Callable[..., Any], run: Any, model: Path, one_node: tuple[MemoryNode, ...]
) -> None:
    payload = make_split_payload(refused={"layer f16": "out of memory"})
    status, text = run(one_node, "--model", str(model), "--wheel", str(payload.wheel), *SPLIT, scenario="split")
    assert status == 9
    assert "out of memory" in json.loads(text)["why"]


@pytest.fixture
def wheels_only(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``forkyard-llm bench``, for people who have payloads alone."""
    monkeypatch.setattr("forkyard_llm.gguf_check.check", lambda *_, **__: None)

    def bench(*words: str) -> tuple[int, str]:
        code = run_llm(["bench", *words[:1], "-m", str(model), "--rounds", "1", *words[1:]])
        return code, capsys.readouterr().out

    return bench


def kept(scenario: str) -> str:
    """The newest measurement, as `forkyard-llm results show` prints it."""
    with contextlib.closing(Store()) as store:
        recorded = store.read("last")
    assert recorded.info.scenario == scenario
    return as_markdown(recorded)


def test_numa_with_payloads_alone(
    make_payload: Any, wheels_only: Any, two_nodes: tuple[MemoryNode, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkyard_llm.measuring.machine.read_nodes", lambda: two_nodes)
    words = ("numa", "--payload", str(make_payload().wheel), "--modes", "mirror,isolate")
    code, text = wheels_only(*words)
    assert code == 0
    assert "mirror t/s" in text
    assert kept("numa") == text.rstrip("\n")
    assert wheels_only(*words[:-1], "mirror,nothing")[0] == 2
    assert wheels_only(*words, "--payload", "llama.cpp")[0] == 2


def test_split_with_payloads_alone(make_split_payload: Any, wheels_only: Any) -> None:
    payload = make_split_payload(splits="none|layer|tensor")
    words = ("split", "--payload", str(payload.wheel), "--depths", "0", "--cache-types", "f16,q8_0")
    code, text = wheels_only(*words, "--", "-ts", "3/1")
    assert code == 0
    assert text.count("| llama.cpp |") == 4
    assert kept("split") == text.rstrip("\n")
    assert payload.calls[-1]["words"][-4:-2] == ["-ts", "3/1"]
    assert json.loads(wheels_only(*words, "--json")[1])["scenario"] == "split"
    assert wheels_only(*words, "--devices", "CUDA0")[0] == 2


def test_results_of_a_run_that_forkyard_measured(
    make_split_payload: Any, run: Any, model: Path, one_node: tuple[MemoryNode, ...]
) -> None:
    payload = make_split_payload(splits="none|layer|tensor")
    words = ("--model", str(model), "--wheel", str(payload.wheel), "--cache-types", "f16", "--repetitions", "1")
    code, text = run(one_node, *words, scenario="split")
    assert code == 0
    assert kept("split") == text.rstrip("\n")
