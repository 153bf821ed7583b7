"""The engine with RPC, its stack and without it, on loopback servers: logits of a probe that runs as a child."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from forkyard_llm import models
from forkyard_llm.payloads import Payload
from numpy.typing import NDArray

from ..conftest import (
    FEW,
    ROOT,
    RpcServers,
    forkyard,
    libraries_of,
    only_named_payloads,
    payload_under_test,
    unpack,
    whole_rpc_payload_under_test,
)
from . import split_models
from .split_probe import QUERIES

ENGINE = "llama.cpp"
VARIANT = "few-rpc"
# With the stack rpc a server that dies of a fault is an error like others, and no signal.
LEFT_OUT = ("quantized-kv-tensor-split", "rpc")
TIMEOUT_S = 600.0
"""For one child, which needs seconds: it is the watchdog for one that hangs."""
Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What split_probe.py does; ``devices`` 0 is the CPU without servers, ``fresh`` servers have done nothing before.

    In a server that has, memory holds what earlier cases left there, and not the NaN that split_probe.py puts there.
    """

    model: str
    devices: int
    k: str = "f16"
    v: str = "f16"
    act: str = "plain"
    split: str = "tensor"
    offload: bool = True
    unified: bool = True
    shares: tuple[float, ...] = ()
    fresh: bool = False

    def __str__(self) -> str:
        words = [self.model, str(self.devices), self.k, self.v, self.act, self.split]
        flags = (("host", not self.offload), ("apart", not self.unified), ("fresh", self.fresh))
        words += [word for word, said in flags if said]
        return "-".join(words + [str(share) for share in self.shares])


@dataclass(frozen=True)
class Failure:
    """The child ended without logits, by itself or (negative) by a signal."""

    status: int
    output: str


class Engine:
    """Runs cases on one payload, each in a child, with servers that are replaced once one has died."""

    def __init__(self, payload: Path, serve: RpcServers, models: Path) -> None:
        self._payload = payload
        self._libraries = libraries_of(payload)
        self._serve = serve
        self._models = models
        self._addresses: list[str] = []
        self.run = functools.cache(self._run)

    def logits(self, case: Case) -> Logits:
        """The logits of a case that must not fail, a row for each query."""
        result = self.run(case)
        assert not isinstance(result, Failure), f"{case}: exit {result.status}\n{result.output}"
        return result

    def _run(self, case: Case) -> Logits | Failure:
        published = case.model in models.known_models()
        model = models.get(case.model) if published else split_models.write_model(case.model, self._models)
        output = self._models / "logits.f32"
        output.unlink(missing_ok=True)
        wish = {
            "payload": str(self._payload),
            "libraries": self._libraries,
            "endpoints": self._servers(case),
            "model": str(model),
            "output": str(output),
            **{name: getattr(case, name) for name in ("split", "shares", "k", "v", "act", "offload", "unified")},
        }
        command = [sys.executable, "-m", "tests.integration.split.split_probe", json.dumps(wish)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_"))}
        environment["GGML_NO_BACKTRACE"] = "1"
        try:
            done = subprocess.run(
                command,
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
        if done.returncode != 0:
            return Failure(done.returncode, done.stderr[-2000:])
        values: NDArray[np.float32] = np.fromfile(output, dtype=np.float32)
        return values.reshape(QUERIES, -1).astype(np.float64)

    def _servers(self, case: Case) -> list[str]:
        if case.fresh:
            return self._serve(ENGINE, case.devices)
        processes = self._serve.processes
        self._addresses = [address for address in self._addresses if processes[address].poll() is None]
        if len(self._addresses) < case.devices:
            self._addresses += self._serve(ENGINE, case.devices - len(self._addresses))
        return self._addresses[: case.devices]


@pytest.fixture(scope="session")
def without_stack(lift_limit: Callable[[], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A function that gives the package folder of the same engine without this stack, built now if none is named."""

    @functools.cache
    def payload() -> Path:
        lift_limit()
        out = tmp_path_factory.mktemp("without")
        wheel = payload_under_test(f"{ENGINE}-{VARIANT}-stock")
        if wheel is None:
            (out / "few.toml").write_text(FEW)
            recipe = tomllib.loads((ROOT / "recipes" / f"{ENGINE}.toml").read_text())
            stacks = ",".join(stack for stack in recipe["stacks"] if stack not in LEFT_OUT)
            few = ["--variants-file", str(out / "few.toml")]
            forkyard("build", VARIANT, ENGINE, *few, "--stacks", stacks, "--out", str(out))
            (wheel,) = out.glob("forkyard_llama_cpp_*.whl")
        unpack(wheel, out)
        (found,) = (path.parent for path in out.glob("*/manifest.json"))
        return found

    return payload


@pytest.fixture(scope="module")
def patched(
    rpc_payload: Callable[[str], Payload], rpc_servers: RpcServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """The engine as the recipe has it."""
    named = payload_under_test(f"{ENGINE}-{VARIANT}") is not None or whole_rpc_payload_under_test(ENGINE)
    if only_named_payloads() and not named:
        pytest.skip(f"{VARIANT} of {ENGINE} is not under test")
    yield Engine(rpc_payload(ENGINE).root, rpc_servers, tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def stock(
    patched: Engine,
    without_stack: Callable[[], Path],
    rpc_servers: RpcServers,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    """The engine without this stack; the servers, which the stack does not touch, are the patched one's."""
    yield Engine(without_stack(), rpc_servers, tmp_path_factory.mktemp("stock"))
