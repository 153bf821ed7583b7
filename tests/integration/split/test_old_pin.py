"""The older pin of llama.cpp: a quantized KV cache under tensor split, on RPC servers of this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import models
from forkyard_llm.payloads import read_payload

from ..conftest import (
    ROOT,
    RpcServers,
    forkyard,
    only_named_payloads,
    payload_under_test,
    unpack,
    whole_rpc_payload_under_test,
)
from .conftest import Judge, predict, split_over

RECIPE, NEWER = "llama.cpp-2026-05", "0c1e57098bba"
RUN_TIMEOUT_S = 900
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
# As if the model had been written with the rows of its first and last K head exchanged in one layer.
MIXED_HEADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
const char * ggml_get_name(const void * tensor);
void ggml_backend_tensor_set(void * tensor, const void * data, size_t offset, size_t size) {
    void (*engines)(void *, const void *, size_t, size_t) = dlsym(RTLD_NEXT, "ggml_backend_tensor_set");
    if (strcmp(ggml_get_name(tensor), "blk.15.attn_k.weight") == 0) {
        char * mixed = malloc(size);
        memcpy(mixed, (const char *) data + size / 3 * 2, size / 3);
        memcpy(mixed + size / 3, (const char *) data + size / 3, size / 3);
        memcpy(mixed + size / 3 * 2, data, size / 3);
        engines(tensor, mixed, offset, size);
        free(mixed);
    } else {
        engines(tensor, data, offset, size);
    }
}
"""


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
            (wheel,) = out.glob("forkyard_llama_cpp_2026_05_*.whl")
        unpack(wheel, out / "unpacked")
        (manifest,) = (out / "unpacked").glob("*/manifest.json")
        return manifest.parent / "bin"

    return built


def library(source: str, folder: Path) -> Path:
    """A library that the engine is to find before its own."""
    written, compiled = folder / "shim.c", folder / "shim.so"
    written.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", compiled, written], check=True, timeout=RUN_TIMEOUT_S)
    return compiled


@contextlib.contextmanager
def servers(tools: Path, count: int) -> Iterator[list[str]]:
    """The words that split a model over new servers; at this pin what a device adds must not be in used memory."""
    started = RpcServers(lambda _: read_payload(tools.parent), environment={})
    try:
        yield split_over(started(RECIPE, count))
    finally:
        started.stop()


@pytest.fixture(scope="module")
def judge(build: Callable[[str], Path], judging: Callable[[Path], Judge]) -> Judge:
    return judging(build("quantized-kv-tensor-split"))


def divergence(judge: Judge, name: str, k: str, v: str, devices: int, preload: Path | None = None) -> float:
    with servers(judge.tools, devices) as split:
        return judge.divergence(name, k, v, *split, preload=preload)


@pytest.mark.deep
@pytest.mark.patch
def test_a_cache_of_f16_is_as_good_as_on_one_device(judge: Judge) -> None:
    """As on the pin, whichever of the patches are there."""
    assert divergence(judge, "smollm2-135m", "f16", "f16", 3) <= judge.limit("smollm2-135m", "f16", "f16")


@pytest.mark.deep
def test_upstream_refuses_it(build: Callable[[str], Path]) -> None:
    tools, model = build("none"), models.get("smollm2-135m")
    with servers(tools, 3) as split:
        done = predict(tools, model, "q8_0", "q8_0", *split)
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert "simultaneous use of SPLIT_MODE_TENSOR and KV cache quantization not implemented" in said
        assert predict(tools, model, "f16", "f16", *split).returncode == 0


@pytest.mark.deep
@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize(
    ("k", "v"),
    [("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q5_1", "q5_1"), ("iq4_nl", "iq4_nl"), ("q8_0", "q4_0"), ("f16", "q8_0")],
)
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_quantized_cache_is_as_good_as_on_one_device(judge: Judge, name: str, k: str, v: str, devices: int) -> None:
    """Three KV heads; and one, with layers of two kinds, so that a device may have no part of a cache at all."""
    assert divergence(judge, name, k, v, devices) <= judge.limit(name, k, v)


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_heads_that_are_mixed_up_in_one_layer_are_seen(judge: Judge, kind: str, tmp_path: Path) -> None:
    """What the tests above go by is not too lenient for the fault that is hardest to see."""
    mixed = library(MIXED_HEADS, tmp_path)
    assert divergence(judge, "smollm2-135m", kind, kind, 3, mixed) > judge.limit("smollm2-135m", kind, kind)


@pytest.mark.deep
@pytest.mark.patch("meta-no-slice")
@pytest.mark.parametrize("devices", [3, 4])
def test_devices_without_a_slice(build: Callable[[str], Path], judge: Judge, devices: int) -> None:
    """More devices than KV heads: at this pin that aborts with every cache type, not a quantized one alone."""
    with servers(build("none"), devices) as split:
        assert predict(build("none"), models.get("gemma3-270m"), "f16", "f16", *split).returncode != 0
    assert divergence(judge, "gemma3-270m", "f16", "f16", devices) <= judge.limit("gemma3-270m", "f16", "f16")


@pytest.mark.deep
def test_a_type_that_the_devices_lack_is_refused_by_name(build: Callable[[str], Path], tmp_path: Path) -> None:
    tools, model = build("quantized-kv-tensor-split"), models.get("smollm2-135m")
    shim = library(SHIM, tmp_path)
    with servers(tools, 3) as split:
        done = predict(tools, model, "f16", "q5_1", *split, preload=shim)
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert "not every device has SET_ROWS for a K cache of f16 and a V cache of q5_1, in heads of 64 and 64" in said
        assert "GGML_ASSERT" not in said
        assert predict(tools, model, "f16", "q8_0", *split, preload=shim).returncode == 0
