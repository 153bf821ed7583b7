"""The kernels of Metal for ftq4, ftq3 and ftq2 on the CPU; no Metal compiler has seen them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .kernels_on_cpu import SOURCES, Kernels, compiled_for_the_cpu
from .test_types import BITS, hostile
from .types_probe import TYPES

pytestmark = pytest.mark.patch("cache-types-metal")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """With one change: a variable that the threads of a group share is static in C++."""
    folder = tmp_path_factory.mktemp("kernels")
    text = (SOURCES / "ggml-metal/kernels/ftq.metal").read_text()
    shared = "threadgroup ftq_shared<k> shared;"
    assert text.count(shared) == 2
    (folder / "ftq.metal").write_text(text.replace(shared, "static ftq_shared<k> shared;"))
    return compiled_for_the_cpu("metal.cpp", folder, f'-DFTQ_METAL="{Path(folder) / "ftq.metal"}"')


def sizes(array: np.ndarray, *, blocks: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``ne`` and ``nb`` of four dimensions, the shortest step first; ``blocks``: bytes of one, if it has blocks."""
    ne, nb = np.array(array.shape[::-1], np.int64), np.array(array.strides[::-1], np.uint64)
    if blocks:
        ne[0], nb[0] = ne[0] // blocks * 64, blocks
    return ne, nb


@pytest.mark.parametrize("kind", TYPES)
def test_the_kernel_writes_the_bytes_of_the_cpu(kernels: Kernels, kind: str) -> None:
    """All of these, though a sum in single precision may choose another scale in some."""
    rows = np.concatenate([np.random.default_rng(5).standard_normal((64, 64)).astype(np.float32), hostile()[::3]])
    right = kernels.reference(kind, rows)
    out, (ne, nb) = np.zeros_like(right), sizes(rows[None, None])
    kernels.call(f"write_{kind}", ne, rows, nb, out, sizes(out[None, None])[1])
    assert np.array_equal(out, right)


@pytest.mark.parametrize("kind", TYPES)
def test_rows_go_where_they_belong(kernels: Kernels, kind: str) -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((2, 4, 6, 160)).astype(np.float32)[:, :3, :5, :128]
    index = np.stack([rng.permutation(9)[:5] for _ in range(3)])
    out = np.zeros((2, 3, 9, 2 * (2 + 8 * BITS[kind])), np.uint8)
    (ne, nb), steps = sizes(rows), np.array([8, 40], np.uint64)
    kernels.call(f"set_rows_{kind}", ne, rows, nb, index, steps, out, sizes(out)[1])
    right = np.zeros_like(out)
    for head in range(3):
        right[:, head, index[head]] = kernels.reference(kind, rows[:, head])
    assert np.array_equal(out, right)


@pytest.mark.parametrize("kind", TYPES)
def test_every_reader_reads_what_the_cpu_reads(kernels: Kernels, kind: str) -> None:
    """A copy, rows by number and the conversion to f16 (here without its rounding), of any bytes."""
    size, rng = 2 + 8 * BITS[kind], np.random.default_rng(8)
    given = rng.integers(0, 256, (2, 3, 6, 2 * size), dtype=np.uint8)[:, :, :5]
    index = rng.permutation(5).astype(np.int32)
    copy, rows, f16 = np.zeros((3, 2, 3, 5, 128), np.float32)
    ne, nb = sizes(given, blocks=size)
    kernels.call(f"read_{kind}", ne, given, nb, index, copy, rows, f16)
    right = np.zeros_like(copy)
    kernels.call("read_reference", BITS[kind], np.ascontiguousarray(given), right, right.size)
    assert np.array_equal(copy, right)
    assert np.array_equal(rows, right[:, :, index])
    assert np.array_equal(f16, right)
