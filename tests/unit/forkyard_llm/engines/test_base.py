"""What an engine refuses to be asked for, or not to do, on one whose C functions are Python ones."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from forkyard_llm.engines import base
from forkyard_llm.engines.base import Engine
from forkyard_llm.engines.devices import Device, fitting_layers
from forkyard_llm.engines.llama_cpp import LlamaCppEngine
from forkyard_llm.engines.options import ModelOptions
from forkyard_llm.errors import EngineError, UnsupportedOption, UsageError
from forkyard_llm.payloads import read_payload

MakePayload = Callable[..., Path]
WARN = 3


GPU_0 = Device("Any0", "a card", "gpu", 2**30, 2**31)
GPU_1 = Device("Any1", "a chip", "igpu", 2**30, 2**31)


class FakeApi:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.gpu = False
        self.model_params: Any = None
        self.closed = False
        self.n_ctx: int | None = None

    def llama_log_set(self, callback: Any, _data: None) -> None:
        self.log = callback

    def llama_backend_init(self) -> None: ...

    def llama_supports_gpu_offload(self) -> bool:
        return self.gpu

    def llama_max_devices(self) -> int:
        return 4

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

    def llama_model_load_from_file(self, _path: bytes, params: Any) -> str:
        self.model_params = params
        for line in self.warnings:
            self.log(WARN, line.encode(), None)
        return "model"

    def llama_init_from_model(self, _model: Any, _params: Any) -> str:
        return "context"


class FakeEngine(Engine):
    family = "llama.cpp"
    idle_talk = re.compile("nothing of weight")

    def _register_backends(self) -> None: ...

    def devices(self) -> tuple[Device, ...]:
        return (Device("CPU", "a processor", "cpu", 1, 2), *((GPU_0, GPU_1) if self.api.gpu else ()))

    def _name_devices(self, params: Any, devices: Any) -> object:
        params.devices = [device.name for device in devices]
        return None

    def _server_devices(self, address: str, count: int) -> list[Device]:
        return [Device(f"Far{index}@{address[-1]}", address, "remote", 1, 2) for index in range(count)]

    def _cannot_guess(self, model: Any) -> str | None:
        return None

    def _free_model(self, _model: Any) -> None: ...

    def _session(self, _model: Any, _context: Any, options: ModelOptions, _release: Any) -> Any:
        def close() -> None:
            self.api.closed = True

        return SimpleNamespace(n_ctx=self.api.n_ctx or options.n_ctx, close=close)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def engine(api: FakeApi, make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())
    abi = SimpleNamespace(
        ENUMS={
            "ggml_log_level": {"GGML_LOG_LEVEL_WARN": WARN},
            "llama_split_mode": {"LLAMA_SPLIT_MODE_LAYER": 1},
        },
        ggml_log_callback=lambda function=None: function,
    )
    return FakeEngine(read_payload(make_payload()), cast("Any", abi), api, cast("Any", None))


GPU_OPTIONS: list[dict[str, Any]] = [
    {"n_gpu_layers": -1},
    {"n_gpu_layers": 1},
    {"devices": ["Any0"]},
    {"main_gpu": 1},
    {"split_mode": "layer"},
    {"tensor_split": [1, 3]},
]


def test_a_gpu_without_code_is_refused_before_the_engine_starts(
    api: FakeApi, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base, "gpus_without_code", lambda _: "it has no code for GPU 0")
    monkeypatch.setattr(engine, "_register_backends", lambda: pytest.fail("started"))
    for begin in (engine.start, lambda: engine.open(tmp_path / "model.gguf", ModelOptions())):
        with pytest.raises(EngineError, match="cannot be used here: it has no code for GPU 0"):
            begin()


@pytest.mark.parametrize("asked", GPU_OPTIONS, ids=lambda asked: next(iter(asked)))
def test_what_needs_a_gpu_is_refused_without_one(engine: FakeEngine, asked: dict[str, Any]):
    with pytest.raises(UnsupportedOption) as caught:
        engine.open(Path("m.gguf"), ModelOptions(**asked))
    message = str(caught.value)
    assert re.match(rf"{next(iter(asked))}=.* needs a GPU, and forkyard-llama-cpp-avx2 is built for CPUs only", message)
    assert "none is installed; `forkyard-llm doctor`" in message


def test_the_error_names_the_payloads_that_have_a_gpu(engine: FakeEngine, make_payload: MakePayload):
    make_payload("forkyard-llama-cpp-anygpu", kind="backend")
    make_payload("forkyard-llama-cpp-avx512", kind="isa")
    with pytest.raises(UnsupportedOption, match="installed payloads for GPUs: engine='forkyard-llama-cpp-anygpu'; or"):
        engine.open(Path("m.gguf"), ModelOptions(n_gpu_layers=-1))


def test_a_gpu_payload_on_a_machine_without_gpu_says_so(api: FakeApi, engine: FakeEngine, make_payload: MakePayload):
    engine.payload = read_payload(make_payload("forkyard-llama-cpp-anygpu", kind="backend"))
    with pytest.raises(UnsupportedOption, match="forkyard-llama-cpp-anygpu finds no GPU here"):
        engine.open(Path("m.gguf"), ModelOptions(n_gpu_layers=-1))


def test_a_cache_type_that_the_gpu_cannot_compute_with_is_refused(
    api: FakeApi, engine: FakeEngine, make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "cache_type", lambda *_: 1)
    facts = {"library": None, "requires": [], "needs": [], "cache_types": ["f16", "q8_0"]}
    engine.payload = read_payload(make_payload("forkyard-llama-cpp-anygpu", kind="backend", backend=facts))
    api.gpu = True
    with pytest.raises(UnsupportedOption, match="type_v='iq4_nl': .*has no attention for it on the GPU.*f16, q8_0"):
        engine.open(Path("m.gguf"), ModelOptions(n_gpu_layers=-1, type_k="Q8_0", type_v="iq4_nl"))
    # On the CPU it is fine.
    for other in ({"n_gpu_layers": 0}, {"n_gpu_layers": -1, "offload_kqv": False}):
        engine.open(Path("m.gguf"), ModelOptions(type_v="iq4_nl", **cast("Any", other)))


@pytest.mark.parametrize(
    ("options", "modes", "switches"),
    [
        (ModelOptions(), {}, (True, False, False)),
        (ModelOptions(use_mmap=False), {"load_mode": 0}, (False, False, False)),
        (ModelOptions(use_mlock=True), {"load_mode": 3}, (True, True, False)),
        (ModelOptions(engine_options={"direct_io": True}), {"load_mode": 4}, (True, False, True)),
    ],
)
def test_llama_cpp_loads_as_told_by_one_mode_and_at_an_older_pin_by_switches(
    monkeypatch: pytest.MonkeyPatch, options: ModelOptions, modes: dict[str, int], switches: tuple[bool, ...]
) -> None:
    monkeypatch.setattr(Engine, "_fill_model_params", lambda *_: None)
    engine = object.__new__(LlamaCppEngine)
    known = {"LLAMA_LOAD_MODE_NONE": 0, "LLAMA_LOAD_MODE_MMAP_MLOCK": 3, "LLAMA_LOAD_MODE_DIRECT_IO": 4}
    for enums, expected in (
        ({"llama_load_mode": known}, modes),
        ({}, dict(zip(("use_mmap", "use_mlock", "use_direct_io"), switches, strict=True))),
    ):
        engine.abi = cast("Any", SimpleNamespace(ENUMS=enums))
        params = SimpleNamespace()
        engine._fill_model_params(cast("Any", params), options)
        assert vars(params) == expected


def test_llama_cpp_is_given_the_devices_in_a_list_that_ends():
    class Handle(ctypes.Structure):
        _fields_ = (("number", ctypes.c_int),)

    class Params(ctypes.Structure):
        _fields_ = (("devices", ctypes.POINTER(ctypes.POINTER(Handle))),)

    there = {b"Any0": Handle(10), b"Any1": Handle(11)}
    api = SimpleNamespace(ggml_backend_dev_by_name=lambda name: ctypes.pointer(there[name]))
    params = Params()
    far = {"Far0": ctypes.pointer(Handle(12))}
    fake = cast("Any", SimpleNamespace(api=api, _remote=far))
    named = [GPU_1, GPU_0, Device("Far0", "a server", "remote", 1, 2)]
    kept = LlamaCppEngine._name_devices(fake, cast("Any", params), named)
    assert [params.devices[index].contents.number for index in range(3)] == [11, 10, 12]
    assert not params.devices[3]
    del kept


@pytest.mark.parametrize(
    ("said", "requires", "advice"),
    [
        (
            "libgpu.so.1: cannot open shared object file",
            ["gpu-maker >=1, <2"],
            '; install what it requires beside it: pip install "gpu-maker >=1, <2"',
        ),
        ("libgpu.so.1: cannot open shared object file", [], "; install the system package that has libgpu.so.1"),
        ("no device", [], ""),
        ("", [], ""),
        ("no device", ["driver"], "; the driver is missing: there is no libno-such-driver.so.1"),
    ],
)
def test_a_gpu_payload_without_gpu_says_once_that_the_cpu_computes(
    api: FakeApi,
    engine: FakeEngine,
    make_payload: MakePayload,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    requires: list[str],
    advice: str,
):
    facts: dict[str, Any] = {"library": None, "requires": requires, "needs": ["libgpu.so.1"]}
    # The C library is on every machine.
    facts["driver"] = "libno-such-driver.so.1" if requires == ["driver"] else "libc.so.6"
    engine.payload = read_payload(make_payload("forkyard-llama-cpp-anygpu", kind="backend", backend=facts))
    if said:
        monkeypatch.setattr(engine, "_register_backends", lambda: api.log(WARN, said.encode(), None))
    for _ in range(2):
        engine.start()
    assert engine.no_gpu == (said or "its backend finds none") + advice
    (record,) = caplog.records
    assert record.getMessage() == (
        f"forkyard-llama-cpp-anygpu has no GPU to use, and computes on the CPU: {engine.no_gpu}"
    )
    api.gpu = True
    caplog.clear()
    lucky = FakeEngine(engine.payload, engine.abi, cast("Any", api), engine.loaded.probe)
    lucky.start()
    assert (lucky.no_gpu, caplog.records) == (None, [])


@pytest.mark.parametrize("asked", GPU_OPTIONS, ids=lambda asked: next(iter(asked)))
def test_with_a_gpu_all_of_it_goes_through(api: FakeApi, engine: FakeEngine, asked: dict[str, Any]):
    api.gpu = True
    engine.open(Path("m.gguf"), ModelOptions(**asked))


def test_all_layers_are_a_number_that_both_families_understand(api: FakeApi, engine: FakeEngine):
    api.gpu = True
    engine.open(Path("m.gguf"), ModelOptions(n_gpu_layers=-1))
    assert api.model_params.n_gpu_layers > 1000


def test_devices_that_are_not_there(api: FakeApi, engine: FakeEngine):
    api.gpu = True
    with pytest.raises(UsageError, match="main_gpu is 4, this payload knows at most 4 devices"):
        engine.open(Path("m.gguf"), ModelOptions(main_gpu=4))
    with pytest.raises(UsageError, match="tensor_split has 5 parts, this payload knows at most 4"):
        engine.open(Path("m.gguf"), ModelOptions(tensor_split=[1] * 5))


def test_devices_are_named_as_the_engine_names_them(api: FakeApi, engine: FakeEngine):
    api.gpu = True
    engine.open(Path("m.gguf"), ModelOptions(devices=["Any1", "Any0"], tensor_split=[1, 2]))
    assert api.model_params.devices == ["Any1", "Any0"]
    engine.open(Path("m.gguf"), ModelOptions(devices=[]))
    assert api.model_params.devices == []
    engine.open(Path("m.gguf"), ModelOptions())
    assert not hasattr(api.model_params, "devices")
    for name in ("any0", "CPU", ""):
        with pytest.raises(UsageError, match=f"has no GPU '{name}' here; it has: Any0, Any1"):
            engine.open(Path("m.gguf"), ModelOptions(devices=[name]))


def test_shares_that_are_not_one_for_each_device(api: FakeApi, engine: FakeEngine):
    api.gpu = True
    for shares, named, there in (
        ([1], None, "Any0, Any1"),
        ([1, 1, 1], None, "Any0, Any1"),
        ([1, 2], ["Any1"], "Any1"),
    ):
        with pytest.raises(
            UsageError, match=f"tensor_split has {len(shares)} parts, and the devices used are {there}: "
        ):
            engine.open(Path("m.gguf"), ModelOptions(tensor_split=shares, devices=named))
    # What the engine takes by itself might be others.
    engine.open(Path("m.gguf"), ModelOptions(tensor_split=[1, 2]))
    assert api.model_params.devices == ["Any0", "Any1"]
    with pytest.raises(
        UsageError, match="main_gpu is 2, and the devices used are Any0, Any1: it counts them from 0 on"
    ):
        engine.open(Path("m.gguf"), ModelOptions(main_gpu=2))


# -- RPC servers

SERVERS = ("127.0.0.1:50052", "127.0.0.1:50053")


@pytest.fixture
def remote(engine: FakeEngine, make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    facts = {"library": None, "requires": [], "needs": [], "remote": True}
    engine.payload = read_payload(make_payload("forkyard-llama-cpp-rpc", kind="backend", backend=facts))
    monkeypatch.setattr(engine.rpc, "greet", lambda address: 1 if address == SERVERS[0] else 2)
    return engine


def test_devices_of_servers_come_first_and_are_named(api: FakeApi, remote: FakeEngine):
    api.gpu = True
    names = ["Far0@2", "Far0@3", "Far1@3", "Any0", "Any1"]
    assert [one.name for one in remote.gpus(None, remote.remote_devices(SERVERS))] == names
    with pytest.raises(UsageError, match="5 are used, this payload knows at most 4 devices"):
        remote.open(Path("m.gguf"), ModelOptions(rpc_servers=SERVERS, n_gpu_layers=-1))
    some = ["Far1@3", "Any1", "Far0@2"]
    remote.open(Path("m.gguf"), ModelOptions(rpc_servers=SERVERS, n_gpu_layers=1, devices=some, tensor_split=[1, 1, 2]))
    assert api.model_params.devices == some
    with pytest.raises(UsageError, match="has no GPU 'Far9' here; it has: Far0@2"):
        remote.open(Path("m.gguf"), ModelOptions(rpc_servers=SERVERS, n_gpu_layers=1, devices=["Far9"]))


def test_without_a_gpu_servers_are_enough(remote: FakeEngine):
    remote.open(Path("m.gguf"), ModelOptions(rpc_servers=SERVERS, n_gpu_layers=-1, split_mode="layer"))
    assert remote.no_gpu is None
    with pytest.raises(UnsupportedOption, match="forkyard-llama-cpp-rpc has none but those of RPC servers"):
        remote.open(Path("m.gguf"), ModelOptions(n_gpu_layers=-1))
    with pytest.raises(UsageError, match="RPC servers compute only layers that are kept on them; give n_gpu_layers"):
        remote.open(Path("m.gguf"), ModelOptions(rpc_servers=SERVERS))


def test_a_payload_without_rpc_names_one_that_has_it(engine: FakeEngine, make_payload: MakePayload):
    options = ModelOptions(rpc_servers=SERVERS, n_gpu_layers=-1)
    with pytest.raises(
        UnsupportedOption, match=r"forkyard-llama-cpp-avx2 has none; take one of the variant rpc \(none"
    ):
        engine.open(Path("m.gguf"), options)
    facts = {"library": None, "requires": [], "needs": [], "remote": True}
    make_payload("forkyard-llama-cpp-rpc", kind="backend", backend=facts)
    with pytest.raises(UnsupportedOption, match="has none; take engine='forkyard-llama-cpp-rpc'$"):
        engine.open(Path("m.gguf"), options)


def test_what_rpc_is_called(engine: FakeEngine, remote: FakeEngine, make_payload: MakePayload):
    assert "rpc" in remote.capabilities
    plain = read_payload(make_payload("forkyard-llama-cpp-sse42"))
    assert "rpc" not in FakeEngine(plain, engine.abi, engine.api, engine.loaded.probe).capabilities


def test_a_tensor_split_computes_with_flash_attention_alone():
    with pytest.raises(UnsupportedOption, match="'tensor' computes attention by flash attention alone"):
        LlamaCppEngine._check_split(ModelOptions(split_mode="Tensor", flash_attn=False))
    for options in ({"flash_attn": None}, {"flash_attn": True}):
        LlamaCppEngine._check_split(ModelOptions(split_mode="tensor", **cast("Any", options)))
    LlamaCppEngine._check_split(ModelOptions(split_mode="layer", flash_attn=False))


def test_no_device_is_asked_of_a_payload_without(engine: FakeEngine):
    engine.open(Path("m.gguf"), ModelOptions(devices=[]))
    assert engine.gpus() == ()


@pytest.mark.parametrize("devices", ["Any0", [1], 7, ["Any0", "Any0"]])
def test_what_is_no_list_of_devices(devices: Any):
    with pytest.raises(UsageError, match="devices must be a sequence of different names"):
        ModelOptions(devices=devices)


def test_as_many_layers_as_fit():
    unknown = Device("Any2", "", "gpu", None, None)
    # A quarter of what is free stays free.
    assert fitting_layers([GPU_0], 4 * 2**30, 31) == 6
    assert fitting_layers([GPU_0, GPU_1], 4 * 2**30, 31) == 12
    assert fitting_layers([GPU_0], 2**20, 31) == 32
    assert fitting_layers([GPU_0, unknown], 2**40, 31) == 32
    assert fitting_layers([], 1, 31) == fitting_layers([Device("CPU", "", "cpu", 2**40, 2**40)], 1, 31) == 0
    assert fitting_layers([GPU_0], 0, 0) == 1


def test_warnings_at_load_reach_logging(api: FakeApi, engine: FakeEngine, caplog: pytest.LogCaptureFixture):
    api.warnings = ["n_ctx is too large for sense", "nothing of weight"]
    with caplog.at_level(logging.WARNING, logger="forkyard_llm"):
        engine.open(Path("m.gguf"), ModelOptions())
    assert [record.getMessage() for record in caplog.records] == [
        "llama.cpp, loading m.gguf: n_ctx is too large for sense"
    ]


@pytest.mark.parametrize(
    ("asked", "line", "hint"),
    [
        ({"use_mlock": True}, "warning: failed to mlock 9-byte buffer (after previously locking 0 bytes)", "ulimit -l"),
        ({"flash_attn": True}, "f: flash_attn is not compatible with Grok - forcing off", "leave flash_attn out"),
        ({"engine_options": {"direct_io": True}}, "Falling back to buffered IO due to x", "leave direct_io out"),
    ],
)
def test_what_was_asked_for_and_is_not_done_is_an_error(
    api: FakeApi, engine: FakeEngine, asked: dict[str, Any], line: str, hint: str
):
    api.warnings = [line]
    with pytest.raises(EngineError, match=f"does not do what .*=True asks for: .*{hint}"):
        engine.open(Path("m.gguf"), ModelOptions(**asked))
    assert api.closed
    engine.open(Path("m.gguf"), ModelOptions())


def test_a_context_smaller_than_asked_for_is_an_error(api: FakeApi, engine: FakeEngine):
    api.n_ctx = 256
    with pytest.raises(EngineError, match="a context of 256 tokens, n_ctx asks for 1000"):
        engine.open(Path("m.gguf"), ModelOptions(n_ctx=1000))
    assert api.closed


def test_a_context_larger_than_memory_is_refused_before_the_engine_tries(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("forkyard_llm.engines.base.available_bytes", lambda: 2**30)
    engine.open(Path("m.gguf"), ModelOptions(n_ctx=2**20))
    with pytest.raises(EngineError, match=r"of 268435456 tokens .* at least 10\.0 GiB, the system has 1\.0 GiB left"):
        engine.open(Path("m.gguf"), ModelOptions(n_ctx=2**28))
    monkeypatch.setattr("forkyard_llm.engines.base.available_bytes", lambda: None)
    engine.open(Path("m.gguf"), ModelOptions(n_ctx=2**28))
