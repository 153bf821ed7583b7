"""ik_llama.cpp's `-sm graph`: what a model that is split among devices computes is what it computes as a whole.

No GPU: native/graph_devices.cpp gives the engine several devices in host memory, by the names of ggml-cuda.h. It is
compiled with the two files of the engine that know GPUs, from the payload's own patches, and preloaded into a child
process; graphs, scheduler and caches are the payload's. What a GPU computes, and how it waits for another, is not tested.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ..conftest import forkyard
from . import graph_models

STACK = "quantized-kv-tensor-split"
PROBE = Path(__file__).with_name("graph_probe.py")
DEVICES = Path(__file__).with_name("native") / "graph_devices.cpp"
UNITS = ("llama", "llama-model-loader")
"""The files that are compiled in another way for GPUs."""
TIMEOUT = 1800.0
"""Seconds for one child or compiler; they need one and a minute."""
SAME = 1e-3
"""Relative error of logits that differ by the order of sums alone; measured: at most 2e-5."""
CLOSE = 0.03
"""The same after keys were rounded to q8_0 once more; measured: 0.0095, and 0.5 and more where they are wrong."""

WHOLE: dict[str, Any] = {
    "split": "none",
    "n_gpu_layers": 99,
    "devices": "",
    "type_k": "f16",
    "type_v": "f16",
    "flash_attn": True,
    "offload_kqv": True,
    "k_hadamard": False,
    "v_hadamard": False,
    "mla": 3,
    "lacks": "",
}
Q8_0 = {"type_k": "q8_0", "type_v": "q8_0"}


@dataclass(frozen=True)
class Answer:
    """What a child ended with, said, and computed if it ended well."""

    status: int
    said: str
    logits: NDArray[np.float64]


def difference(one: Answer, other: Answer) -> float:
    """Relative error of logits."""
    for answer in (one, other):
        assert answer.status == 0, answer.said[-2000:]
    return float(np.linalg.norm(one.logits - other.logits) / np.linalg.norm(other.logits))


class Graph:
    """An engine with several devices, and the same engine with none."""

    def __init__(self, payload: Path, library: Path, folder: Path) -> None:
        self.payload, self.library, self.folder = payload, library, folder
        self._answers: dict[str, Answer] = {}

    def model(self, name: str) -> Path:
        """The tiny model of that name."""
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            graph_models.MODELS[name](path)
        return path

    def whole(self, model: str, scenario: str = "plain", **how: Any) -> Answer:
        """The scenario without a split; asked for again, the same answer."""
        key = json.dumps([model, scenario, how], sort_keys=True)
        if key not in self._answers:
            self._answers[key] = self._run(model, scenario, None, {**WHOLE, **how})
        return self._answers[key]

    def split(self, model: str, scenario: str = "plain", n: int = 2, **how: Any) -> Answer:
        """The scenario with the model split among ``n`` devices."""
        return self._run(model, scenario, n, {**WHOLE, "split": "graph", **how})

    def _run(self, model: str, scenario: str, n: int | None, how: dict[str, Any]) -> Answer:
        output = self.folder / "logits"
        output.unlink(missing_ok=True)
        job = {
            "payload": str(self.payload),
            "model": str(self.model(model)),
            "scenario": scenario,
            "session": str(self.folder / "session"),
            "output": str(output),
            **how,
        }
        environment = dict(os.environ)
        if n is not None:
            environment |= {"GRAPH_DEVICES": str(n), "GRAPH_LACKS": how["lacks"], "LD_PRELOAD": str(self.library)}
        done = subprocess.run(
            [sys.executable, PROBE, json.dumps(job)],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
        logits = np.frombuffer(output.read_bytes(), dtype=np.float32) if output.exists() else np.zeros(0)
        return Answer(done.returncode, done.stdout + done.stderr, logits.astype(np.float64))


def git(folder: Path, *arguments: str) -> list[str]:
    """The lines that git answers in a folder."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout.split()


def compiled(payload: Path, tree: Path, folder: Path, units: tuple[str, ...]) -> Path:
    """Files of the engine as they are for GPUs, with devices in host memory, for preloading into a payload."""
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None
    folders = [f"-I{tree / part}" for part in ("src", "include", "ggml/src", "ggml/include")]
    options = ["-DLLAMA_SHARED", "-DGGML_SHARED", "-DGGML_USE_CUDA", "-w", "-O1", "-std=gnu++20", "-fPIC"]
    folder.mkdir()

    def make(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        command = [compiler, *options, *folders, "-c", str(source), "-o", str(to)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr[-4000:]
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(make, [*(tree / "src" / f"{unit}.cpp" for unit in units), DEVICES]))
    library = folder / "libgraph-devices.so"
    names = json.loads((payload / "manifest.json").read_text())["libraries"]
    linked = [str(payload / names[name]) for name in ("llama", "ggml")]
    command = [compiler, "-shared", "-o", str(library), *map(str, objects), *linked]
    command += [f"-Wl,-rpath,{Path(linked[0]).parent}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


@pytest.fixture(scope="module")
def tree(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A function to the engine's source with the patches of the payload; if it is told so, without those of the stack.

    Its structures have to be those of the payload's other objects, so later stacks are in both.
    """
    manifest = json.loads((engine_payload("ik_llama.cpp") / "manifest.json").read_text())
    counts = {stack["name"]: len(stack["patches"]) for stack in manifest["stacks"] if stack["patches"]}
    last = list(counts)[-1] if counts else STACK
    folder, alone = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("source") / "alone"

    def commits(stack: str, path: Path) -> list[str]:
        if not path.exists():
            forkyard("stack", "edit", stack, "--engine", "ik_llama.cpp", "--path", str(path))
        base = git(path, "rev-parse", "refs/forkyard/base")
        return base + git(path, "rev-list", "--reverse", "refs/forkyard/base..HEAD")

    whole = commits(last, folder)[counts.get(last, 0)]

    def source(without: bool) -> Path:
        git(folder, "checkout", "--quiet", "--force", "--detach", whole)
        if without:
            first, *_, end = commits(STACK, alone)
            git(folder, "fetch", "--quiet", str(alone), "HEAD")
            name = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
            (stack,) = git(folder, *name, "commit-tree", f"{end}^{{tree}}", "-p", first, "-m", "stack")
            # Where a later stack changes lines of this one, they go.
            git(folder, *name, "revert", "--no-commit", "-X", "theirs", stack)
        return folder

    return source


@pytest.fixture(scope="module")
def graph(
    engine_payload: Callable[[str], Path],
    tree: Callable[[bool], Path],
    lift_limit: Callable[[], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Graph:
    """The engine under test with devices."""
    lift_limit()
    payload = engine_payload("ik_llama.cpp")
    folder = tmp_path_factory.mktemp("graph")
    return Graph(payload, compiled(payload, tree(False), folder / "units", UNITS), folder)


@pytest.mark.patch
@pytest.mark.parametrize(
    ("model", "n"), [("four", 2), ("four", 5), ("three", 2), ("three", 3), ("parallel", 2), ("hybrid", 2)]
)
def test_the_parts_compute_what_the_whole_computes(graph: Graph, model: str, n: int) -> None:
    assert difference(graph.split(model, n=n), graph.whole(model)) < SAME


@pytest.mark.patch
@pytest.mark.parametrize(
    ("scenario", "cache"),
    [
        ("steps", {}),
        ("plain", Q8_0),
        ("plain", {"type_k": "q8_0", "type_v": "q4_0"}),
        ("plain", {**Q8_0, "k_hadamard": True, "v_hadamard": True}),
        ("state", Q8_0),
        ("file", Q8_0),
        ("sequence", Q8_0),
        ("sequence_file", Q8_0),
        ("copied", Q8_0),
    ],
    ids=str,
)
def test_the_parts_keep_what_the_whole_keeps(graph: Graph, scenario: str, cache: dict[str, Any]) -> None:
    assert difference(graph.split("four", scenario, **cache), graph.whole("four", **cache)) < SAME


@pytest.mark.patch
@pytest.mark.parametrize("lacks", ["FLASH_ATTN_EXT", "HADAMARD"])
def test_what_a_device_lacks_the_host_computes(graph: Graph, lacks: str) -> None:
    cache = {**Q8_0, "k_hadamard": True, "v_hadamard": True}
    assert difference(graph.split("four", lacks=lacks, **cache), graph.whole("four", **cache)) < SAME


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize(("type_k", "type_v"), [("q5_1", "q5_1"), ("f16", "q5_0"), ("q5_0", "f16")])
def test_cache_types_that_nothing_computes_with_are_refused(graph: Graph, type_k: str, type_v: str) -> None:
    reason = f"nothing here computes flash attention with K cache type {type_k} and V cache type {type_v}"
    for answer in (
        graph.whole("four", type_k=type_k, type_v=type_v),
        graph.split("four", type_k=type_k, type_v=type_v, lacks="FLASH_ATTN_EXT"),
    ):
        assert (answer.status, reason in answer.said) == (1, True), answer.said[-2000:]


@pytest.mark.patch("cache-type-options")
@pytest.mark.parametrize(
    ("split", "types", "reason"),
    [
        ("graph", {"type_k": "ftq4"}, "type ftq4 needs a model that is not split within its layers (-sm graph"),
        ("layer", {"type_v": "ftq3"}, "type ftq3 needs host memory (--no-kv-offload)"),
    ],
)
def test_cache_types_of_the_cpu_alone_are_refused(graph: Graph, split: str, types: dict[str, Any], reason: str) -> None:
    answer = graph.split("four", split=split, **types)
    assert (answer.status, reason in answer.said) == (1, True), answer.said[-2000:]


@pytest.mark.patch("cache-type-options")
def test_cache_types_of_the_cpu_alone_work_in_host_memory(graph: Graph) -> None:
    cache = {"type_k": "ftq4", "type_v": "ftq3"}
    assert (
        difference(graph.split("four", split="layer", offload_kqv=False, **cache), graph.whole("four", **cache)) < SAME
    )


@pytest.mark.patch("graph-extra-parts")
@pytest.mark.parametrize("scenario", ["plain", "steps"])
def test_attention_beside_the_ffn_is_on_fewer_devices(graph: Graph, scenario: str) -> None:
    assert difference(graph.split("parallel", scenario, 3), graph.whole("parallel")) < SAME


@pytest.mark.patch("graph-one-part")
@pytest.mark.parametrize(("n", "scenario"), [(2, "plain"), (3, "state")])
def test_one_key_value_head_is_on_one_device(graph: Graph, n: int, scenario: str) -> None:
    assert difference(graph.split("one", scenario, n), graph.whole("one")) < SAME


@pytest.mark.patch("graph-refusals")
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"offload_kqv": False}, "cannot be used with --no-kv-offload"),
        ({"flash_attn": False}, "cannot be used with flash attention turned off"),
        ({"devices": "CUDA1,CUDA2"}, "choose GPUs with CUDA_VISIBLE_DEVICES"),
    ],
    ids=str,
)
def test_what_a_split_cannot_do_is_refused(graph: Graph, how: dict[str, Any], reason: str) -> None:
    answer = graph.split("four", n=3, **how)
    assert (answer.status, reason in answer.said) == (1, True), answer.said[-2000:]


@pytest.mark.patch
def test_without_gpus_a_split_is_refused(graph: Graph) -> None:
    answer = graph.split("four", n=0)
    assert answer.status == 1
    assert "not possible to use split mode 'graph' with less than 2 devices" in answer.said


@pytest.mark.patch("no-device")
def test_a_build_for_gpus_without_one_computes_on_the_cpu(graph: Graph) -> None:
    alone = graph.split("four", n=0, split="layer")
    assert alone.status == 0, alone.said[-2000:]
    assert np.array_equal(alone.logits, graph.whole("four").logits)


def check_latent(graph: Graph, model: str, scenario: str, n: int, mla: int, type_k: str) -> None:
    """Latent attention is split by layers instead, which the engine says, and computes what one device does."""
    answer = graph.split(model, scenario, n, mla=mla, type_k=type_k)
    assert "Split mode 'graph' is not supported for this model" in answer.said
    assert difference(answer, graph.whole(model, scenario, mla=mla, type_k=type_k)) < SAME


@pytest.mark.patch
@pytest.mark.parametrize(
    ("model", "scenario", "n", "mla", "type_k"),
    [
        ("latent", "plain", 2, 1, "f16"),
        ("latent", "steps", 3, 2, "q8_0"),
        ("latent", "sequence", 2, 3, "f16"),
        ("latent-whole", "state", 3, 3, "q8_0"),
    ],
)
def test_latent_attention_is_split_by_layers_which_is_said(
    graph: Graph, model: str, scenario: str, n: int, mla: int, type_k: str
) -> None:
    check_latent(graph, model, scenario, n, mla, type_k)


@pytest.mark.deep
@pytest.mark.parametrize("type_k", ["f16", "q8_0"])
@pytest.mark.parametrize("mla", [1, 2, 3])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("scenario", ["plain", "steps", "state", "file", "sequence", "sequence_file", "copied"])
@pytest.mark.parametrize("model", ["latent", "latent-whole"])
def test_latent_attention_on_any_number_of_devices(
    graph: Graph, model: str, scenario: str, n: int, mla: int, type_k: str
) -> None:
    check_latent(graph, model, scenario, n, mla, type_k)


@pytest.mark.patch("graph-kshift")
@pytest.mark.parametrize("cache", [{}, Q8_0, {"type_k": "q4_0"}], ids=str)
def test_a_context_shift_turns_every_part(graph: Graph, cache: dict[str, Any]) -> None:
    shifted = graph.split("shallow", "moved", **cache)
    assert difference(shifted, graph.whole("shallow", "moved", **cache)) < SAME
    if cache != {"type_k": "q4_0"}:
        assert difference(shifted, graph.whole("shallow", "later", **cache)) < CLOSE


@pytest.mark.patch("kshift-hadamard")
@pytest.mark.parametrize("split", ["split", "whole"])
def test_a_context_shift_undoes_the_transform_of_keys(graph: Graph, split: str) -> None:
    cache = {**Q8_0, "k_hadamard": True}
    run = graph.split if split == "split" else graph.whole
    assert difference(run("shallow", "moved", **cache), graph.whole("shallow", "later", **cache)) < CLOSE


@pytest.mark.patch("kshift-refusals")
def test_keys_with_a_scale_for_each_head_are_not_shifted(graph: Graph) -> None:
    answer = graph.whole("shallow", "moved", type_k="q8_kv")
    assert (answer.status, "no shift" in answer.said) == (1, True), answer.said[-2000:]


@pytest.mark.patch("graph-state-copy")
def test_a_copied_sequence_has_its_recurrent_state(graph: Graph) -> None:
    assert difference(graph.split("hybrid", "copied"), graph.whole("hybrid")) < SAME


@pytest.mark.patch("graph-defrag")
def test_holes_are_closed_in_every_part(graph: Graph) -> None:
    closed = graph.split("shallow", "defragmented")
    assert difference(closed, graph.whole("shallow", "defragmented")) < SAME
    assert difference(closed, graph.whole("shallow")) < CLOSE


@pytest.mark.patch("copy-quantized")
@pytest.mark.parametrize("split", ["split", "whole"])
@pytest.mark.parametrize("cache", [Q8_0, {"type_k": "q6_0", "type_v": "iq4_nl"}], ids=str)
def test_holes_of_a_quantized_cache_are_closed(graph: Graph, split: str, cache: dict[str, Any]) -> None:
    run = graph.split if split == "split" else graph.whole
    assert difference(run("shallow", "defragmented", **cache), graph.whole("shallow", **cache)) < CLOSE


@pytest.mark.patch("state-q8-kv")
@pytest.mark.parametrize("scenario", ["state", "file"])
def test_keys_with_a_scale_for_each_head_are_saved(graph: Graph, scenario: str) -> None:
    cache = {"type_k": "q8_kv"}
    assert difference(graph.whole("four", scenario, **cache), graph.whole("four", **cache)) < SAME


@pytest.mark.patch("graph-state")
@pytest.mark.parametrize(
    ("model", "scenario", "type_k"),
    [
        ("hybrid", "file", "f16"),
        ("hybrid", "sequence_file", "f16"),
        ("four", "state", "q8_kv"),
        ("four", "file", "q8_kv"),
    ],
)
def test_a_state_is_saved_and_restored(graph: Graph, model: str, scenario: str, type_k: str) -> None:
    assert difference(graph.split(model, scenario, type_k=type_k), graph.whole(model, type_k=type_k)) < SAME


@pytest.mark.patch
@pytest.mark.parametrize(("written", "read"), [(2, 0), (0, 2), (2, 3)])
def test_keys_and_values_move_between_splits(graph: Graph, written: int, read: int) -> None:
    def run(scenario: str, n: int) -> Answer:
        # Not from memory: the file is what counts.
        return graph._run("four", scenario, n or None, {**WHOLE, **Q8_0, "split": "graph" if n else "none"})

    run("save", written)
    assert difference(run("load", read), graph.whole("four", **Q8_0)) < SAME


@pytest.mark.patch("graph-state-layout")
@pytest.mark.parametrize(("written", "read"), [(2, 0), (0, 2)])
def test_a_recurrent_state_stays_in_its_split(graph: Graph, written: int, read: int) -> None:
    def run(scenario: str, n: int) -> Answer:
        return graph._run("hybrid", scenario, n or None, {**WHOLE, "split": "graph" if n else "none"})

    assert run("save", written).status == 0
    assert difference(run("load", written), graph.whole("hybrid")) < SAME
    answer = run("load", read)
    assert (answer.status, "saved with another split" in answer.said) == (1, True), answer.said[-2000:]


@pytest.mark.patch("cache-head-size")
@pytest.mark.parametrize(
    ("model", "cache", "reason"),
    [
        ("wide", {**Q8_0, "k_hadamard": True}, "need head sizes that are powers of 2"),
        ("wide", {**Q8_0, "v_hadamard": True}, "need head sizes that are powers of 2"),
        ("odd", Q8_0, "has blocks that do not fit heads"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_heads_is_refused(graph: Graph, model: str, cache: dict[str, Any], reason: str) -> None:
    answer = graph.whole(model, **cache)
    assert (answer.status, reason in answer.said) == (1, True), answer.said[-2000:]


@pytest.mark.deep
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("model", ["four", "three", "one", "hybrid"])
@pytest.mark.parametrize("type_v", ["f16", "q8_0", "q6_0", "q4_0", "iq4_nl"])
@pytest.mark.parametrize("type_k", ["f16", "q8_0", "q6_0", "q4_0", "iq4_nl", "q8_kv"])
def test_every_cache_type_on_every_number_of_devices(
    graph: Graph, model: str, type_k: str, type_v: str, n: int
) -> None:
    cache = {"type_k": type_k, "type_v": type_v}
    whole = graph.whole(model, **cache)
    answer = graph.split(model, "state", n, **cache)
    assert answer.status == whole.status, answer.said[-2000:]
    if whole.status == 0:
        assert difference(answer, whole) < SAME


FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "graph-kshift": ("shallow", "moved", {}),
    "graph-refusals": ("four", "plain", {"offload_kqv": False}),
    "graph-refusals-flash": ("four", "plain", {"flash_attn": False}),
    "graph-state-copy": ("hybrid", "copied", {}),
    "graph-defrag": ("shallow", "defragmented", {}),
    "graph-state": ("hybrid", "file", {}),
    "graph-extra-parts": ("parallel", "plain", {}),
    "no-device": ("four", "plain", {"split": "layer"}),
}


@pytest.mark.deep
@pytest.mark.parametrize("fault", FAULTS)
def test_the_pin_dies_without_the_stack(
    fault: str, graph: Graph, tree: Callable[[bool], Path], tmp_path: Path, lift_limit: Callable[[], None]
) -> None:
    """The same engine with the three files of libllama as they are without the stack."""
    library = graph.folder / "before" / "libgraph-devices.so"
    if not library.exists():
        lift_limit()
        compiled(graph.payload, tree(True), graph.folder / "before", (*UNITS, "llama-build-context"))
    before = Graph(graph.payload, library, tmp_path)
    model, scenario, how = FAULTS[fault]
    devices = 0 if fault == "no-device" else 3
    assert before.split(model, scenario, devices, **how).status in {-signal.SIGSEGV, -signal.SIGABRT}
