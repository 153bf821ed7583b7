"""Upstream's own test of architectures with the cases that the stack adds, on the payload and RPC servers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm.payloads import Payload

from ..conftest import FEW, RpcServers, forkyard, libraries_of, only_named_payloads
from .conftest import ENGINE, TIMEOUT_S, VARIANT

# One KV head, grouped heads, a hybrid, a sliding window, and Q, K and V in one matrix: each of them fails on the pin.
ARCHITECTURES = ("qwen3", "afmoe", "qwen3next", "gemma3", "falcon")


@pytest.fixture(scope="module")
def program(rpc_payload: Callable[[str], Payload], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test, compiled from the tree that the payload is made of, beside the payload's tools."""
    if only_named_payloads():
        pytest.skip("the tree of a payload that is named is not known")
    payload, folder = rpc_payload(ENGINE), tmp_path_factory.mktemp("upstream")
    (folder / "few.toml").write_text(FEW)
    (plan,) = forkyard("plan", VARIANT, ENGINE, "--variants-file", str(folder / "few.toml"))["plans"]
    last = [stack["name"] for stack in plan["stacks"] if stack["patches"]][-1]
    tree = folder / "tree"
    forkyard("stack", "edit", last, "--engine", ENGINE, "--path", str(tree))
    found = payload.root / "bin" / "test-llama-archs"
    libraries = [*libraries_of(payload.root).values(), *map(str, (payload.root / "lib").glob("libllama-common-*.so"))]
    libraries = [path for path in libraries if Path(path).parent.name == "lib"]
    command = ["c++", "-std=c++17", "-O0", "-DGGML_SHARED", "-DLLAMA_SHARED", "-DGGML_BACKEND_SHARED", "-I."]
    command += ["-Iinclude", "-Iggml/include", "-Icommon", "-Isrc", "tests/test-llama-archs.cpp", "-o", str(found)]
    subprocess.run([*command, *libraries, "-Wl,-rpath,$ORIGIN/../lib"], cwd=tree, check=True, timeout=TIMEOUT_S)
    return found


@pytest.mark.deep
@pytest.mark.parametrize("devices", [2, 3])
def test_every_architecture_is_right_when_it_is_split(program: Path, rpc_servers: RpcServers, devices: int) -> None:
    servers = ",".join(rpc_servers(ENGINE, devices))
    command = [program, "-a", f"^({'|'.join(ARCHITECTURES)})$", "-s", "1", "--rpc", servers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    # The last lines of its table may be lost as it ends.
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
