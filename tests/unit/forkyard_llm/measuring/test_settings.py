"""What is tried on which machine, and how it is asked for; the engines are scripts, or say of themselves what we like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.measuring.engine import Engine
from forkyard_llm.measuring.machine import core_sets
from forkyard_llm.measuring.search import Point
from forkyard_llm.measuring.settings import Host
from forkyard_llm.measuring.space import Choices, Workload, choices

from .conftest import MakeEngine, summary

SMALL = Workload(16, 4)


def point(found: Choices, **changed: str) -> Point:
    named = {name.replace("_", " "): value for name, value in changed.items()}
    assert named.keys() <= {one.name for one in found.space.dimensions}
    pairs = zip(found.space.dimensions, found.space.default, strict=True)
    return tuple(named.get(one.name, value) for one, value in pairs)


def names(found: Choices) -> set[str]:
    return {one.name for one in found.space.dimensions}


def server(found: Choices, at: Point, model: Path, workload: Workload = SMALL) -> str:
    return " ".join(found.command(at, model, workload))


def test_several_memory_nodes_have_their_modes(make_engine: MakeEngine, model: Path) -> None:
    engine = replace(make_engine(), modes=frozenset({"distribute", "isolate", "numactl", "mirror"}))
    host = Host(nodes=2, memory=5 << 30, numactl=True)
    found = choices([engine], SMALL, host, summary(), cores=4)
    interleaved = point(found, NUMA="interleave")
    (arm,) = found.arms(interleaved, model, SMALL)
    assert arm.command[:3] == ("numactl", "--interleave=all", str(engine.bench))
    assert "--numa numactl" in " ".join(arm.command)
    assert server(found, interleaved, model).startswith("numactl --interleave=all ")
    assert found.space.allowed(point(found, NUMA="mirror"))
    assert not found.space.allowed(point(found, NUMA="split")), "the engine has no such mode"
    tight = choices([engine], SMALL, replace(host, memory=3 << 29), summary(), cores=4)
    assert not tight.space.allowed(point(tight, NUMA="mirror")), "two copies do not fit"
    assert any("NUMA mirror: it does not fit into 1.5 GiB" in one for one in tight.not_tried)
    assert tight.space.allowed(point(tight, load="memory"))


def test_one_node_has_none(make_engine: MakeEngine) -> None:
    found = choices([make_engine()], SMALL, Host(1, None, numactl=True), summary())
    assert "NUMA" not in names(found)
    assert "NUMA modes and numactl: this machine has one node" in found.not_tried


def test_what_does_not_fit_into_memory_is_not_tried(make_engine: MakeEngine) -> None:
    found = choices([make_engine()], SMALL, Host(1, 1 << 29), summary())
    assert not found.space.allowed(point(found, load="memory"))
    assert found.space.allowed(found.space.default)


def test_sets_of_processors(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    system = tmp_path / "system"
    for cpu, (siblings, top) in enumerate([("0-1", 5000), ("0-1", 5000), ("2", 3000), ("3", 3000)]):
        for name, text in (("topology/thread_siblings_list", siblings), ("cpufreq/cpuinfo_max_freq", f"{top}000")):
            file = system / "cpu" / f"cpu{cpu}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    sets = core_sets(system, range(4))
    assert sets == {"one of each core": (0, 2, 3), "the fast ones": (0, 1)}
    assert core_sets(system, (2, 3)) == {}
    engine = make_engine()
    engine = replace(engine, options=engine.options | {"-C"})
    found = choices([engine], SMALL, Host(1, None, sets), summary(), cores=4)
    at = point(found, CPUs="one of each core")
    assert "-C 0xd" in " ".join(found.arms(at, model, SMALL)[0].command)
    assert "-C 0xd" in server(found, at, model)
    assert found.call(at, model, SMALL, {})[1] == ["CPUs"]


def test_a_smaller_cache_is_tried_only_when_asked_for(
    make_engine: MakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [make_engine(), make_engine("ik_llama.cpp")]
    monkeypatch.setattr(Engine, "takes", lambda self, *words: self.name == "llama.cpp" or "ftq4" not in words)
    assert "KV cache" not in names(choices(engines, SMALL, Host(1, None), summary()))
    found = choices(engines, SMALL, Host(1, None), summary(), lossy=True)
    at = point(found, KV_cache="ftq4+128")
    assert found.space.allowed(at)
    assert not found.space.allowed(("ik_llama.cpp", *at[1:]))
    assert not found.space.allowed(point(found, KV_cache="q8_0", flash_attention="off"))
    assert found.lossy(at) == ("-ctk", "ftq4", "-ctv", "ftq4", "--kv-tail-tokens", "128", "--kv-sink-tokens", "4")
    assert found.lossy(found.space.default) == ()
    assert " ".join(found.lossy(at)) in server(found, at, model)
    call, lacking = found.call(at, model, SMALL, {"draft_model": "ngram"})
    assert "type_k='ftq4', type_v='ftq4', kv_tail_tokens=128, kv_sink_tokens=4" in call
    assert call.endswith("draft_model='ngram')")
    assert not lacking


def test_memory_bounds_the_cache_as_well(make_engine: MakeEngine) -> None:
    long = Workload(1 << 20, 4)
    # 8 layers, 4 heads of 64 values, K and V: 8 KiB a token in f16, 8 GiB in all, and 4.25 with q8_0.
    found = choices([make_engine()], long, Host(1, 6 << 30), summary(), lossy=True)
    assert found.space.allowed(point(found, KV_cache="q8_0"))
    assert not found.space.allowed(point(found, threads="2", batch_threads="2"))


class Devices:
    """What `--list-devices` says."""

    def __init__(self, **found: tuple[str, ...]) -> None:
        self._found = found

    def __call__(self, engine: Engine) -> tuple[str, ...]:
        return self._found.get(engine.variant, ())


def test_devices_bring_layers_fit_splits_and_rivals(
    make_engine: MakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(cuda=("CUDA0", "CUDA1"))
    monkeypatch.setattr(Engine, "devices", lambda self: devices(self))
    cpu, gpu = make_engine(), make_engine(variant="cuda", key="b" * 64)
    gpu = replace(gpu, options=gpu.options | {"-fitt", "--n-cpu-moe"}, splits=frozenset({"none", "layer", "tensor"}))
    found = choices([cpu, gpu], SMALL, Host(1, None), summary(expert_count=8))
    labels = list(found.engines)
    default = found.space.default
    assert found.rivals == ((labels[1], *default[1:]),)
    (rival,) = found.rivals
    assert "-fitt 1024" in " ".join(found.arms(rival, model, SMALL)[0].command)
    assert "-ngl" not in server(found, rival, model), "llama-server fits by itself"
    assert "-ngl" not in server(found, default, model)
    assert "n_gpu_layers='auto'" in found.call(rival, model, SMALL, {})[0]
    assert not found.space.allowed(point(found, GPU_layers="4")), "the processor's payload has no devices"
    part = (labels[1], *point(found, GPU_layers="4", split_mode="tensor", layers_with_experts_on_the_CPU="2")[1:])
    assert found.space.allowed(part)
    for words in ("-ngl 4", "-sm tensor", "--n-cpu-moe 2"):
        assert words in server(found, part, model)
    changed = dict(zip((one.name for one in found.space.dimensions), rival, strict=True))
    changed["op-offload minimum"] = "128"
    assert found.environment(tuple(changed.values()))["GGML_OP_OFFLOAD_MIN_BATCH"] == "128"
    (first, *_) = found.arms(tuple(changed.values()), model, SMALL)
    assert first.environment["GGML_OP_OFFLOAD_MIN_BATCH"] == "128"


def test_without_a_device_nothing_of_them_is_tried(make_engine: MakeEngine) -> None:
    found = choices([make_engine()], SMALL, Host(1, None), summary(expert_count=8))
    assert not {"GPU layers", "split mode", "op-offload minimum"} & names(found)
    assert not found.rivals
    assert any("no payload finds a device" in one for one in found.not_tried)


def test_devices_are_what_the_program_lists(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Available devices:\n  CUDA0: NVIDIA H200 (143167 MiB, 142000 MiB free)\n  Vulkan1: llvmpipe (1 MiB, 1 MiB free)\n"
    monkeypatch.setattr("forkyard_llm.measuring.engine.said_by", lambda *_: (0, said))
    engine = make_engine()
    assert replace(engine, options=engine.options | {"--list-devices"}).devices() == ("CUDA0", "Vulkan1")
    assert engine.devices() == ()
    assert replace(engine, for_device=True).devices() == ("avx2",)


@pytest.mark.parametrize("batch_threads", ["4", "2"])
def test_generation_behind_tokens(make_engine: MakeEngine, model: Path, batch_threads: str) -> None:
    deep = Workload(16, 4, depth=64)
    found = choices([make_engine(), make_engine("ik_llama.cpp")], deep, Host(1, None), summary(), cores=4)
    at = point(found, threads="4", batch_threads=batch_threads)
    prompt, generation = found.arms(at, model, deep)
    assert (prompt.tests, generation.tests) == (("pp16",), ("tg4 @ d64",))
    assert f"-t {batch_threads}" in " ".join(prompt.command)
    assert "-t 4 -p 0 -n 4 -d 64" in " ".join(generation.command)
    (other,) = found.arms(("ik_llama.cpp", *at[1:]), model, deep)
    assert "-p 16 -n 0 -gp 64,4" in " ".join(other.command)
    assert other.tests == ("pp16", "tg4 @ d64")
    assert "-c 256" in server(found, at, model, deep)


def test_requests_at_once_are_measured_through_the_server(make_engine: MakeEngine, model: Path) -> None:
    several = Workload(16, 4, parallel=3)
    found = choices([make_engine()], several, Host(1, None), summary())
    (arm,) = found.arms(found.space.default, model, several)
    assert Path(arm.command[0]).name == "llama-server"
    assert arm.tests == ("all tokens",)
    assert several.tokens("all tokens") == 60
    assert "-c 768 -np 3" in " ".join(arm.command)
    assert "n_parallel=3" in found.call(found.space.default, model, several, {})[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, set()), ({"expert_count": 8}, {"fused experts"}), ({"attention.kv_lora_rank": 512}, {"MLA"})],
)
def test_what_only_some_models_have(make_engine: MakeEngine, values: Any, expected: set[str]) -> None:
    engine = make_engine("ik_llama.cpp")
    engine = replace(engine, options=engine.options | {"-mla", "-fmoe"})
    found = choices([engine], SMALL, Host(1, None), summary(**values))
    assert names(found) & {"fused experts", "MLA"} == expected


@pytest.mark.parametrize(("option", "words"), [("--no-warmup", "--no-warmup"), ("-w", "-w 0"), ("", "")])
def test_processors_are_not_warmed_up_and_devices_are(
    make_engine: MakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, option: str, words: str
) -> None:
    engine = make_engine()
    engine = replace(engine, options=engine.options | {option} - {""})
    found = choices([engine], SMALL, Host(1, None), summary())
    (arm,) = found.arms(found.space.default, model, SMALL)
    assert f"-n 4 {words} -r 1".replace("  ", " ") in " ".join(arm.command)
    monkeypatch.setattr(Engine, "devices", lambda _: ("CUDA0",))
    (arm,) = found.arms(found.space.default, model, SMALL)
    assert "-n 4 -r 1" in " ".join(arm.command)
