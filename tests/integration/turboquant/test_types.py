"""The cache types ftq4, ftq3 and ftq2: their bytes are those of the study, on every engine and device, and nothing traps."""

from __future__ import annotations

import functools
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..conftest import ROOT, libraries_of, on_software_vulkan
from ..numa.attention_models import HEAD_DIM, N_HEAD_KV
from ..split.split_probe import REFUSED
from .conftest import ENGINE, IK, Case, Engine, Failure
from .test_tail import error
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


Found = Mapping[str, np.ndarray]
VULKAN = "Vulkan0"


@pytest.fixture(scope="module")
def found_on(
    request: pytest.FixtureRequest, given: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Found]:
    """What types_probe.py says of an engine's CPU, or of llama.cpp's Vulkan device."""
    folder = tmp_path_factory.mktemp("types")
    np.savez(folder / "in.npz", **given)

    @functools.cache
    def found(where: str) -> Found:
        engine, device = (ENGINE, where) if where == VULKAN else (where, "CPU")
        package: Path
        if where == VULKAN:
            package = request.getfixturevalue("vulkan_payload").root
        else:
            package = request.getfixturevalue("engine_payload")(engine)
        out = folder / f"{where}.npz"
        command = [sys.executable, "-m", "tests.integration.turboquant.types_probe", engine, str(package)]
        done = subprocess.run(
            [*command, json.dumps(libraries_of(package)), str(folder / "in.npz"), str(out), device],
            cwd=ROOT,
            env=os.environ | on_software_vulkan(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(out) as arrays:
            return dict(arrays)

    return found


@pytest.fixture(params=[ENGINE, IK, pytest.param(VULKAN, marks=pytest.mark.deep)])
def found(request: pytest.FixtureRequest, found_on: Callable[[str], Found]) -> Found:
    return found_on(request.param)


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_every_writer_writes_the_same_bytes(found: Found, kind: str) -> None:
    assert np.array_equal(found[f"{kind}_set"], found[f"{kind}_reference"])
    assert np.array_equal(found[f"{kind}_stored"], found[f"{kind}_reference"])


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_every_reader_reads_the_values_of_the_study(found: Found, given: Mapping[str, np.ndarray], kind: str) -> None:
    right = ftq.decode(given[kind], BITS[kind])
    assert np.array_equal(found[f"{kind}_values"], right)
    assert np.array_equal(found[f"{kind}_copied"], right)


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_error_of_gaussian_values(found: Found, given: Mapping[str, np.ndarray], kind: str) -> None:
    right = given["rows"][:GAUSSIAN]
    read = ftq.decode(found[f"{kind}_set"][:GAUSSIAN], BITS[kind])
    assert np.square(read - right).sum() / np.square(right).sum() <= ERROR[kind]


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_what_is_no_number_becomes_one(found: Found, given: Mapping[str, np.ndarray], kind: str) -> None:
    """No number counts as zero, an endless one as the largest; zeros stay zeros, and a block's error stays bounded."""
    rows, bits = given["rows"][GAUSSIAN:], BITS[kind]
    written = found[f"{kind}_set"][GAUSSIAN:]
    meant = np.clip(np.nan_to_num(rows, nan=0.0, posinf=LARGEST, neginf=-LARGEST), -LARGEST, LARGEST)
    read = ftq.decode(written, bits)
    assert np.isfinite(read).all()
    empty = ~meant.any(1)
    assert empty.sum() >= 3
    assert (written[empty] == np.array([0, 4] + [0] * (8 * bits), np.uint8)).all()
    error = np.sqrt(np.square(read - meant).astype(np.float64).sum(1))
    # The least scale is 2^-17, so values far below it come back as sizes up to 2e-5.
    assert (error <= np.sqrt(np.square(meant.astype(np.float64)).sum(1)) + 64 * 2e-5).all()


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("kind", TYPES)
def test_both_engines_write_the_same_bytes(found_on: Callable[[str], Found], kind: str) -> None:
    assert np.array_equal(found_on(ENGINE)[f"{kind}_set"], found_on(IK)[f"{kind}_set"])


PLAIN = Case(k="ftq4", v="f16", flash=False)
MOVED = Case(k="ftq4", v="ftq3", hadamard=True)


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize(
    ("patched", "case"),
    [
        *((engine, replace(PLAIN, step=step)) for engine in (ENGINE, IK) for step in (1, 16)),
        *((engine, replace(MOVED, act=act)) for engine in (ENGINE, IK) for act in ("shift", "copy", "pair")),
        (IK, replace(MOVED, act="defrag")),
        (IK, Case("latent", k="ftq4", v="ftq4")),
    ],
    ids=str,
    indirect=["patched"],
)
def test_a_model_is_near_itself_with_an_f16_cache(patched: Engine, case: Case) -> None:
    """Relative error of the logits; .02 to .07 was seen, and .13 with two bits. Wrong keys give .5 and more."""
    whole = patched.logits(replace(case, k="f16", v="f16"))
    assert error(patched.logits(case), whole) <= 0.12


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize("patched", [IK], indirect=True)
@pytest.mark.parametrize(("k", "v"), [("ftq4", "bf16"), ("q5_0", "ftq4")])
def test_a_pair_without_a_kernel_is_refused(patched: Engine, k: str, v: str) -> None:
    failure = patched.run(Case(k=k, v=v))
    assert isinstance(failure, Failure)
    assert failure.status == REFUSED
    assert f"nothing here computes flash attention with K cache type {k} and V cache type {v}" in failure.output


TOKENS = 48
"""Of the act ``sequence``, which are in its state."""


def layers(state: bytearray, kind: str) -> list[np.ndarray]:
    """The rows of each layer in a state of a sequence, to be read and written: both engines say type and size before them."""
    bits = BITS[kind]
    size = N_HEAD_KV * HEAD_DIM // 64 * (2 + 8 * bits)
    head = struct.pack("<iQ", 504 - bits, size)
    found, at = [], state.find(head)
    while at >= 0:
        data = memoryview(state)[at + len(head) : at + len(head) + TOKENS * size]
        found.append(np.frombuffer(data, np.uint8).reshape(-1, 2 + 8 * bits))
        at = state.find(head, at + 1)
    return found


@pytest.mark.patch("cache-types")
@pytest.mark.parametrize(("source", "target"), [(ENGINE, IK), (IK, ENGINE)])
def test_k_and_v_of_a_state_serve_the_other_engine(
    engine_payload: Callable[[str], Path], source: str, target: str, tmp_path: Path
) -> None:
    """Both transform K and V in the same way, so a state with the other engine's rows in it says the same."""
    case = Case(k="ftq4", v="ftq3", act="sequence", length=TOKENS, hadamard=True)
    engines, states = {}, {}
    for name in (source, target):
        folder = tmp_path / name
        folder.mkdir()
        engines[name] = Engine(name, engine_payload(name), folder)
        saved = replace(case, center=0 if name == ENGINE else None, state=str(folder / "state"))
        engines[name].logits(saved)
        states[name] = bytearray(Path(saved.state).read_bytes())
    for kind in ("ftq4", "ftq3"):
        theirs, ours = layers(states[source], kind), layers(states[target], kind)
        assert len(theirs) == len(ours) == 2
        for other, own in zip(theirs, ours, strict=True):
            values, meant = (ftq.decode(rows, BITS[kind]) for rows in (other, own))
            # The engines add in another order, and a value near a border gets another code.
            assert np.linalg.norm(values - meant) <= 0.15 * np.linalg.norm(meant)
            own[:] = other
    mixed = tmp_path / "mixed"
    mixed.write_bytes(states[target])
    engine, own_case = engines[target], replace(case, center=0 if target == ENGINE else None)
    whole = engine.logits(replace(own_case, k="f16", v="f16", center=None))
    given = error(engine.logits(replace(own_case, act="adopted", state=str(mixed))), whole)
    assert given <= 1.5 * error(engine.logits(own_case), whole)


@pytest.mark.patch("cache-types-vulkan")
def test_shaders_have_the_tables_of_the_cpu() -> None:
    """Which a GPU has to be there for otherwise."""
    folder = ROOT / "patches/turboquant/src/ggml/src"
    c, glsl = (folder / name for name in ("ggml-ftq-impl.h", "ggml-vulkan/vulkan-shaders/ftq.glsl"))
    tables = [re.search(r"ftq_table\[3\]\[64\] = \{(.*?)\};", path.read_text(), re.S) for path in (c, glsl)]
    numbers = [re.findall(r"-?\d+", table[1]) for table in tables if table]
    assert len(numbers[0]) == 3 * 64
    assert numbers[0] == numbers[1]
