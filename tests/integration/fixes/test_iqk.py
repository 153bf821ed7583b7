"""ik_llama.cpp's matrix products and flash attention on the CPU, one operation at a time, against the same in NumPy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ..conftest import libraries_of

PROBE = Path(__file__).with_name("iqk_probe.py")
TIMEOUT_S = 600.0
"""For one child; they need one."""
SEED = 20261130
ROUNDING = 0.02
"""Relative error by what is rounded to eight bits on the way; measured: at most 0.0044, of attention 0.0092."""
ROWS = 96
HEADS, KV_HEADS, HEAD = 4, 2, 64

Floats = NDArray[np.float32]
Run = Callable[..., dict[str, Floats]]


@pytest.fixture(scope="module")
def run(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that computes one operation in a child."""
    payload = engine_payload("ik_llama.cpp")
    libraries = libraries_of(payload)
    folder = tmp_path_factory.mktemp("iqk")

    def run(operation: str, given: dict[str, Floats], **how: Any) -> dict[str, Floats]:
        files = {"input": str(folder / "input.npz"), "output": str(folder / "output.npz")}
        np.savez(files["input"], **given)
        job = {"payload": str(payload), "libraries": libraries, "operation": operation, **files, **how}
        command = [sys.executable, PROBE, json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, f"ended by {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
        with np.load(files["output"]) as output:
            return dict(output)

    return run


def error(result: Floats, right: Floats) -> float:
    """Relative error."""
    return float(np.linalg.norm(result - right.ravel()) / np.linalg.norm(right))


def product_error(run: Run, kind: str, columns: int, tokens: int) -> float:
    """Of a matrix of that type with some tokens, against what the type stores of the matrix."""
    rng = np.random.default_rng(SEED)
    given = {
        "a": rng.standard_normal((ROWS, columns), dtype=np.float32) + np.float32(0.5),
        "b": rng.standard_normal((tokens, columns), dtype=np.float32) + np.float32(0.5),
    }
    out = run("product", given, kind=kind)
    return error(out["result"], given["b"] @ out["stored"].T)


@pytest.mark.patch("row-tails")
@pytest.mark.parametrize("tokens", [1, 31, 40])
@pytest.mark.parametrize("columns", [96, 576])
@pytest.mark.parametrize("kind", ["q4_1", "q5_1", "iq4_nl_r4"])
def test_all_of_a_row_is_multiplied(run: Run, kind: str, columns: int, tokens: int) -> None:
    assert product_error(run, kind, columns, tokens) < ROUNDING


@pytest.mark.patch("no-kernel")
@pytest.mark.parametrize("tokens", [1, 32])
@pytest.mark.parametrize(
    ("kind", "columns"), [("q8_kv", 64), ("q8_kv", 256), ("q8_kv", 576), ("bf16", 588), ("bf16", 576), ("f16", 33)]
)
def test_rows_that_no_kernel_is_for_are_multiplied(run: Run, kind: str, columns: int, tokens: int) -> None:
    assert product_error(run, kind, columns, tokens) < ROUNDING


@pytest.mark.patch("short-rows")
@pytest.mark.parametrize("tokens", [1, 4, 33])
@pytest.mark.parametrize("columns", [4, 8, 12])
def test_rows_shorter_than_a_register_are_multiplied(run: Run, columns: int, tokens: int) -> None:
    assert product_error(run, "f16", columns, tokens) < ROUNDING


LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q6_0", "q8_0", "iq4_nl", "mxfp4", "q4_0_r8", "iq4_nl_r4")
# The kernels of IQ4_XS, IQ4_K and their like for few tokens add in 16 bits, which saturate.
WHOLE = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq2_k", "iq3_k")


@pytest.mark.deep
@pytest.mark.patch
@pytest.mark.parametrize("tokens", [1, 2, 8, 17, 31, 32, 33, 64, 130])
@pytest.mark.parametrize(
    ("kind", "columns"),
    [(kind, columns) for kind in LEGACY for columns in (32, 64, 96, 128, 160, 576, 640)]
    + [(kind, columns) for kind in WHOLE for columns in (256, 768)],
)
def test_products_of_every_type_and_shape(run: Run, kind: str, columns: int, tokens: int) -> None:
    assert product_error(run, kind, columns, tokens) < ROUNDING


def attention_error(run: Run, visible: NDArray[np.bool_], window: int = 0, kind: str = "f16") -> float:
    """Of queries, a row of ``visible`` for each, to as many keys as it has columns."""
    rng = np.random.default_rng(SEED)
    n_q, n_k = visible.shape
    given = {
        "q": rng.standard_normal((HEADS, n_q, HEAD), dtype=np.float32),
        "k": rng.standard_normal((KV_HEADS, n_k, HEAD), dtype=np.float32),
        "v": rng.standard_normal((KV_HEADS, n_k, HEAD), dtype=np.float32),
        "mask": np.where(visible, np.float32(0), np.float32(-np.inf)),
    }
    out = run("attention", given, kind=kind, window=window)
    k, v = (np.repeat(given[name].astype(np.float16).astype(np.float32), HEADS // KV_HEADS, axis=0) for name in "kv")
    scores = given["q"] @ k.transpose(0, 2, 1) * np.float32(HEAD**-0.5) + given["mask"]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    right = weights / weights.sum(axis=-1, keepdims=True) @ v
    return error(out["result"], right.transpose(1, 0, 2))


def seen(queries: list[tuple[int, int]], cells: list[tuple[int, int] | None], window: int = 0) -> NDArray[np.bool_]:
    """Which cells each query sees; queries and cells are a sequence and a position there, or None for an empty cell."""
    return np.array(
        [
            [
                cell is not None and cell[0] == query[0] and 0 <= query[1] - cell[1] < (window or query[1] + 1)
                for cell in cells
            ]
            for query in queries
        ]
    )


def one(count: int, sequence: int = 0, first: int = 0) -> list[tuple[int, int]]:
    """A sequence's tokens from a position on."""
    return [(sequence, first + number) for number in range(count)]


TWO = [*one(100, 0), *one(100, 1)]
TURNS = [(number % 2, number // 2) for number in range(240)]
CACHES: dict[str, NDArray[np.bool_]] = {
    # Two sequences, each in one piece: the last query sees nothing of what is later in the cache.
    "one after the other": seen([(1 - number % 2, 84 + number // 2) for number in range(32)], [*TWO, *[None] * 56]),
    # Two sequences in turns: the first column of a block is of one of them.
    "in turns": seen([*one(8, 0, 112), *one(8, 1, 112)], [*TURNS, *[None] * 16]),
    # The oldest tokens were dropped, and the newest are where those were.
    "in a hole": seen(one(32, 0, 200), [*one(32, 0, 200), *one(200, 0), *[None] * 24]),
    # A window that does not reach back to the beginning of the last block.
    "a narrow window": seen(one(40, 0, 160), [*one(200, 0), *[None] * 56], window=8),
}


@pytest.mark.patch("fa-visible-blocks")
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("cache", CACHES)
def test_queries_attend_to_all_they_see(run: Run, cache: str, kind: str) -> None:
    assert attention_error(run, CACHES[cache], kind=kind) < ROUNDING


WINDOWS: dict[str, tuple[int, NDArray[np.bool_]]] = {
    "in order": (128, seen(one(32, 0, 960), [*one(992, 0), *[None] * 32], 128)),
    # The cells that nothing is in yet count as tokens, too.
    "in order, and no cell to spare": (256, seen(one(256, 0, 736), [*one(992, 0), *[None] * 32], 256)),
    "before another sequence": (128, seen([*one(1, 0, 63)], [*one(64, 0), *one(960, 1)], 128)),
    "a batch in a hole": (128, seen(one(32, 0, 900), [*one(32, 0, 900), *[None] * 92, *one(900, 0)], 128)),
}


@pytest.mark.patch("fa-window-tail")
@pytest.mark.parametrize("cache", WINDOWS)
def test_a_window_is_looked_for_in_the_whole_cache(run: Run, cache: str) -> None:
    window, visible = WINDOWS[cache]
    assert attention_error(run, visible, window=window) < ROUNDING
