"""The engines with their stacks and as upstream has them: logits of a probe that runs as a child."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from forkyard_llm.payloads import Payload
from numpy.typing import NDArray

from ..conftest import (
    ROOT,
    SAME_BITS,
    RpcServers,
    libraries_of,
    on_software_vulkan,
    only_named_payloads,
    whole_rpc_payload_under_test,
)
from ..numa import arch_models
from .tail_probe import QUERIES

ENGINE = "llama.cpp"
IK = "ik_llama.cpp"
TIMEOUT_S = 600.0
"""For one child, which needs seconds: it is the watchdog for one that hangs."""
Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What tail_probe.py does; ``model`` is a tiny one's name."""

    model: str = "dense"
    k: str = "q4_0"
    v: str = "q4_0"
    tail: int = 0
    sinks: int = 0
    center: int | None = None
    act: str = "plain"
    length: int = 48
    step: int = 16
    ubatch: int = 32
    flash: bool = True
    unified: bool = True
    split: str = "layer"
    devices: int = 0
    """RPC servers, each with its CPU; 0 is the CPU without them."""
    hadamard: bool = False
    """Whether ik_llama.cpp transforms K and V, which llama.cpp does by itself."""
    layers: str = ""
    """Types of some layers."""
    state: str = ""
    """A file that an act writes or reads."""

    def __str__(self) -> str:
        words = [
            self.model,
            self.k,
            self.v,
            f"t{self.tail}",
            f"s{self.sinks}",
            self.act,
            f"{self.length}by{self.step}",
            f"u{self.ubatch}",
        ]
        said = {"plain-attention": not self.flash, "apart": not self.unified, "hadamard": self.hadamard}
        words += [word for word, is_said in said.items() if is_said]
        words += [] if self.center is None else [f"center{self.center}"]
        words += [self.layers] if self.layers else []
        words += [f"{self.split}{self.devices}"] if self.devices else []
        return "-".join(words)


@dataclass(frozen=True)
class Failure:
    """The child ended without logits, by itself or (negative) by a signal."""

    status: int
    output: str


class Engine:
    """Runs cases on one payload, each in a child, with servers where a case has devices."""

    def __init__(
        self, name: str, payload: Path, models: Path, serve: RpcServers | None = None, device: str | None = None
    ) -> None:
        self.name = name
        self._device = device
        self.payload = payload
        self._models = models
        self._serve = serve
        self._addresses: list[str] = []
        self.run = functools.cache(self._run)
        self.said: dict[Case, str] = {}
        """What the child of a case wrote to its standard error."""

    def logits(self, case: Case) -> Logits:
        """The logits of a case that must not fail, a row for each query."""
        result = self.run(case)
        assert not isinstance(result, Failure), f"{case}: exit {result.status}\n{result.output}"
        return result

    def _run(self, case: Case) -> Logits | Failure:
        output = self._models / "logits.f32"
        output.unlink(missing_ok=True)
        wish = {
            **asdict(case),
            "engine": self.name,
            "endpoints": self._servers(case.devices),
            "device": self._device,
            "shares": [],
            "payload": str(self.payload),
            "libraries": libraries_of(self.payload),
            "model": str(arch_models.write_model(case.model, self._models)),
            "output": str(output),
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_"))}
        environment["GGML_NO_BACKTRACE"] = "1"
        environment |= on_software_vulkan() if self._device else {}
        # The tail's own attention cannot be switched off.
        environment |= SAME_BITS
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.integration.turboquant.tail_probe", json.dumps(wish)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"{case}: no end after {TIMEOUT_S:.0f} s")
        self.said[case] = done.stderr
        if done.returncode != 0:
            return Failure(done.returncode, done.stderr[-4000:])
        values: NDArray[np.float32] = np.fromfile(output, dtype=np.float32)
        return values.reshape(QUERIES, -1).astype(np.float64)

    def _servers(self, count: int) -> list[str]:
        if count > len(self._addresses):
            assert self._serve is not None
            self._addresses += self._serve(ENGINE, count - len(self._addresses))
        return self._addresses[:count]


def on_both(given: Iterable[Case], *more: Case) -> pytest.MarkDecorator:
    """Parametrize ``patched`` and ``case``: the cases on each engine that has what they ask for, and more on ik_llama.cpp.

    That engine has one buffer for all sequences and its tail needs flash attention.
    """
    cases = list(given)
    pairs = [(ENGINE, case) for case in cases]
    pairs += [(IK, case) for case in cases if case.unified and case.flash and not case.devices]
    pairs += [(IK, case) for case in more]
    ids = [f"{'ik-' if engine == IK else ''}{case}" for engine, case in pairs]
    return pytest.mark.parametrize(("patched", "case"), pairs, ids=ids, indirect=["patched"])


on_each_engine = pytest.mark.parametrize("patched", [ENGINE, IK], indirect=True)


@pytest.fixture(scope="session")
def patched(
    request: pytest.FixtureRequest,
    engine_payload: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    """An engine as its recipe has it, llama.cpp if the test does not say which."""
    name = getattr(request, "param", ENGINE)
    return Engine(name, engine_payload(name), tmp_path_factory.mktemp("tail"))


@pytest.fixture(scope="session")
def stock(patched: Engine, engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The same engine without stacks."""
    return Engine(patched.name, engine_payload(f"{patched.name}-stock"), tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def remote(
    rpc_payload: Callable[[str], Payload], rpc_servers: RpcServers, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """The engine as the recipe has it, with RPC."""
    if only_named_payloads() and not whole_rpc_payload_under_test(ENGINE):
        pytest.skip(f"no RPC of {ENGINE} is under test")
    return Engine(ENGINE, rpc_payload(ENGINE).root, tmp_path_factory.mktemp("remote"), rpc_servers)
