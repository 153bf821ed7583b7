from __future__ import annotations

import json
from typing import Any

import pytest
from forkyard_llm.measuring.dialect import cause, last_words, read_devices, read_results

# What the two engines print with -o json on SmolLM2-135M, shortened.
UPSTREAM = """\
[
  {
    "build_commit": "0c1e57098-forkyard",
    "backends": "CPU",
    "model_type": "llama 256M Q4_1",
    "n_prompt": 16,
    "n_gen": 0,
    "n_depth": 0,
    "avg_ts": 85.113633,
    "stddev_ts": 0.000000,
    "numa_local": 100.000000,
    "samples_ns": [ 187983987 ],
    "samples_ts": [ 85.1136 ]
  },
  {
    "build_commit": "0c1e57098-forkyard",
    "model_type": "llama 256M Q4_1",
    "n_prompt": 0,
    "n_gen": 8,
    "avg_ts": 40.5,
    "samples_ts": [ 40.5 ]
  }
]
"""
IK = """\
[
llm_scale_gate_inp_s: n_embd = 256
  {
    "build_commit": "55d3c05bf-forkyard",
    "cuda": false,
    "model_type": "llama ?B Q4_1",
    "tensor_split": "0.00",
    "n_prompt": 16,
    "n_gen": 0,
    "avg_ts": 32.7,
    "test": "pp16",
    "samples_ts": [ 32.7 ]
  }a line of the engine's
,
  {
    "model_type": "llama ?B Q4_1",
    "n_prompt": 0,
    "n_gen": 8,
    "avg_ts": 12.5,
    "test": "tg8"
  }
]
"""

# Three RPC servers; a Vulkan device in software; ik_llama.cpp's list of CUDA devices as its source has it.
SAID = """\
load_backend: loaded RPC backend from libggml-rpc.so
llama_prepare_model_devices: using device RPC0 (127.0.0.1:42073) (unknown id) - 24105 MiB free
llama_prepare_model_devices: using device RPC1 (127.0.0.1:54303) (unknown id) - 24105 MiB free
llama_model_loader: loaded meta data with 35 key-value pairs and 272 tensors
llama_prepare_model_devices: using device RPC0 (127.0.0.1:42073) (unknown id) - 24105 MiB free
"""
SOFTWARE = (
    "llama_prepare_model_devices: using device Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)) (unknown id) - 2048 MiB free"
)
OLDER = "llama_model_load_from_file_impl: using device CUDA1 (NVIDIA RTX A6000) - 47000 MiB free"
IK_DEVICES = """\
ggml_cuda_init: found 2 CUDA devices:
  Device 0: NVIDIA GeForce RTX 3080, compute capability 8.6, VMM: yes, VRAM: 20053 MiB
  Device 1: NVIDIA GeForce RTX 3080, compute capability 8.6, VMM: no, VRAM: 20053 MiB
CUDA0: using device CUDA0 - 19500 MiB free
CUDA1: using device CUDA1 - 19500 MiB free
"""
IK_PROCESSOR = "CPU: using device CPU - 0 MiB free"
REFUSED = """\
print_info: file format = GGUF V3 (latest)
load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
llama_model_load: error loading model: device RPC0 does not support split buffers
llama_model_load_from_file_impl: failed to load model
llama_bench: error: failed to load model 'model.gguf'
"""


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        (SAID, [("RPC0", "127.0.0.1:42073"), ("RPC1", "127.0.0.1:54303")]),
        (SOFTWARE, [("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)")]),
        (OLDER, [("CUDA1", "NVIDIA RTX A6000")]),
        (IK_DEVICES, [("CUDA0", "NVIDIA GeForce RTX 3080"), ("CUDA1", "NVIDIA GeForce RTX 3080")]),
        (IK_PROCESSOR, []),
        # Upstream lists CUDA devices as well; those that it uses may be fewer.
        ("".join(IK_DEVICES.splitlines(keepends=True)[:3]) + OLDER, [("CUDA1", "NVIDIA RTX A6000")]),
        (REFUSED, []),
    ],
)
def test_devices(said: str, devices: list[tuple[str, str]]) -> None:
    assert [(one.name, one.about) for one in read_devices(said.splitlines())] == devices


def test_the_cause_is_found_among_much_else() -> None:
    assert cause(REFUSED.splitlines()) == (
        "llama_model_load: error loading model: device RPC0 does not support split buffers"
        " / llama_bench: error: failed to load model 'model.gguf'"
    )
    assert cause(["a", "b"]) == "a / b"


def test_a_depth_has_the_same_name_in_both_dialects() -> None:
    upstream = {"model_type": "x", "n_prompt": 0, "n_gen": 8, "n_depth": 64, "avg_ts": 5.0}
    theirs = {"model_type": "x", "n_prompt": 64, "n_gen": 8, "avg_ts": 5.0, "test": "tg8@pp64"}
    both = {"model_type": "x", "n_prompt": 64, "n_gen": 8, "avg_ts": 5.0, "test": "pp64+tg8"}
    said = [read_results(f"[\n{json.dumps(row, indent=2)}\n]") or [] for row in (upstream, theirs, both)]
    assert [[one.test for one in results] for results in said] == [["tg8 @ d64"], ["tg8 @ d64"], ["pp64+tg8"]]


def test_upstream() -> None:
    first, second = read_results(UPSTREAM) or []
    assert (first.test, first.speed, first.local, first.model) == ("pp16", 85.113633, 100.0, "llama 256M Q4_1")
    assert (second.test, second.speed, second.local) == ("tg8", 40.5, None)


def test_ik_with_lines_of_its_own_in_between() -> None:
    first, second = read_results(IK) or []
    assert (first.test, first.speed, first.local) == ("pp16", 32.7, None)
    assert (second.test, second.speed) == ("tg8", 12.5)


@pytest.mark.parametrize("noise", ["ggml_numa: [0] found 2 nodes\n", "[New LWP 23175]\n", "[\n", "a ] b { c\n"])
def test_lines_before_do_not_matter(noise: str) -> None:
    assert [one.test for one in read_results(noise + UPSTREAM) or []] == ["pp16", "tg8"]


@pytest.mark.parametrize("text", ["", "[]", "[\n]", "no answer", '[\n  {"n_prompt": 1, "n_gen": 0}\n]', UPSTREAM[:300]])
def test_no_answer_is_none(text: str) -> None:
    assert read_results(text) is None


@pytest.mark.parametrize(
    "changes", [{"avg_ts": 0}, {"avg_ts": -1.0}, {"avg_ts": "9"}, {"avg_ts": True}, {"n_gen": "8"}, {"n_depth": "8"}]
)
def test_an_answer_that_means_nothing_is_none(changes: dict[str, Any]) -> None:
    row = {"model_type": "x", "n_prompt": 0, "n_gen": 8, "avg_ts": 5.0, **changes}
    assert read_results(f"[\n{json.dumps(row, indent=2)}\n]") is None


def test_an_answer_that_is_no_number_is_none() -> None:
    assert read_results('[\n{"n_prompt": 0, "n_gen": 8, "avg_ts": NaN}\n]') is None


def test_last_words() -> None:
    assert last_words(["a", "", "b ", "c", "d"]) == "b / c / d"
    assert last_words([]) == "it printed nothing"
