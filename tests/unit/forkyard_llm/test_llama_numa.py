"""`Llama(numa=...)` on an engine whose C functions are Python ones: order of calls, errors, what can be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from forkyard_llm import generate, llama
from forkyard_llm.engines.base import Engine
from forkyard_llm.engines.devices import Device
from forkyard_llm.engines.loaded import Handle, Loaded, Params
from forkyard_llm.engines.numa_mirror import NumaFailure, NumaMirror, NumaNode, NumaReport
from forkyard_llm.engines.options import ModelOptions
from forkyard_llm.engines.session import Session
from forkyard_llm.errors import EngineError, ModelError, UnsupportedOption, UsageError
from forkyard_llm.llama import Llama
from forkyard_llm.payloads import read_payload

MakePayload = Callable[..., Path]
WARN, ERROR = 3, 4
LACKS = "numa-mirror: node 1 lacks 4096 bytes for a copy of 8192 bytes of {kind} (its memory is taken)"
HINT = "free memory there, mirror less (--numa-mirror weights or kv), use --numa split, or ..."
REFUSED = "numa-mirror: node 1 lacks 9 bytes for a copy of 9 bytes of kv (mbind: no; a container needs CAP_SYS_NICE)"
UPSTREAM = ("DISABLED", "DISTRIBUTE", "ISOLATE", "NUMACTL", "MIRROR", "COUNT")


class FakeMirror:
    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.nodes = [NumaNode(0, 2, 700, 0), NumaNode(1, 2, 300, 100)]

    def set(self, words: tuple[str, ...]) -> None:
        self.api.calls.append(("set", words))
        self.api.failure = None

    def take_failure(self) -> NumaFailure | None:
        failure, self.api.failure = self.api.failure, None
        return failure

    def counters(self) -> list[NumaNode]:
        return self.nodes if {("numa", 4), ("numa", 5)} & set(self.api.calls) else []

    def reset_counters(self) -> None:
        self.api.calls.append("reset")

    def report(self) -> NumaReport:
        return NumaReport("mirror", tuple(self.nodes), ())


class FakeApi:
    """The engine's functions; ``fails`` are the log lines of a call that then returns nothing, ``why`` is its failure."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fails: dict[str, list[tuple[int, str]]] = {}
        self.why: NumaFailure | None = None
        self.failure: NumaFailure | None = None
        self.log: Callable[[int, bytes, None], None] | None = None

    def llama_log_set(self, callback: Any, _data: None) -> None:
        self.log = callback

    def llama_backend_init(self) -> None:
        self.calls.append("start")

    def llama_numa_init(self, strategy: int) -> None:
        self.calls.append(("numa", strategy))

    def llama_model_default_params(self) -> Any:
        return SimpleNamespace()

    def llama_context_default_params(self) -> Any:
        return SimpleNamespace(n_ubatch=512, type_k=1, type_v=1)

    def ggml_type_size(self, _kind: int) -> int:
        return 2

    def ggml_blck_size(self, _kind: int) -> int:
        return 1

    def llama_model_meta_val_str(self, *_arguments: Any) -> int:
        return -1

    def llama_model_load_from_file(self, _path: bytes, _params: Any) -> Any:
        return self._make("model")

    def llama_init_from_model(self, _model: Any, _params: Any) -> Any:
        return self._make("context")

    def llama_free(self, _context: Any) -> None:
        self.calls.append("free context")

    def _make(self, what: str) -> str | None:
        self.calls.append(what)
        for level, line in self.fails.get(what, []):
            assert self.log is not None
            self.log(level, line.encode(), None)
        if what in self.fails:
            self.failure = self.why
        return None if what in self.fails else what


class FakeSession(Session):
    """No more of a session than closing one takes."""

    def __init__(
        self, loaded: Loaded, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> None:
        self.loaded, self._api, self._model, self._context = loaded, loaded.api, model, context
        self._templates, self._release_model = {}, release
        self.n_ctx = options.n_ctx

    def _release(self) -> None:
        pass


FakeSession.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


class FakeEngine(Engine):
    family = "llama.cpp"

    def _register_backends(self) -> None:
        self.api.calls.append("backends")

    def devices(self) -> tuple[Device, ...]:
        return ()

    def _name_devices(self, params: Params, devices: Sequence[Device]) -> object:
        raise AssertionError

    def _cannot_guess(self, model: Handle) -> str | None:
        return None

    def _free_model(self, _model: Handle) -> None:
        self.api.calls.append("free model")

    def _session(
        self, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> Session:
        return FakeSession(self.loaded, model, context, options, release)


def make_engine(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch, *, patched: bool) -> FakeEngine:
    payload = read_payload(make_payload())
    known = {f"GGML_NUMA_STRATEGY_{name}": number for number, name in enumerate(UPSTREAM)}
    levels = {"GGML_LOG_LEVEL_WARN": WARN, "GGML_LOG_LEVEL_ERROR": ERROR}
    abi = SimpleNamespace(
        ENUMS={"ggml_log_level": levels, "ggml_numa_strategy": known},
        GGML_NUMA_STRATEGY_SPLIT=5,
        ggml_log_callback=lambda function=None: function,
    )
    api = FakeApi()
    mirror = cast("NumaMirror", FakeMirror(api)) if patched else None
    engine = FakeEngine(payload, cast("Any", abi), api, cast("Any", None), mirror)
    monkeypatch.setattr(llama, "select", lambda *_: payload)
    monkeypatch.setattr(llama, "load", lambda _: engine)
    monkeypatch.setattr(llama.gguf_check, "check", lambda *_, **__: None)
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())
    return engine


@pytest.fixture
def engine(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return make_engine(make_payload, monkeypatch, patched=True)


@pytest.fixture
def stock(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return make_engine(make_payload, monkeypatch, patched=False)


def test_the_strategy_comes_after_the_backends_and_before_the_model(engine: FakeEngine):
    with Llama("m.gguf", numa="mirror", numa_mirror="weights") as llm:
        assert llm.numa == "mirror"
    before = engine.api.calls[: engine.api.calls.index("model")]
    assert before == ["start", "backends", ("set", ("weights",)), ("numa", 4), ("set", ("weights",))]


@pytest.mark.parametrize(("name", "number"), [("distribute", 1), ("isolate", 2), ("numactl", 3), ("split", 5)])
def test_every_strategy_has_the_engine_s_number(engine: FakeEngine, name: str, number: int):
    Llama("m.gguf", numa=name).close()
    assert ("numa", number) in engine.api.calls


def test_without_one_the_engine_hears_nothing(engine: FakeEngine):
    with Llama("m.gguf") as llm, Llama("m.gguf", numa=False):
        assert llm.numa is None
        assert llm.numa_counters() == []
    assert engine.api.calls[:4] == ["start", "backends", "model", "context"]


def test_strategies_of_upstream_work_without_the_stack(stock: FakeEngine):
    with Llama("m.gguf", numa="distribute") as llm:
        assert llm.numa == "distribute"
        assert "numa-mirror" not in llm.capabilities
    assert ("numa", 1) in stock.api.calls


@pytest.mark.parametrize("name", ["mirror", "split"])
def test_without_the_stack_nothing_is_loaded(stock: FakeEngine, name: str):
    with pytest.raises(UnsupportedOption, match="built without the stack numa-mirror"):
        Llama("m.gguf", numa=name)
    assert stock.api.calls == []


def test_the_functions_make_the_capability(engine: FakeEngine):
    assert "numa-mirror" not in engine.payload.capabilities
    with Llama("m.gguf") as llm:
        assert "numa-mirror" in llm.capabilities


def test_a_wrong_word_is_found_before_a_payload_is_looked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama, "select", lambda *_: pytest.fail("too late"))
    with pytest.raises(UsageError, match="numa_mirror takes weights, kv, all, none, best-effort"):
        Llama("m.gguf", numa="mirror", numa_mirror="wieghts")


def test_closing_makes_room_for_a_strategy_and_closing_twice_does_not_count_twice(engine: FakeEngine):
    first, second = Llama("m.gguf"), Llama("m.gguf")
    first.close()
    first.close()
    with pytest.raises(UsageError, match=r"1 model\(s\) open"):
        Llama("m.gguf", numa="mirror")
    second.close()
    Llama("m.gguf", numa="mirror").close()
    with pytest.raises(UsageError, match="numa='mirror' in this process"):
        Llama("m.gguf", numa="split")
    assert [call for call in engine.api.calls if call[0] == "numa"] == [("numa", 4)]


def test_weights_that_have_no_room(engine: FakeEngine):
    line = LACKS.format(kind="weights")
    noise = [(WARN, "this model is odd\n")] * 6
    why = f"llama_model_load: error loading model: {line}; {HINT}\n"
    engine.api.fails["model"] = [*noise, (ERROR, why), (ERROR, "failed to load model\n")]
    engine.api.why = NumaFailure("no_room", 1, 4096, line)
    with pytest.raises(EngineError) as caught:
        Llama("m.gguf", numa="mirror")
    assert str(caught.value).startswith(f"llama.cpp cannot load m.gguf: {line}; free memory on that node")
    assert "numa_mirror='best-effort'" in str(caught.value)
    assert "--numa" not in str(caught.value)


def test_a_cache_that_has_no_room(engine: FakeEngine):
    line = LACKS.format(kind="kv")
    engine.api.fails["context"] = [(ERROR, f"failed to initialize the context: {line}; {HINT}\n")]
    engine.api.why = NumaFailure("no_room", 1, 4096, line)
    with pytest.raises(EngineError) as caught:
        Llama("m.gguf", numa="mirror", n_ctx=4096)
    assert f"cannot make a context of 4096 tokens for m.gguf: {line}" in str(caught.value)
    assert engine.api.calls[-1] == "free model"
    engine.api.fails.clear()
    Llama("m.gguf", numa="mirror", numa_mirror="weights").close()


def test_a_refused_system_call_is_told_whole_and_as_data(engine: FakeEngine):
    """The reason has a semicolon of its own; what to do is not to free memory."""
    engine.api.fails["context"] = [(ERROR, "failed to initialize the context\n")]
    engine.api.why = NumaFailure("refused", 1, 9, REFUSED)
    with pytest.raises(EngineError) as caught:
        Llama("m.gguf", numa="mirror")
    assert f"{REFUSED}; allow it, or go on without (numa_mirror='best-effort')" in str(caught.value)
    assert "free memory" not in str(caught.value)
    assert caught.value.details() == {"numa": {"cause": "refused", "node": 1, "lacks_bytes": 9}}


def test_other_failures_stay_what_they_are(engine: FakeEngine):
    engine.api.fails["model"] = [(WARN, LACKS.format(kind="weights")), (ERROR, "the file is no model")]
    engine.api.why = NumaFailure("no_room", 1, 4096, LACKS.format(kind="weights"))
    with pytest.raises(ModelError, match="the file is no model"):
        Llama("m.gguf", numa="mirror", numa_mirror="best-effort")
    engine.api.fails["model"] = [(ERROR, "the file is no model")]
    engine.api.why = None
    with pytest.raises(ModelError, match="cannot load m.gguf: the file is no model"):
        Llama("m.gguf", numa="mirror")


def test_counters_and_report(engine: FakeEngine):
    with Llama("m.gguf", numa="mirror") as llm:
        assert [(node.id, node.local_bytes, node.remote_bytes) for node in llm.numa_counters()] == [
            (0, 700, 0),
            (1, 300, 100),
        ]
        assert "reset" not in engine.api.calls
        llm.numa_counters(reset=True)
        assert engine.api.calls[-1] == "reset"
        assert llm.numa_report().mode == "mirror"
    with pytest.raises(EngineError, match="closed"):
        llm.numa_counters()


def test_no_counters_without_the_stack(stock: FakeEngine):
    with Llama("m.gguf") as llm:
        for ask in (llm.numa_counters, llm.numa_report):
            with pytest.raises(UnsupportedOption, match="capability 'numa-mirror'"):
                ask()


def test_generate_s_json_has_the_counters(engine: FakeEngine):
    with Llama("m.gguf") as llm:
        assert generate._numa(llm) is None
    with Llama("m.gguf", numa="split") as llm:
        assert generate._numa(llm) == {
            "strategy": "split",
            "nodes": [
                {"id": 0, "cpus": 2, "local_bytes": 700, "remote_bytes": 0},
                {"id": 1, "cpus": 2, "local_bytes": 300, "remote_bytes": 100},
            ],
        }


def test_generate_s_json_without_counters(stock: FakeEngine):
    with Llama("m.gguf", numa="isolate") as llm:
        assert generate._numa(llm) == {"strategy": "isolate", "nodes": []}
