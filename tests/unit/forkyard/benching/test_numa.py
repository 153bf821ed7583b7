from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.measuring.child import RunFailed
from forkyard_llm.measuring.engine import Engine
from forkyard_llm.measuring.exporting import as_markdown
from forkyard_llm.measuring.machine import MemoryNode
from forkyard_llm.measuring.numa import Wishes, bench_numa, check, plan_scenario
from forkyard_llm.measuring.numa_modes import MODES
from forkyard_llm.measuring.numa_table import as_text
from forkyard_llm.measuring.reporting import Silent
from forkyard_llm.measuring.running import Plan, measure_benches
from forkyard_llm.measuring.store import Store

from forkyard.benching.engine import unpacked

Nodes = tuple[MemoryNode, ...]


@pytest.fixture
def wishes(model: Path) -> Wishes:
    return Wishes(
        model=model,
        modes=None,
        prompt=512,
        generate=128,
        rounds=6,
        minutes=None,
        threads_per_node=None,
        fake_nodes=None,
    )


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Any], Engine]]:
    """Unpack payloads for the length of a test."""
    with contextlib.ExitStack() as stack:
        yield lambda payload: stack.enter_context(unpacked(payload.wheel, tmp_path / "scratch"))


def run(engine: Engine, wishes: Wishes, nodes: Nodes, tmp_path: Path) -> Any:
    return bench_numa(engine, wishes, nodes, tmp_path / "run.log", Silent())


def test_the_forks_table(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    payload = make_payload()
    found = run(opened(payload), wishes, two_nodes, tmp_path)
    text = as_text(found)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == [
        "model",
        "test",
        "isolate t/s",
        "distribute t/s",
        "mirror t/s",
        "split t/s",
        "distribute gain",
        "mirror gain",
        "split gain",
    ]
    assert rows[2][:6] == ["model.gguf", "pp512", "100.00", "90.00", "150.00", "140.00"]
    assert rows[3][1:6] == ["tg128", "10.00", "9.00", "15.00", "14.00"]
    assert rows[3][7] == "1.50x (1.50 to 1.50)"
    assert "read from the own node, tg128: mirror 99.5 %, split 99.5 %" in text
    assert "2 memory nodes; threads: isolate 4, distribute 8, mirror 8, split 8" in text
    assert "pretended" not in text


def test_a_run_is_kept_with_its_table(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    with contextlib.closing(Store(tmp_path / "store.sqlite")) as store:
        found = bench_numa(opened(make_payload()), wishes, two_nodes, tmp_path / "run.log", Silent(), store)
        ((info, finished, _),) = store.runs()
        recorded = store.read(info.id)
    assert (info.scenario, finished) == ("numa", True)
    assert as_markdown(recorded) == as_text(found)
    assert recorded.speeds("mirror", "tg128") == [15.0] * 6
    assert (info.facts["nodes"], info.facts["fake_nodes"], info.remarks) == (2, False, found.remarks)


def test_an_interrupted_run_keeps_what_was_measured(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    with contextlib.closing(Store(tmp_path / "store.sqlite")) as store:
        with pytest.raises(RunFailed):
            broken = opened(make_payload(broken=("split",)))
            bench_numa(broken, wishes, two_nodes, tmp_path / "run.log", Silent(), store)
        ((_, finished, _),) = store.runs()
    assert not finished


def test_every_round_begins_with_another_mode(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    payload = make_payload()
    run(opened(payload), wishes, two_nodes, tmp_path)
    order = [call["mode"] for call in payload.calls]
    names = list(MODES)
    assert [order[start : start + 4] for start in range(0, 16, 4)] == [names[n:] + names[:n] for n in range(4)]


def test_what_llama_bench_is_asked(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    payload = make_payload()
    extra = ("-b", "16", "-ub", "16")
    found = run(opened(payload), dataclasses.replace(wishes, extra=extra, rounds=1), two_nodes, tmp_path)
    words = {call["mode"]: call["words"] for call in payload.calls}
    assert words["isolate"][2:] == [
        *("--numa", "isolate", "-t", "4", "-p", "512", "-n", "128", "-r", "1", "-lm", "none"),
        *("-b", "16", "-ub", "16", "-o", "json"),
    ]
    assert words["distribute"][4:6] == ["-t", "8"]
    assert words["distribute"][12:14] == ["-lm", "mmap"]
    assert found.measured.commands["mirror"].startswith("llama-bench -m model.gguf --numa mirror -t 8 ")
    assert all(call["fake"] is None for call in payload.calls)


def test_ik_speaks_its_own_dialect(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    payload = make_payload(engine="ik_llama.cpp", counts=False)
    found = run(opened(payload), dataclasses.replace(wishes, rounds=1), two_nodes, tmp_path)
    assert payload.calls[0]["words"][12:14] == ["-mmp", "0"]
    assert found.lines[1].modes["mirror"].median == 15.0
    assert "read from the own node" not in as_text(found)


def test_medians_over_rounds_and_a_tie(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    payload = make_payload({"isolate": [10, 11, 9, 10.5, 9.8], "mirror": [10.2, 10.6, 9.4, 10.1, 10]})
    asked = dataclasses.replace(wishes, modes=("isolate", "mirror"), prompt=0)
    found = run(opened(payload), asked, two_nodes, tmp_path)
    (line,) = found.lines
    assert line.modes["isolate"].median == 10
    assert line.gains["mirror"].verdict == "tie"
    assert "tie, " in as_text(found)


def test_without_the_baseline_there_are_no_gains(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    asked = dataclasses.replace(wishes, modes=("mirror", "split"), rounds=1)
    found = run(opened(make_payload()), asked, two_nodes, tmp_path)
    assert found.lines[0].gains == {}
    assert found.as_json()["baseline"] is None
    assert "gain" not in as_text(found)


def test_pretended_nodes_are_said_to_be(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, one_node: Nodes, tmp_path: Path
) -> None:
    payload = make_payload()
    found = run(opened(payload), dataclasses.replace(wishes, fake_nodes=2, rounds=1), one_node, tmp_path)
    assert {call["fake"] for call in payload.calls} == {"2"}
    assert "2 pretended memory nodes; threads: isolate 2, distribute 4" in as_text(found)
    assert "not what it gains" in as_text(found)
    assert found.as_json()["fake_nodes"] is True


def test_a_mode_that_fails_is_named_with_what_it_said(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    with pytest.raises(RunFailed, match="--numa mirror") as caught:
        run(opened(make_payload(broken=("mirror",))), wishes, two_nodes, tmp_path)
    assert "no copy on node 1: 512 bytes lacking" in (caught.value.why)
    assert "exit status 3" in (caught.value.why)


def test_an_answer_about_other_tests_is_a_failure(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    engine = opened(make_payload())
    scenario = plan_scenario(wishes, two_nodes, engine, Silent())
    odd = dataclasses.replace(scenario, extra=("-n", "64"))
    with pytest.raises(RunFailed, match="no such answer"):
        measure_benches(odd.arms(engine, wishes.model), Plan(4), wishes.model, tmp_path / "run.log", Silent())


def test_modes_the_engine_lacks_are_left_out_and_said(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes
) -> None:
    class Notes(Silent):
        said: list[str] = []  # noqa: RUF012

        def note(self, text: str) -> None:
            self.said.append(text)

    engine = opened(make_payload(modes="distribute|isolate|numactl"))
    scenario = plan_scenario(wishes, two_nodes, engine, Notes())
    assert [mode.name for mode in scenario.modes] == ["isolate", "distribute"]
    assert len(Notes.said) == 2
    with pytest.raises(UsageError, match="has no --numa mirror"):
        plan_scenario(dataclasses.replace(wishes, modes=("isolate", "mirror")), two_nodes, engine, Silent())


def test_an_engine_with_one_mode_can_compare_nothing(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes
) -> None:
    with pytest.raises(UsageError, match="fewer than two modes"):
        plan_scenario(wishes, two_nodes, opened(make_payload(modes="isolate")), Silent())


def test_threads_are_the_cores_of_the_smallest_node(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes
) -> None:
    engine = opened(make_payload())
    uneven = (two_nodes[0], dataclasses.replace(two_nodes[1], cores=3))
    assert plan_scenario(wishes, uneven, engine, Silent()).threads_per_node == 3
    named = dataclasses.replace(wishes, threads_per_node=2)
    assert plan_scenario(named, uneven, engine, Silent()).threads_per_node == 2


def test_one_node_is_nothing_to_compare(wishes: Wishes, one_node: Nodes) -> None:
    with pytest.raises(UsageError, match="nothing to compare") as caught:
        check(wishes, one_node)
    assert "--fake-nodes 2" in (caught.value.next_step or "")
    assert "never what they gain" in (caught.value.next_step or "")
    check(dataclasses.replace(wishes, fake_nodes=2), one_node)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"prompt": 0, "generate": 0}, "neither"),
        ({"model": Path("nowhere.gguf")}, "no file"),
        ({"fake_nodes": 2}, "has 2"),
    ],
)
def test_wishes_that_mean_nothing(wishes: Wishes, two_nodes: Nodes, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        check(dataclasses.replace(wishes, **changes), two_nodes)


def test_the_file_leaves_the_page_cache_before_it_is_mapped(
    make_payload: Callable[..., Any],
    opened: Any,
    wishes: Wishes,
    two_nodes: Nodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = wishes.model.with_name("big-00001-of-00002.gguf")
    second = wishes.model.with_name("big-00002-of-00002.gguf")
    for path in (first, second):
        path.write_bytes(b"GGUF")
    dropped: list[str] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda handle, *_: dropped.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
    )
    asked = dataclasses.replace(wishes, model=first, modes=("isolate", "distribute"), rounds=2)
    run(opened(make_payload()), asked, two_nodes, tmp_path)
    assert sorted(dropped) == sorted([first.name, second.name] * 2)


def test_the_answer_for_machines_is_json(
    make_payload: Callable[..., Any], opened: Any, wishes: Wishes, two_nodes: Nodes, tmp_path: Path
) -> None:
    found = run(opened(make_payload()), wishes, two_nodes, tmp_path)
    document = json.loads(json.dumps(found.as_json()))
    assert document["rows"][1]["modes"]["mirror"]["samples"] == [15.0] * 6
    assert document["rows"][1]["gains"]["mirror"]["verdict"] == "faster"
    assert document["rows"][1]["local_percent"] == {"mirror": 99.5, "split": 99.5}
    assert document["engine"]["build_key"] == "a" * 64
    assert document["prediction"] is None
    assert str(tmp_path) not in json.dumps(document)
