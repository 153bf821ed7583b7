"""The cache types ftq4, ftq3 and ftq2: their bytes are those of the study, on every CPU, and nothing traps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..conftest import ROOT, libraries_of
from .types_probe import TYPES

STUDIES = ROOT / "docs" / "studies"
sys.path.insert(0, str(STUDIES))

import ftq  # noqa: E402

BITS = {"ftq4": 4, "ftq3": 3, "ftq2": 2}
ERROR = {"ftq4": 0.0055, "ftq3": 0.0190, "ftq2": 0.0700}
"""Relative squared error of Gaussian values that a writer may have; ours has .0052, .0186 and .0690."""
GAUSSIAN = 4096
"""Blocks of Gaussian values, which come first."""
LARGEST = 57344.0


def hostile() -> np.ndarray:
    """Blocks of what a broken model may give: no numbers, endless ones, none at all, sizes of every kind."""
    rng = np.random.default_rng(7)
    plain = rng.standard_normal((64, 64)).astype(np.float32)
    sizes = (plain * 10.0 ** rng.uniform(-42, 38, (64, 1))).astype(np.float32)
    spread = (plain * 10.0 ** rng.uniform(-12, 6, (64, 64))).astype(np.float32)
    halves = plain.copy()
    halves[:, :32] *= 1e-6
    halves[1::2] = halves[1::2, ::-1]
    broken = plain.copy()
    broken[rng.random(broken.shape) < 0.1] = np.nan
    broken[rng.random(broken.shape) < 0.1] = np.inf
    broken[rng.random(broken.shape) < 0.1] = -np.inf
    spikes = np.zeros((64, 64), np.float32)
    spikes[np.arange(64), np.arange(64)] = plain[0]
    same = [np.full((1, 64), value, np.float32) for value in (0, -0.0, 1, np.nan, np.inf, 1e-45, 1e-9, 3e38)]
    return np.concatenate([sizes, spread, halves, broken, spikes, *same])


def blocks(bits: int) -> np.ndarray:
    """Random bytes with a scale that is finite, and the study's own blocks last."""
    rng = np.random.default_rng(bits)
    random = rng.integers(0, 256, (2048, 2 + 8 * bits), dtype=np.uint8)
    random[:, 0] = rng.integers(4, 244, 2048)
    vectors = json.loads((STUDIES / "ftq-vectors.json").read_text())[f"ftq{bits}"]
    return np.concatenate([random, *(np.frombuffer(bytes.fromhex(v["block"]), np.uint8)[None] for v in vectors)])


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    gaussian = np.random.default_rng(3).standard_normal((GAUSSIAN, 64)).astype(np.float32)
    return {"rows": np.concatenate([gaussian, hostile()]), **{kind: blocks(bits) for kind, bits in BITS.items()}}


@pytest.fixture(scope="module")
def found(
    engine_payload: Callable[[str], Path], given: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """What types_probe.py says."""
    folder, package = tmp_path_factory.mktemp("types"), engine_payload("llama.cpp")
    np.savez(folder / "in.npz", **given)
    command = [sys.executable, "-m", "tests.integration.turboquant.types_probe", str(package)]
    done = subprocess.run(
        [*command, json.dumps(libraries_of(package)), str(folder / "in.npz"), str(folder / "out.npz")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "out.npz") as arrays:
        return dict(arrays)


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_every_writer_writes_the_same_bytes(found: Mapping[str, np.ndarray], kind: str) -> None:
    assert np.array_equal(found[f"{kind}_cpu"], found[f"{kind}_reference"])


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_every_reader_reads_the_values_of_the_study(
    found: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], kind: str
) -> None:
    right = ftq.decode(given[kind], BITS[kind])
    assert np.array_equal(found[f"{kind}_values"], right)
    assert np.array_equal(found[f"{kind}_copied"], right)


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_error_of_gaussian_values(found: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], kind: str) -> None:
    right = given["rows"][:GAUSSIAN]
    read = ftq.decode(found[f"{kind}_cpu"][:GAUSSIAN], BITS[kind])
    assert np.square(read - right).sum() / np.square(right).sum() <= ERROR[kind]


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_what_is_no_number_becomes_one(
    found: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], kind: str
) -> None:
    """No number counts as zero, an endless one as the largest; zeros stay zeros, and a block's error stays bounded."""
    rows, bits = given["rows"][GAUSSIAN:], BITS[kind]
    written = found[f"{kind}_cpu"][GAUSSIAN:]
    meant = np.clip(np.nan_to_num(rows, nan=0.0, posinf=LARGEST, neginf=-LARGEST), -LARGEST, LARGEST)
    read = ftq.decode(written, bits)
    assert np.isfinite(read).all()
    empty = ~meant.any(1)
    assert empty.sum() >= 3
    assert (written[empty] == np.array([0, 4] + [0] * (8 * bits), np.uint8)).all()
    error = np.sqrt(np.square(read - meant).astype(np.float64).sum(1))
    # The least scale is 2^-17, so values far below it come back as sizes up to 2e-5.
    assert (error <= np.sqrt(np.square(meant.astype(np.float64)).sum(1)) + 64 * 2e-5).all()
