"""The older pin of llama.cpp: a quantized KV cache under tensor split, on RPC servers of this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
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
    mean_divergence,
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
# As if the model had been written with the rows of its first and last K head exchanged in one layer.
MIXED_HEADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
const char * ggml_get_name(const void * tensor);
void ggml_backend_tensor_set(void * tensor, const void * data, size_t offset, size_t size) {
    void (*engines)(void *, const void *, size_t, size_t) = dlsym(RTLD_NEXT, "ggml_backend_tensor_set");
    if (offset == 0 && size % 3 == 0 && strcmp(ggml_get_name(tensor), "blk.15.attn_k.weight") == 0) {
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
# Split sums are added in another order, and a rounded cache rounds other values: a split and a whole model differ by
# chance. Each divergence is a mean over 254 tokens, whose standard error the engine prints. The difference of two such
# means has the square root of two times that; it exceeds four times as much once in 30,000 comparisons.
CHANCE = 4.0 * math.sqrt(2.0)


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


def library(source: str, folder: Path) -> Path:
    """A library that the engine is to find before its own."""
    written, compiled = folder / "shim.c", folder / "shim.so"
    written.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", compiled, written], check=True, timeout=RUN_TIMEOUT_S)
    return compiled


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


def predict(
    tools: Path, model: Path, k: str, v: str, *more: str | Path, devices: int = 1, preload: Path | None = None
) -> tuple[bool, str]:
    """Whether the engine predicted each token of the text, and what it said; one device is the CPU alone."""
    env = {**os.environ, "LD_PRELOAD": str(preload)} if preload else None
    with contextlib.ExitStack() as held:
        split = held.enter_context(servers(tools, devices)) if devices > 1 else []
        words = ["-c", "256", "-b", "256", "--chunks", "2", "-t", "1", "-fa", "on", "-fit", "off", "-ctk", k, "-ctv", v]
        command = [tools / "llama-perplexity", *split, "-m", model, "-f", TEXT, *words, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False, env=env)
    return done.returncode == 0, done.stdout + done.stderr


class Judge:
    """Compares what a model predicts with what it predicts on one device with an f16 cache."""

    def __init__(self, tools: Path, folder: Path) -> None:
        self._tools, self._folder = tools, folder
        self._whole = functools.cache(self.divergence)

    def divergence(
        self, name: str, k: str, v: str, devices: int = 1, preload: Path | None = None
    ) -> tuple[float, float]:
        """Mean KL divergence from one device with an f16 cache, and its standard error, in nats."""
        saved, model = self._folder / name, models.get(name)
        if not saved.exists():
            good, said = predict(self._tools, model, "f16", "f16", "--save-all-logits", saved)
            assert good, said[-3000:]
        words = ("--kl-divergence-base", saved, "--kl-divergence")
        good, said = predict(self._tools, model, k, v, *words, devices=devices, preload=preload)
        assert good, said[-3000:]
        return mean_divergence(said)

    def limit(self, name: str, k: str, v: str) -> float:
        """What a split with this cache may diverge: as much as one device with it, but for chance.

        One device with an f16 cache does not diverge from itself. There it is what a q8_0 cache does on one device,
        which rounds more coarsely than sums in another order.
        """
        mean, error = self._whole(name, *(("q8_0", "q8_0") if k == v == "f16" else (k, v)))
        return mean + CHANCE * error


@pytest.fixture(scope="module")
def judge(build: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    folder = tmp_path_factory.mktemp("logits")
    yield Judge(build("quantized-kv-tensor-split"), folder)
    # Those of a model with many words are 127 MiB.
    shutil.rmtree(folder)


@pytest.mark.deep
@pytest.mark.patch
def test_a_cache_of_f16_is_as_good_as_on_one_device(judge: Judge) -> None:
    """As on the pin, whichever of the patches are there."""
    assert judge.divergence("smollm2-135m", "f16", "f16", 3)[0] <= judge.limit("smollm2-135m", "f16", "f16")


@pytest.mark.deep
def test_upstream_refuses_it(build: Callable[[str], Path]) -> None:
    model = models.get("smollm2-135m")
    good, said = predict(build("none"), model, "q8_0", "q8_0", devices=3)
    assert not good
    assert "simultaneous use of SPLIT_MODE_TENSOR and KV cache quantization not implemented" in said
    assert predict(build("none"), model, "f16", "f16", devices=3)[0]


@pytest.mark.deep
@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize(
    ("k", "v"),
    [("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q5_1", "q5_1"), ("iq4_nl", "iq4_nl"), ("q8_0", "q4_0"), ("f16", "q8_0")],
)
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_quantized_cache_is_as_good_as_on_one_device(judge: Judge, name: str, k: str, v: str, devices: int) -> None:
    """Three KV heads; and one, with layers of two kinds, so that a device may have no part of a cache at all."""
    assert judge.divergence(name, k, v, devices)[0] <= judge.limit(name, k, v)


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_heads_that_are_mixed_up_in_one_layer_are_seen(judge: Judge, kind: str, tmp_path: Path) -> None:
    """What the tests above go by is not too lenient for the fault that is hardest to see."""
    mixed = library(MIXED_HEADS, tmp_path)
    assert judge.divergence("smollm2-135m", kind, kind, 3, mixed)[0] > judge.limit("smollm2-135m", kind, kind)


@pytest.mark.deep
@pytest.mark.patch("meta-no-slice")
@pytest.mark.parametrize("devices", [3, 4])
def test_devices_without_a_slice(build: Callable[[str], Path], judge: Judge, devices: int) -> None:
    """More devices than KV heads: at this pin that aborts with every cache type, not a quantized one alone."""
    assert not predict(build("none"), models.get("gemma3-270m"), "f16", "f16", devices=devices)[0]
    assert judge.divergence("gemma3-270m", "f16", "f16", devices)[0] <= judge.limit("gemma3-270m", "f16", "f16")


@pytest.mark.deep
def test_a_type_that_the_devices_lack_is_refused_by_name(build: Callable[[str], Path], tmp_path: Path) -> None:
    tools, model = build("quantized-kv-tensor-split"), models.get("smollm2-135m")
    shim = library(SHIM, tmp_path)
    good, said = predict(tools, model, "f16", "q5_1", devices=3, preload=shim)
    assert not good
    assert "not every device has SET_ROWS for a K cache of f16 and a V cache of q5_1, in heads of 64 and 64" in said
    assert "GGML_ASSERT" not in said
    assert predict(tools, model, "f16", "q8_0", devices=3, preload=shim)[0]
