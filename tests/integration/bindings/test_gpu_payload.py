"""Payloads for GPUs of both engines: on a machine without any, and on Vulkan's software device.

Building them takes an hour for CUDA and some minutes for Vulkan: ``nox -s tests-deep`` does it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.payloads import Payload

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.recipes import load_variants
from forkyard.toolchain import detect
from forkyard.toolkits import ChosenToolkit, choose, remedy

from ..conftest import ROOT, on_software_vulkan
from .conftest import EXPECTED, PROMPT

pytestmark = pytest.mark.deep

EVERY = [("cuda13", "llama.cpp"), ("cuda13", "ik_llama.cpp"), ("vulkan", "llama.cpp")]
ASK = """
import json, logging, sys
sys.path[:] = json.loads(sys.argv[1])
logging.basicConfig(level="WARNING", format="%(message)s")
from forkyard_llm import Llama, UnsupportedOption, devices
model, prompt, tokens, options = sys.argv[2], sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5])
answer = {"devices": [(one.name, one.kind) for one in devices()]}
try:
    with Llama(model, n_ctx=256, n_threads=2, **options) as llm:
        answer["text"] = llm(prompt, max_tokens=tokens, temperature=0.0)["choices"][0]["text"]
        answer["title"] = llm.payload.title
except UnsupportedOption as error:
    answer["refused"] = str(error)
print(json.dumps(answer))
"""
# What the patches of our stacks and the KV cache types touch.
OPERATIONS = {
    "ROPE": r"type=f32,ne_a=\[128,32,2,1\]",
    "SET_ROWS": r"type_dst=(f16|bf16|q8_0|q4_0|iq4_nl|ftq[432]),.*ne=\[256,5,1,3\]",
    "CPY": r"type_src=f32,type_dst=(f16|bf16|q8_0|q4_0|iq4_nl|ftq[432]),.*256,4,4,4",
    "FLASH_ATTN_EXT": r"hsk=64,hsv=64,nh=4,.*kv=113,nb=1,mask=1,sinks=0,max_bias=0.0+,logit_softcap=0.0+,prec=f32",
}


def toolkit(variant: str) -> ChosenToolkit:
    variants, cache = load_variants(ROOT), Cache.default()
    backend = variants.variants[variant].backend
    assert backend is not None
    return choose(backend.toolkit, variants.toolkits[backend.toolkit], backend, detect(cache), cache)


@pytest.fixture(scope="session")
def payload_for(carrying: Callable[[str, str], Payload]) -> Callable[[str, str], Payload]:
    """A function from a variant and an engine to its payload, with the libraries that pip would install beside it."""

    def payload(variant: str, engine: str) -> Payload:
        kit = toolkit(variant)
        if kit.missing:
            pytest.skip(f"{variant} cannot be built here: {remedy(kit.missing)}")
        made = carrying(variant, engine)
        beside = made.root.parent / "nvidia" / "cu13"
        if variant == "cuda13" and not beside.exists():
            beside.parent.mkdir()
            folder = kit.folder(Cache.default(), Console())
            assert folder is not None
            beside.symlink_to(folder)
        return made

    return payload


def ask(model: Path, tokens: int = 2, env: dict[str, str] | None = None, **options: Any) -> tuple[dict[str, Any], str]:
    """What a process of its own answers, and what it says on standard error."""
    words = [sys.executable, "-c", ASK, json.dumps(sys.path), str(model), PROMPT, str(tokens), json.dumps(options)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600, env={**os.environ, **(env or {})})
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer, done.stderr


# No driver of Vulkan's, and no card of NVIDIA's even where there is one.
NO_GPU = {"VK_DRIVER_FILES": "/nonexistent.json", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(("variant", "engine"), EVERY)
def test_without_a_gpu_the_cpu_computes(
    payload_for: Callable[[str, str], Payload],
    alone: Callable[[Payload], None],
    smollm2: Path,
    variant: str,
    engine: str,
) -> None:
    payload = payload_for(variant, engine)
    alone(payload)
    for options in ({}, {"n_gpu_layers": 0}, {"n_gpu_layers": "auto"}):
        answer, said = ask(smollm2, env=NO_GPU, **options)
        assert answer["text"] == EXPECTED
        assert {kind for _, kind in answer["devices"]} == {"cpu"}
        assert said.count("has no GPU to use, and computes on the CPU: ") == 1
    answer, _ = ask(smollm2, env=NO_GPU, n_gpu_layers=1)
    assert f"n_gpu_layers=1 needs a GPU, and {payload.distribution} finds no GPU here (" in answer["refused"]


@pytest.mark.parametrize(("variant", "engine"), EVERY[:2])
def test_without_the_libraries_it_needs(
    payload_for: Callable[[str, str], Payload],
    alone: Callable[[Payload], None],
    smollm2: Path,
    tmp_path: Path,
    variant: str,
    engine: str,
) -> None:
    payload = payload_for(variant, engine)
    root = tmp_path / "elsewhere" / payload.root.name
    shutil.copytree(payload.root, root)
    alone(Payload(payload.distribution, engine, variant, root, payload.manifest))
    if any((Path(folder) / "libcudart.so.13").exists() for folder in _system_folders()):
        pytest.skip("this machine has a CUDA 13 of its own where the linker finds it")
    if engine == "llama.cpp":
        answer, said = ask(smollm2)
        assert answer["text"] == EXPECTED
        assert "pip install" in said
        assert "nvidia-cublas" in said
    else:
        # Linked: nothing of it loads.
        with pytest.raises(AssertionError, match="pip install .*nvidia-cublas"):
            ask(smollm2)


def _system_folders() -> list[str]:
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    return sorted({str(Path(line.split(" => ")[1]).parent) for line in listing.splitlines() if " => " in line})


@pytest.fixture
def software(
    software_vulkan: None, payload_for: Callable[[str, str], Payload], alone: Callable[[Payload], None]
) -> Payload:
    payload = payload_for("vulkan", "llama.cpp")
    alone(payload)
    return payload


def test_a_gpu_says_what_the_cpu_says(software: Payload, smollm2: Path, tmp_path: Path) -> None:
    """With weights in f32: the CPU rounds what it multiplies quantized weights with, and Vulkan does not."""
    model = tmp_path / "f32.gguf"
    command = [str(software.tool("llama-quantize")), "--allow-requantize", str(smollm2), str(model), "f32"]
    subprocess.run(command, check=True, capture_output=True, timeout=3600)
    cpu, _ = ask(model, 16, on_software_vulkan(0))
    gpu, said = ask(model, 16, on_software_vulkan(0), n_gpu_layers=-1)
    assert cpu["devices"] == gpu["devices"]
    assert "Vulkan0" in dict(gpu["devices"])
    assert gpu["text"] == cpu["text"]
    assert gpu["text"].startswith(EXPECTED)
    assert "has no GPU" not in said


def test_three_devices_at_once(software: Payload, smollm2: Path) -> None:
    answer, _ = ask(smollm2, 2, on_software_vulkan(0, 0, 0), n_gpu_layers=-1)
    assert [name for name, kind in answer["devices"] if kind != "cpu"] == ["Vulkan0", "Vulkan1", "Vulkan2"]
    assert answer["text"] == EXPECTED
    some, _ = ask(smollm2, 2, on_software_vulkan(0, 0, 0), n_gpu_layers=-1, devices=["Vulkan2", "Vulkan0"])
    assert some["text"] == EXPECTED


def test_operations_compute_what_the_cpu_does(software: Payload, tmp_path: Path) -> None:
    """Upstream's own test of operations, compiled against the payload and run beside its backends."""
    tree = Cache.default().tree("llama.cpp")
    root = tmp_path / software.root.name
    shutil.copytree(software.root, root)
    program = root / "bin" / "test-backend-ops"
    names = ("ggml", "ggml-base")
    compiler = detect(Cache.default()).cxx
    command = [str(compiler), "-O1", "-std=c++17", str(tree / "tests" / "test-backend-ops.cpp"), "-o", str(program)]
    command += [f"-I{tree}/ggml/include", f"-I{tree}/include", "-DGGML_SHARED", "-DGGML_BACKEND_SHARED"]
    command += [str(root / software.manifest["libraries"][name]) for name in names]
    command += ["-Wl,-rpath,$ORIGIN/../lib", "-pthread"]
    subprocess.run(command, check=True, timeout=3600)
    for operation, only in OPERATIONS.items():
        words = [str(program), "test", "-b", "Vulkan0", "-o", operation, "-p", only]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=3600,
            cwd=tmp_path,
            env={**os.environ, **on_software_vulkan()},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        assert "Backend Vulkan0: OK" in done.stdout.replace("\x1b[1;32m", "").replace("\x1b[0m", "")
        # A filter that chooses nothing, or a device that supports nothing, proves nothing.
        ran = [line for line in done.stdout.splitlines() if f"{operation}(" in line and "OK" in line]
        assert len(ran) >= 4, done.stdout[-3000:]
