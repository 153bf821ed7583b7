"""The engine with RPC, its stack and without it, on loopback servers.

Of tiny models logits are compared, of a probe that runs as a child; of published ones what they predict of a text.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
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
    mean_divergence,
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
TEXT = ROOT / "CONTRIBUTING.md"
CHANCE = 4.0 * math.sqrt(2.0)
"""Standard errors by which a split may diverge further than one device does.

A split adds in another order, and each rounding that falls the other way moves what follows: two sound runs differ by
chance. Both divergences are means over 254 tokens, whose standard error the engine gives. The difference of two such
means has the square root of two times that, and exceeds it four times once in 30,000 comparisons.
"""
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
        self.payload = payload
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
        model = split_models.write_model(case.model, self._models)
        output = self._models / "logits.f32"
        output.unlink(missing_ok=True)
        wish = {
            "payload": str(self.payload),
            "libraries": self._libraries,
            "endpoints": self.servers(case.devices, fresh=case.fresh),
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

    def servers(self, count: int, *, fresh: bool = False) -> list[str]:
        """Addresses of servers that live; a fresh one has computed nothing before."""
        if fresh:
            return self._serve(ENGINE, count)
        processes = self._serve.processes
        self._addresses = [address for address in self._addresses if processes[address].poll() is None]
        if len(self._addresses) < count:
            self._addresses += self._serve(ENGINE, count - len(self._addresses))
        return self._addresses[:count]


def split_over(addresses: Sequence[str]) -> list[str]:
    """The words that split a model over the servers; `--rpc` makes the devices that `-dev` names."""
    names = ",".join(f"RPC{number}" for number in range(len(addresses)))
    return ["--rpc", ",".join(addresses), "-dev", names, "-sm", "tensor", "-ngl", "99"]


def predict(
    tools: Path, model: Path, k: str, v: str, *more: str, preload: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Let the engine predict each token of the text; on the CPU alone, if no more is said."""
    words = ["-c", "256", "-b", "256", "--chunks", "2", "-t", "1", "-fa", "on", "-fit", "off", "-ctk", k, "-ctv", v]
    return subprocess.run(
        [str(tools / "llama-perplexity"), *more, "-m", str(model), "-f", str(TEXT), *words],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LD_PRELOAD": str(preload)} if preload else None,
        timeout=TIMEOUT_S,
        check=False,
    )


class Judge:
    """Compares what a model predicts with what it predicts on one device with an f16 cache.

    Perplexity is no judge of that: it is the likelihood of this one text, which a rounded cache raises or lowers by a
    tenth by chance, and K heads that are mixed up in one layer move it by less.
    """

    def __init__(self, tools: Path, folder: Path) -> None:
        self.tools = tools
        self._folder = folder
        self._whole = functools.cache(self._divergence)

    def _divergence(self, name: str, k: str, v: str, *split: str, preload: Path | None = None) -> tuple[float, float]:
        saved, model = self._folder / name, models.get(name)
        if not saved.exists():
            done = predict(self.tools, model, "f16", "f16", "--save-all-logits", str(saved))
            assert done.returncode == 0, done.stderr[-3000:]
        words = ("--kl-divergence-base", str(saved), "--kl-divergence")
        done = predict(self.tools, model, k, v, *split, *words, preload=preload)
        assert done.returncode == 0, done.stderr[-3000:]
        return mean_divergence(done.stdout)

    def divergence(self, name: str, k: str, v: str, *split: str, preload: Path | None = None) -> float:
        """Mean KL divergence of a published model that the words split, in nats."""
        return self._divergence(name, k, v, *split, preload=preload)[0]

    def limit(self, name: str, k: str, v: str) -> float:
        """What it may be: that of one device with the same cache, and chance.

        An f16 cache on one device does not diverge from itself. A split with it may as much as one device with q8_0
        does, which rounds more coarsely than a sum in another order.
        """
        mean, error = self._whole(name, *(("q8_0", "q8_0") if k == v == "f16" else (k, v)))
        return mean + CHANCE * error


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Judge]]:
    """A function from the folder of an engine's tools to the judge of what it predicts."""
    folder = tmp_path_factory.mktemp("predicted")
    yield lambda tools: Judge(tools, folder)
    # Those of a model that knows many words are 127 MiB.
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def without_stack(
    rpc_payload: Callable[[str], Payload], lift_limit: Callable[[], None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """A function that gives the package folder of the same engine without this stack, built now if none is named.

    It has the other stacks of the payload that is tested: `stack verify` tests payloads that lack some of the recipe's.
    """

    @functools.cache
    def payload() -> Path:
        lift_limit()
        out = tmp_path_factory.mktemp("without")
        wheel = payload_under_test(f"{ENGINE}-{VARIANT}-stock")
        if wheel is None:
            (out / "few.toml").write_text(FEW)
            names = [stack["name"] for stack in rpc_payload(ENGINE).manifest["stacks"]]
            stacks = ",".join(name for name in names if name not in LEFT_OUT) or "none"
            few = ["--variants-file", str(out / "few.toml")]
            forkyard("build", VARIANT, ENGINE, *few, "--stacks", stacks, "--out", str(out))
            (wheel,) = out.glob("forkyard_llama_cpp_few_rpc-*.whl")
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
