"""Some layers on a device, the others on the CPU: what the CPU computes is mirrored, and the logits stay what they were.

The device is upstream's RPC server on loopback: to the engine it is a GPU, with memory of its own, which it cannot
touch. That needs an engine with that backend, which is built if need be.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.payloads import Payload

from . import arch_models, cases
from .driver import MIRROR, SPLIT, Driver, Mode

pytestmark = [pytest.mark.patch("numa-split"), pytest.mark.deep]

ENGINES = os.environ.get("FORKYARD_TEST_HYBRID_ENGINES", ",".join(cases.ENGINES)).split(",")
OFF = Mode()
MODES = (Mode(MIRROR, 2), Mode(MIRROR, 3), Mode(SPLIT, 2))
MODELS = ("dense", "dense-q4_0", "dense-q4_k", "experts", "experts-q4_k", "window", "latent", "hybrid-delta")


@pytest.fixture(scope="session")
def hybrid(rpc_payload: Callable[[str], Payload], tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(lambda engine: rpc_payload(engine).root, tmp_path_factory.mktemp("hybrid"))


@pytest.fixture(scope="module", params=ENGINES)
def device(request: pytest.FixtureRequest, rpc_servers: Callable[..., list[str]]) -> tuple[str, str]:
    """An engine, and the address of a server of it."""
    (address,) = rpc_servers(request.param, 1)
    return request.param, address


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
