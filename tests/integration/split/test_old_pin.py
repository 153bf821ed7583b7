"""The older pin of llama.cpp: a quantized KV cache under tensor split, on RPC servers of this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import models

from ..conftest import (
    ROOT,
    forkyard,
    only_named_payloads,
    payload_under_test,
    unpack,
    whole_rpc_payload_under_test,
)

RECIPE, NEWER = "llama.cpp-2026-05", "0c1e57098bba"
RUN_TIMEOUT_S = 900
TEXT = ROOT / "CONTRIBUTING.md"
# No GPU is needed to have several devices by RPC. The variant rpc has all instruction sets, which takes longer to build.
VARIANTS = """
schema = 1
[variants.split-rpc]
title = "devices by RPC"
kind = "isa"
extends = "{variant}"
rank = 0
[variants.split-rpc.engines."llama.cpp"]
tools = ["ggml-rpc-server"]
options = {{ GGML_RPC = true }}
"""
# Takes the place of the engine's own question whether a device has an operation: none can store q5_1.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>
const char * ggml_op_desc(const void * op);
const char * ggml_type_name(int type);
bool ggml_backend_dev_supports_op(void * device, const void * op) {
    if (strcmp(ggml_op_desc(op), "SET_ROWS") == 0 && strcmp(ggml_type_name(*(const int *) op), "q5_1") == 0) {
        return false;
    }
    bool (*engines)(void *, const void *) = dlsym(RTLD_NEXT, "ggml_backend_dev_supports_op");
    return engines(device, op);
}
"""
# Of one device's perplexity. Split products are added in another order; with a cache of four bits that alone moves the
# perplexity of these 512 tokens by up to 5 %. A head that is lost or mixed up multiplies it.
NOISE = 0.10


# -- what upstream has since -----------------------------------------------------------------------------


def moved(*words: str) -> tuple[int, dict[str, Any]]:
    """What moving the recipe to the newer pin would do; writes nothing."""
    command = [sys.executable, "-m", "forkyard", "rebase", RECIPE, "--to", NEWER, "--dry-run", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT_S, check=False)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return done.returncode, answer


def test_each_patch_is_known_to_be_retired_on_the_newer_pin() -> None:
    """Upstream's pull request 23792 allowed it, by other means; the refusal that is left is the newer series'."""
    status, report = moved()
    # Upstream changed the same lines.
    assert (status, report["state"]) == (13, "conflicts")
    verdicts = {one["patch"].removesuffix(".patch"): one["verdict"] for one in report["patches"]}
    assert verdicts == {
        "meta-flattened-rows": "merged-modified",
        "meta-single-head": "merged-modified",
        "meta-zeroed-node": "merged",
        "meta-no-slice": "merged-modified",
        "split-kv-types": "superseded",
        "quantized-kv-guard": "merged-modified",
    }
    for one in report["patches"]:
        if one["verdict"] == "merged-modified":
            assert one["evidence"][-1] == "this was not so on the old base", one
    # Nothing is left to resolve where what is retired goes.
    status, report = moved("--retire")
    assert (status, report["counts"]) == (0, {"dropped": 6})


# -- the payload -----------------------------------------------------------------------------------------

USE = """
import sys
from forkyard_llm import Llama
for options in ({}, {"use_mmap": False}):
    with Llama(sys.argv[1], engine=sys.argv[2], **options) as llm:
        print(llm("The capital of France is", max_tokens=8, temperature=0.0)["choices"][0]["text"])
"""


@pytest.mark.deep
def test_the_bindings_use_it_as_any_other(
    variant: str, environment: dict[str, str], lift_limit: Callable[[], None], tmp_path: Path
) -> None:
    """Its structs are others than at the newer pin; the bindings read them from the payload."""
    wheel = payload_under_test(RECIPE)
    if wheel is None:
        if only_named_payloads():
            pytest.skip(f"{RECIPE} is not under test")
        lift_limit()
        forkyard("build", variant, RECIPE, "--locked", "--out", str(tmp_path / "dist"))
        (wheel,) = (tmp_path / "dist").glob("forkyard_llama_cpp_2026_05_*.whl")
    unpack(wheel, tmp_path / "unpacked")
    (manifest,) = (tmp_path / "unpacked").glob("*/manifest.json")
    facts = json.loads(manifest.read_text())
    assert (facts["engine"], facts["recipe"]) == ("llama.cpp", RECIPE)
    done = subprocess.run(
        [sys.executable, "-c", USE, models.get("smollm2-135m"), facts["distribution"]],
        env={**environment, "FORKYARD_LLM_PAYLOAD_PATH": str(manifest.parent)},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Paris") == 2


# -- on devices ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build(
    variant: str, lift_limit: Callable[[], None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function from the names of stacks to the tools of the engine with them, RPC and its server among them."""
    whole = whole_rpc_payload_under_test(RECIPE)
    if only_named_payloads() and not whole:
        pytest.skip(f"rpc of {RECIPE} is not under test")

    @functools.cache
    def built(stacks: str) -> Path:
        lift_limit()
        out = tmp_path_factory.mktemp("dist")
        wheel = payload_under_test(f"{RECIPE}-stock" if stacks == "none" else RECIPE) if whole else None
        if wheel is None:
            words = [RECIPE, "--stacks", stacks, "--out", str(out)]
            if not whole:
                (out / "variants.toml").write_text(VARIANTS.format(variant=variant))
                words += ["--variants-file", str(out / "variants.toml")]
            forkyard("build", "rpc" if whole else "split-rpc", *words)
            (wheel,) = out.glob("forkyard_llama_cpp_*.whl")
        unpack(wheel, out / "unpacked")
        (manifest,) = (out / "unpacked").glob("*/manifest.json")
        return manifest.parent / "bin"

    return built


@contextlib.contextmanager
def servers(tools: Path, count: int) -> Iterator[list[str]]:
    """RPC servers with one CPU device each, on free ports of this machine; gives the words that name them."""
    with contextlib.ExitStack() as started:
        ports = []
        for _ in range(count):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        for port in ports:
            command = [tools / "rpc-server", "-d", "CPU", "-t", "1", "-H", "127.0.0.1", "-p", str(port)]
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started.callback(server.wait)
            started.callback(server.kill)
        end = time.monotonic() + RUN_TIMEOUT_S
        for port in ports:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                    break
                assert time.monotonic() < end, "a server does not answer"
                time.sleep(0.1)
        # `--rpc` makes the devices that `-dev` names.
        addresses, names = (f"127.0.0.1:{port}" for port in ports), (f"RPC{number}" for number in range(count))
        yield ["--rpc", ",".join(addresses), "-dev", ",".join(names), "-sm", "tensor", "-ngl", "99"]


def perplexity(
    tools: Path, model: Path, k: str, v: str, devices: int, preload: Path | None = None
) -> tuple[float | None, str]:
    """The perplexity of the text, and what the tool said; on the CPU alone for one device."""
    env = {**os.environ, "LD_PRELOAD": str(preload)} if preload else None
    with contextlib.ExitStack() as held:
        split = held.enter_context(servers(tools, devices)) if devices > 1 else []
        words = ["-c", "256", "-b", "256", "--chunks", "2", "-t", "2", "-fa", "on", "-fit", "off", "-ctk", k, "-ctv", v]
        command = [tools / "llama-perplexity", *split, "-m", model, "-f", TEXT, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False, env=env)
    said = done.stdout + done.stderr
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", said)
    return (float(found[1]) if done.returncode == 0 and found else None), said[-3000:]


@pytest.mark.deep
@pytest.mark.patch
def test_a_cache_of_f16_is_as_good_as_on_one_device(build: Callable[[str], Path]) -> None:
    """As on the pin, whichever of the patches are there."""
    tools, model = build("quantized-kv-tensor-split"), models.get("smollm2-135m")
    expected, said = perplexity(tools, model, "f16", "f16", 1)
    assert expected is not None, said
    value, said = perplexity(tools, model, "f16", "f16", 3)
    assert value is not None, said
    assert value == pytest.approx(expected, rel=NOISE)


@pytest.mark.deep
def test_upstream_refuses_it(build: Callable[[str], Path]) -> None:
    model = models.get("smollm2-135m")
    value, said = perplexity(build("none"), model, "q8_0", "q8_0", 3)
    assert value is None
    assert "simultaneous use of SPLIT_MODE_TENSOR and KV cache quantization not implemented" in said
    assert perplexity(build("none"), model, "f16", "f16", 3)[0] is not None


@pytest.mark.deep
@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize(
    ("k", "v"),
    [("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q5_1", "q5_1"), ("iq4_nl", "iq4_nl"), ("q8_0", "q4_0"), ("f16", "q8_0")],
)
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_quantized_cache_is_as_good_as_on_one_device(
    build: Callable[[str], Path], name: str, k: str, v: str, devices: int
) -> None:
    """Three KV heads; and one, with layers of two kinds, so that a device may have no part of a cache at all."""
    tools, model = build("quantized-kv-tensor-split"), models.get(name)
    expected, said = perplexity(tools, model, k, v, 1)
    assert expected is not None, said
    value, said = perplexity(tools, model, k, v, devices)
    assert value is not None, said
    assert value == pytest.approx(expected, rel=NOISE)


@pytest.mark.deep
@pytest.mark.patch("meta-no-slice")
@pytest.mark.parametrize("devices", [3, 4])
def test_devices_without_a_slice(build: Callable[[str], Path], devices: int) -> None:
    """More devices than KV heads: at this pin that aborts with every cache type, not a quantized one alone."""
    tools, model = build("quantized-kv-tensor-split"), models.get("gemma3-270m")
    assert perplexity(build("none"), model, "f16", "f16", devices)[0] is None
    expected, said = perplexity(tools, model, "f16", "f16", 1)
    assert expected is not None, said
    value, said = perplexity(tools, model, "f16", "f16", devices)
    assert value is not None, said
    assert value == pytest.approx(expected, rel=NOISE)


@pytest.mark.deep
def test_a_type_that_the_devices_lack_is_refused_by_name(build: Callable[[str], Path], tmp_path: Path) -> None:
    tools, model = build("quantized-kv-tensor-split"), models.get("smollm2-135m")
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source], check=True, timeout=RUN_TIMEOUT_S)
    value, said = perplexity(tools, model, "f16", "q5_1", 3, shim)
    assert value is None
    assert "not every device has SET_ROWS for a K cache of f16 and a V cache of q5_1, in heads of 64 and 64" in said
    assert "GGML_ASSERT" not in said
    assert perplexity(tools, model, "f16", "q8_0", 3, shim)[0] is not None
