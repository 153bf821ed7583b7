"""ftq4, ftq3 and ftq2 on NVIDIA's and AMD's GPUs, without one: the kernels run on the CPU, and are compiled for a GPU.

On the CPU each thread of a block has a stack of its own (kernels/fibers.h). Nothing here runs on a GPU.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forkyard.recipes import load_variants, resolve

from ..backends.compiling import TIMEOUT_S, extract
from ..conftest import ROOT
from .conftest import ENGINE
from .kernels_on_cpu import Kernels, compiled_for_the_cpu
from .test_types import BITS, blocks, ftq, hostile
from .types_probe import TYPES

pytestmark = pytest.mark.patch("cache-types-cuda")
GAUSSIAN = 128
"""Blocks of Gaussian values."""
F32, I32, I64 = 0, 26, 27
NUMBERS = {"ftq4": 500, "ftq3": 501, "ftq2": 502}
FOLDER = "ggml/src/ggml-cuda"
UPSTREAMS = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types whose pairs upstream's CMake file gives a definition each."""
UNITS = ("ftq", "convert", "fattn-vec-ftq3-ftq3")
"""One of each kind: what writes, what converts, and a vector kernel of attention; half a minute in all."""
OTHERS = (
    *("cpy", "fattn", "getrows", "ggml-cuda", "set-rows", "fattn-vec-ftq2-ftq2", "fattn-vec-ftq4-ftq3"),
    *("fattn-vec-ftq4-ftq4", "fattn-vec-q4_0-ftq4", "fattn-vec-q8_0-ftq4"),
)
FOR_DEVICES = (
    *("-O3", "-std=c++17", "-use_fast_math", "-extended-lambda", "-arch=sm_80", "-Xcompiler=-fPIC"),
    *("-DGGML_CUDA_NO_VMM", "-DGGML_CUDA_USE_GRAPHS", "-DGGML_SCHED_MAX_COPIES=4", '-DGGML_CUDA_FA_QUANTS="f16-f16"'),
    *(f"-DGGML_CUDA_FA_{k}_{v}={int(k == v == 'F16')}" for k in UPSTREAMS for v in UPSTREAMS),
)
"""As upstream's CMake file has it, for one architecture."""


class Tensor(ctypes.Structure):
    """As kernels/common.cuh has it; sizes and steps of at most four dimensions, the shortest step first."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("src", ctypes.c_void_p * 2),
        ("data", ctypes.c_void_p),
    )
    kept: tuple[object, ...]
    """What it points to."""


def tensor(kind: int, array: NDArray[Any], *sources: Tensor) -> Tensor:
    """A view of an array, whose last dimension has blocks (of bytes) if the type is one of ours."""
    shape, steps = list(array.shape[::-1]), list(array.strides[::-1])
    if kind in NUMBERS.values():
        size = 2 + 8 * (504 - kind)
        shape[0], steps[0] = shape[0] // size * 64, size
    shape += [1] * (4 - len(shape))
    steps += [steps[-1] * shape[len(steps) - 1]] * (4 - len(steps))
    made = Tensor(type=kind, ne=(ctypes.c_int64 * 4)(*shape), nb=(ctypes.c_size_t * 4)(*steps))
    made.src = (ctypes.c_void_p * 2)(*(ctypes.addressof(source) for source in sources))
    made.data = array.ctypes.data
    made.kept = (array, *sources)
    return made


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return compiled_for_the_cpu("cuda.cpp", tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("kind", TYPES)
def test_the_kernel_writes_the_bytes_of_the_cpu(kernels: Kernels, kind: str) -> None:
    rows = np.concatenate([np.random.default_rng(5).standard_normal((GAUSSIAN, 64)).astype(np.float32), hostile()])
    right = kernels.reference(kind, rows)
    out, index = np.zeros_like(right), np.arange(len(rows), dtype=np.int64)[::-1].copy()
    kernels.call("set_rows", tensor(NUMBERS[kind], out, tensor(F32, rows), tensor(I64, index)))
    assert np.array_equal(out[::-1], right)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_rows_go_where_they_belong(kernels: Kernels, kind: str, index_type: type[np.integer[Any]]) -> None:
    """Rows of two blocks out of a larger tensor, to rows that each head, but not each sequence, has its own order of."""
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((2, 4, 6, 160)).astype(np.float32)[:, :3, :5, :128]
    index = np.stack([rng.permutation(9)[:5] for _ in range(3)]).astype(index_type)
    size = 2 * (2 + 8 * BITS[kind])
    out = np.zeros((2, 3, 9, size), np.uint8)
    number = I64 if index_type is np.int64 else I32
    kernels.call("set_rows", tensor(NUMBERS[kind], out, tensor(F32, rows), tensor(number, index)))
    right = np.zeros_like(out)
    for head in range(3):
        right[:, head, index[head]] = kernels.reference(kind, rows[:, head])
    assert np.array_equal(out, right)


@pytest.mark.parametrize("kind", TYPES)
def test_copies_of_any_steps(kernels: Kernels, kind: str) -> None:
    values = np.random.default_rng(7).standard_normal((2, 4, 3, 128, 2)).astype(np.float32)[..., 0].swapaxes(1, 2)
    right = kernels.reference(kind, values)
    written = np.zeros((2, 3, 5, right.shape[-1]), np.uint8)[:, :, :4]
    assert kernels.call("copy", tensor(F32, values), tensor(NUMBERS[kind], written))
    assert np.array_equal(written, right)
    read = np.zeros((2, 4, 3, 128, 2), np.float32)[..., 0].swapaxes(1, 2)
    assert kernels.call("copy", tensor(NUMBERS[kind], written), tensor(F32, read))
    assert np.array_equal(read.reshape(-1, 64), ftq.decode(right.reshape(-1, 2 + 8 * BITS[kind]), BITS[kind]))
    assert not kernels.call("copy", tensor(F32, values), tensor(NUMBERS[kind], written[:, :, :3]))


@pytest.mark.parametrize("kind", TYPES)
def test_every_reader_reads_what_the_cpu_reads(kernels: Kernels, kind: str) -> None:
    """Blocks as they are written, and any bytes: a file may hold scales that are not finite or lie beyond the range."""
    bits, rng = BITS[kind], np.random.default_rng(8)
    given = blocks(bits)[-2048:]
    rows = np.concatenate([given, rng.integers(0, 256, given.shape, dtype=np.uint8)]).reshape(-1, 4 * (2 + 8 * bits))
    q, scales = rng.integers(-127, 128, (len(rows), 256)).astype(np.int8), rng.uniform(0, 1, 8).astype(np.float32)
    right, values, v = np.zeros((3, len(rows), 256), np.float32)
    kernels.call("read_reference", bits, rows, right, right.size)
    dots = np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        kernels.call("read_row", bits, row, values[i], v[i], q[i], scales, dots[i:])
    assert np.array_equal(values, right)
    assert np.array_equal(v, right)
    products = right.astype(np.float64) * q * np.repeat(scales, 32)
    assert (np.abs(dots - products.sum(1)) <= 1e-6 * np.abs(products).sum(1)).all()


@pytest.fixture(scope="module")
def tree(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the payload under test, of ggml alone."""
    return extract(engine_payload(ENGINE), tmp_path_factory.mktemp("tree"), "ggml/include", "ggml/src")


def test_the_variant_names_the_types_that_attention_takes(tree: Path) -> None:
    """What it does not name is refused before the engine computes it on the CPU without a word."""
    taken = re.search(r"fattn_kv_type_supported\(.*?return true;", (tree / FOLDER / "fattn.cu").read_text(), re.S)
    assert taken is not None
    named = resolve(load_variants(ROOT), "cuda13", ENGINE).cache_types
    assert {name.lower() for name in re.findall(r"GGML_TYPE_(\w+)", taken[0])} == set(named)


@pytest.mark.parametrize("units", [UNITS, pytest.param(OTHERS, marks=pytest.mark.deep)], ids=["few", "others"])
def test_units_compile_for_a_gpu(tree: Path, toolkit: Path, tmp_path: Path, units: tuple[str, ...]) -> None:
    includes = [f"-I{tree / folder}" for folder in ("ggml/src", "ggml/include")]
    includes += [f"-isystem={toolkit / folder}" for folder in ("include", "include/cccl")]
    for unit in units:
        command = [str(toolkit / "bin/nvcc"), *FOR_DEVICES, *includes, "-c", str(tree / FOLDER / f"{unit}.cu")]
        done = subprocess.run(
            [*command, "-o", str(tmp_path / f"{unit}.o")],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert "warning" not in done.stderr, done.stderr[-4000:]
