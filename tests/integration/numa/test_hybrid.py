"""Some layers on a device, the others on the CPU: what the CPU computes is mirrored, and the logits stay what they were.

The device is upstream's RPC server on loopback: to the engine it is a GPU, with memory of its own, which it cannot
touch. That needs an engine with that backend, which is built here and takes as long as any.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ..conftest import ROOT, forkyard, payload_under_test, unpack
from . import arch_models, cases
from .driver import MIRROR, SPLIT, Driver, Mode

pytestmark = [pytest.mark.patch("numa-split"), pytest.mark.deep]

ENGINES = os.environ.get("FORKYARD_TEST_HYBRID_ENGINES", ",".join(cases.ENGINES)).split(",")
START_S = 30.0
OFF = Mode()
MODES = (Mode(MIRROR, 2), Mode(MIRROR, 3), Mode(SPLIT, 2))
MODELS = ("dense", "dense-q4_0", "dense-q4_k", "experts", "experts-q4_k", "window", "latent", "hybrid-delta")
RECIPES = {
    "llama.cpp": {
        "GGML_RPC = false": "GGML_RPC = true",
        '"llama-quantize"]': '"llama-quantize", "ggml-rpc-server"]',
        '"ggml-cpu", "ggml"': '"ggml-cpu", "ggml-rpc", "ggml"',
    },
    "ik_llama.cpp": {
        "GGML_RPC = false": "GGML_RPC = true",
        '"llama-quantize"]': '"llama-quantize", "rpc-server"]',
    },
}
"""What turns the project's recipe of an engine into one with the backend."""


@pytest.fixture(scope="session")
def rpc_payload(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that builds an engine with the backend, and gives its package folder."""
    done: dict[str, Path] = {}

    def build(engine: str) -> Path:
        if engine not in done:
            folder = tmp_path_factory.mktemp("rpc")
            package = re.sub(r"[.-]", "_", f"forkyard_{engine}_rpc_{variant}")
            if named := payload_under_test(f"{engine}-rpc"):
                unpack(named, folder)
                done[engine] = folder / package
                return done[engine]
            text = (ROOT / "recipes" / f"{engine}.toml").read_text(encoding="utf-8")
            name = f"{engine}-rpc"
            for old, new in {f'name = "{engine}"': f'name = "{name}"', **RECIPES[engine]}.items():
                assert text.count(old) == 1, f"the recipe of {engine} does not have {old} once"
                text = text.replace(old, new)
            for beside in (ROOT / "recipes").glob(f"{engine}.*.tsv"):
                shutil.copy(beside, folder)
            recipe = folder / f"{name}.toml"
            recipe.write_text(text, encoding="utf-8")
            forkyard("build", variant, str(recipe), "--out", str(folder))
            (wheel,) = folder.glob(f"{package}-*.whl")
            unpack(wheel, folder)
            done[engine] = folder / package
        return done[engine]

    return build


@pytest.fixture(scope="session")
def hybrid(rpc_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(rpc_payload, tmp_path_factory.mktemp("hybrid"))


@pytest.fixture(scope="module", params=ENGINES)
def device(request: pytest.FixtureRequest, rpc_payload: Callable[[str], Path]) -> Iterator[tuple[str, str]]:
    """An engine, and the address of a server of it."""
    engine = request.param
    (server,) = (rpc_payload(engine) / "bin").glob("*rpc-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                break
            except OSError:
                assert process.poll() is None, f"the server ended with {process.returncode}"
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.1)
        yield engine, f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def requests(engine: str, tiny: Path) -> list[dict[str, Any]]:
    """Each model with its output on the device, and with its last layer, too; with that layer's cache there and here."""
    found = []
    for model in MODELS:
        path = arch_models.write_model(model, tiny)
        for layers in (1, 2):
            for offload in (True, False):
                seqs = 1 if engine == "ik_llama.cpp" else 2
                context = cases.context(engine, model, threads=3, seqs=seqs)
                context["params"] = {"offload_kqv": offload}
                name = f"{model}-{layers}-{'kv' if offload else 'no-kv'}"
                params = {**cases.load_params(engine, model).get("model_params", {}), "n_gpu_layers": layers}
                ops = cases.everything(model, seqs=seqs)
                found.append(cases.case(name, path, context, ops, mmap=layers == 1, model_params=params))
    return found


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_the_cpu_computes_is_mirrored(device: tuple[str, str], hybrid: Driver, tiny: Path, mode: Mode) -> None:
    engine, address = device
    asked = requests(engine, tiny)
    off = hybrid.run(engine, replace(OFF, device=address), asked)
    on = hybrid.run(engine, replace(mode, device=address), asked)
    alone = hybrid.run(engine, mode, [{**case, "model_params": {}} for case in asked[-1:]])

    def read(report: Any) -> int:
        return sum(node["local"] + node["remote"] for node in report["nodes"])

    for case in asked:
        answer = on.cases[case["name"]].ok
        assert answer.results == off.cases[case["name"]].ok.results, case["name"]
        assert answer.report is not None
        cases.check_nodes(answer.report, mode)
        assert read(answer.report) > 0
        if mode.strategy == MIRROR:
            assert all(span["mirrored"] and span["differs"] == 0 for span in answer.report["ranges"]), case["name"]
            assert [node["remote"] for node in answer.report["nodes"]] == [0] * mode.nodes, case["name"]
    # The device computes, indeed: the CPU reads less than without it.
    assert read(on.cases[asked[-1]["name"]].report) < 0.8 * read(alone.cases[asked[-1]["name"]].report)
