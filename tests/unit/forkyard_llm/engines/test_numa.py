"""The NUMA strategy of an engine: what may be asked for, once in a process, and what a failed copy says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from forkyard_llm.engines.numa import STRATEGIES, Numa, NumaChoice, numa_choice
from forkyard_llm.engines.numa_mirror import NumaFailure, NumaMirror, NumaNode
from forkyard_llm.errors import EngineError, UnsupportedOption, UsageError
from forkyard_llm.payloads import Payload, read_payload

MakePayload = Callable[..., Path]
LACKS = "numa-mirror: node 1 lacks 4096 bytes for a copy of 8192 bytes of kv (its memory is taken)"
FORBIDDEN = "numa-mirror: node 1 lacks 7 bytes for a copy of 7 bytes of kv (mbind: no; a container needs CAP_SYS_NICE)"
UNMOVED = "numa-mirror: 12 of 20 pages of weights are not on their node (the kernel placed them elsewhere)"
ONE_NODE = "this process may use the CPUs of 1 NUMA node(s): there is nothing to mirror"


class FakeMirror:
    """An engine's functions: on once a strategy of the stack is set, with two nodes or however many there are."""

    def __init__(self, events: list[Any], nodes: int = 2) -> None:
        self.events, self.nodes, self.on = events, nodes, False
        self.counts = [NumaNode(node, 1, 10, 0) for node in range(nodes)]
        self.failure: NumaFailure | None = None

    def set(self, words: tuple[str, ...]) -> None:
        self.events.append(words)
        self.failure = None

    def take_failure(self) -> NumaFailure | None:
        failure, self.failure = self.failure, None
        return failure

    def counters(self) -> list[NumaNode]:
        return list(self.counts) if self.on else []

    def reset_counters(self) -> None:
        self.events.append("reset")


class Engine:
    """A strategy's owner that writes down what the engine is told."""

    def __init__(self, payload: Payload, *, nodes: int | None = 2) -> None:
        self.events: list[Any] = []
        self.mirror = None if nodes is None else FakeMirror(self.events, nodes)
        self.numa = Numa(payload, cast("NumaMirror | None", self.mirror), self.initialise)

    def initialise(self, name: str) -> None:
        self.events.append(name)
        if self.mirror is not None:
            self.mirror.on = self.mirror.nodes > 1
            if not self.mirror.on:
                self.mirror.failure = NumaFailure("few_nodes", None, 0, ONE_NODE)

    def load(self, numa: str | bool | None = None, words: Any = None) -> None:
        with self.numa.admit(numa_choice(numa, words)):
            self.events.append("load")


@pytest.fixture
def payload(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> Payload:
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())
    return read_payload(make_payload())


@pytest.fixture
def engine(payload: Payload) -> Engine:
    return Engine(payload)


# -- what may be asked for


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("weights", ("weights",)),
        ("kv", ("kv",)),
        ("all", ("all",)),
        ("none", ("none",)),
        ("weights,kv", ("weights", "kv")),
        (" Weights , KV ", ("weights", "kv")),
        (["kv", "best-effort"], ("kv", "best-effort")),
        (("weights",), ("weights",)),
        ("best-effort", ("best-effort",)),
        ("none,best-effort", ("none", "best-effort")),
    ],
)
def test_words(words: Any, told: tuple[str, ...]):
    assert numa_choice("mirror", words) == NumaChoice("mirror", told)
    assert numa_choice("SPLIT", words) == NumaChoice("split", told)


@pytest.mark.parametrize("words", ["", "weight", "weights,", "weights;kv", [], [3], "none,kv", ["all", "none"]])
def test_words_that_make_no_sense(words: Any):
    with pytest.raises(UsageError, match="numa_mirror"):
        numa_choice("mirror", words)


@pytest.mark.parametrize("numa", [None, False, "distribute", "isolate", "numactl"])
def test_words_need_a_strategy_of_ours(numa: Any):
    with pytest.raises(UsageError, match="needs numa='mirror' or numa='split'"):
        numa_choice(numa, "weights")


@pytest.mark.parametrize("numa", [True, 4, "", "mirrors", "off", ["mirror"]])
def test_strategies_that_do_not_exist(numa: Any):
    with pytest.raises(UsageError, match="numa must be one of distribute, isolate, numactl, mirror, split"):
        numa_choice(numa)


# -- once in a process


def test_nothing_asked_for_tells_the_engine_nothing(engine: Engine):
    engine.load()
    engine.load(False)
    assert engine.events == ["load", "load"]
    assert engine.numa.strategy is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_set_once_before_the_first_model(engine: Engine, name: str):
    for _ in range(3):
        engine.load(name)
    assert engine.events.count(name) == 1
    assert engine.events.index(name) < engine.events.index("load")
    assert engine.numa.strategy == name


@pytest.mark.parametrize(("name", "default"), [("mirror", ("all",)), ("split", ("weights",))])
def test_each_model_says_what_is_mirrored(engine: Engine, name: str, default: tuple[str, ...]):
    engine.load(name, "kv")
    engine.load(name)
    engine.load(None)
    engine.load(name, "none")
    told = [event for event in engine.events if event != name]
    kv = ("kv",)
    assert told == [kv, kv, "load", default, "load", default, "load", ("none",), "load"]
    assert engine.events[:2] == [kv, name], "the words stand before the strategy is set"


def test_strategies_of_upstream_set_no_words(engine: Engine):
    engine.load("distribute")
    assert engine.events == ["distribute", "load"]


@pytest.mark.parametrize("other", ["split", "distribute", False])
def test_another_strategy_is_refused_even_when_all_models_are_closed(engine: Engine, other: Any):
    engine.load("mirror")
    engine.numa.leave()
    with pytest.raises(UsageError, match=r"runs with numa='mirror' in this process .* only once; leave numa out"):
        engine.load(other)
    assert engine.numa.strategy == "mirror"
    engine.load("mirror")


def test_a_strategy_comes_too_late_while_models_are_open(engine: Engine):
    engine.load()
    with pytest.raises(UsageError, match=r"has 1 model\(s\) open in this process .* close them first"):
        engine.load("mirror")
    assert engine.events == ["load"]
    engine.numa.leave()
    engine.load("mirror")
    assert engine.numa.strategy == "mirror"


def test_a_model_that_failed_to_load_is_not_open(engine: Engine):
    with pytest.raises(ZeroDivisionError), engine.numa.admit(NumaChoice()):
        raise ZeroDivisionError
    engine.load("split")
    assert engine.numa.strategy == "split"


def test_two_threads_do_not_load_with_each_other_s_words(engine: Engine):
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with engine.numa.admit(numa_choice("mirror", "weights")):
            inside.set()
            go_on.wait(10)
            engine.events.append("slow done")

    first = threading.Thread(target=slow)
    second = threading.Thread(target=engine.load, args=("mirror", "kv"))
    first.start()
    assert inside.wait(10)
    second.start()
    second.join(0.1)
    assert second.is_alive()
    go_on.set()
    first.join(10)
    second.join(10)
    assert engine.events[-3:] == ["slow done", ("kv",), "load"]


def test_one_node_is_a_warning(payload: Payload, caplog: pytest.LogCaptureFixture):
    engine = Engine(payload, nodes=1)
    with caplog.at_level(logging.WARNING, logger="forkyard_llm"):
        engine.load("mirror")
        engine.load("mirror")
    assert [record.getMessage() for record in caplog.records] == [f"numa='mirror' has no effect: {ONE_NODE}"]
    assert engine.numa.counters() == []


def test_several_nodes_are_no_warning(engine: Engine, caplog: pytest.LogCaptureFixture):
    engine.load("mirror")
    assert not caplog.records


# -- payloads without the stack


@pytest.mark.parametrize("name", ["mirror", "split"])
def test_a_payload_without_the_stack_says_what_is_missing(payload: Payload, name: str):
    engine = Engine(payload, nodes=None)
    with pytest.raises(
        UnsupportedOption, match=rf"{payload.distribution} has no numa='{name}' .*none of the installed"
    ):
        engine.load(name)
    assert engine.events == []
    engine.load("distribute")
    assert engine.numa.strategy == "distribute"


def test_it_names_the_payloads_that_have_it(payload: Payload, make_payload: MakePayload):
    make_payload("forkyard-ik-llama-cpp-avx2", capabilities=["numa-mirror"])
    make_payload("forkyard-llama-cpp-sse42", capabilities=["other"])
    with pytest.raises(UnsupportedOption, match=r"installed with it: forkyard-ik-llama-cpp-avx2 \(engine='forkyard-ik"):
        Engine(payload, nodes=None).load("mirror")


def test_a_payload_whose_module_does_not_describe_the_stack_has_to_be_built_again(make_payload: MakePayload):
    old = read_payload(make_payload(capabilities=["numa-mirror"]))
    with pytest.raises(UnsupportedOption, match="module does not describe its functions.*build it with a newer"):
        Engine(old, nodes=None).load("mirror")


def test_no_counters_without_the_stack(payload: Payload):
    numa = Engine(payload, nodes=None).numa
    assert not numa.available
    with pytest.raises(UnsupportedOption, match="has no numa_counters"):
        numa.counters()
    with pytest.raises(UnsupportedOption, match="has no numa_report"):
        numa.report()


# -- what it tells


def test_counters_are_read_before_they_are_reset(engine: Engine):
    engine.load("mirror")
    engine.events.clear()
    assert engine.numa.counters() == [NumaNode(0, 1, 10, 0), NumaNode(1, 1, 10, 0)]
    assert engine.events == []
    assert len(engine.numa.counters(reset=True)) == 2
    assert engine.events == ["reset"]


def load_that_fails(engine: Engine, failure: NumaFailure | None, name: str, words: Any = None) -> None:
    """As an engine that cannot load a model, and may know that a copy was the reason."""
    choice = numa_choice(name, words)
    with engine.numa.admit(choice):
        assert engine.mirror is not None
        engine.mirror.failure = failure
        engine.numa.check_placed("no model", choice)
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("name", "failure", "advice"),
    [
        ("mirror", NumaFailure("no_room", 1, 4096, LACKS), "free memory on that node, copy less"),
        ("mirror", NumaFailure("refused", 1, 7, FORBIDDEN), "allow it, or go on without (numa_mirror='best-effort')"),
        ("mirror", NumaFailure("no_access", 1, 7, FORBIDDEN), "allow it, or go on without (numa_mirror='best-effort')"),
        ("split", NumaFailure("misplaced", None, 9, UNMOVED), "free memory, or go on without"),
    ],
)
def test_why_there_is_no_copy_is_the_engine_s_whole_sentence(
    engine: Engine, name: str, failure: NumaFailure, advice: str
):
    with pytest.raises(EngineError) as caught:
        load_that_fails(engine, failure, name)
    assert str(caught.value).startswith(f"no model: {failure.reason}; {advice}")
    assert caught.value.as_json()["error"]["numa"] == {
        "cause": failure.cause,
        "node": failure.node,
        "lacks_bytes": failure.lacks,
    }


def test_another_reason_stays_what_it_is(engine: Engine):
    with pytest.raises(ZeroDivisionError):
        load_that_fails(engine, None, "mirror")
    with pytest.raises(ZeroDivisionError):
        load_that_fails(engine, NumaFailure("no_room", 1, 4096, LACKS), "mirror", "all,best-effort")


def test_a_copy_left_out_is_a_warning(engine: Engine, caplog: pytest.LogCaptureFixture):
    assert engine.mirror is not None
    with engine.numa.admit(numa_choice("mirror", "best-effort")):
        engine.mirror.failure = NumaFailure("no_room", 1, 4096, LACKS)
        said = [f"warning: {LACKS}", "another"]
        engine.numa.warn_unplaced(said)
        engine.numa.warn_unplaced(said)
    assert said == ["another"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{LACKS}; going on without, as numa_mirror='best-effort' asks for"
    ]
