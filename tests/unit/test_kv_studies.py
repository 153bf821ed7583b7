"""The study of KV cache formats: its coders do what it says of them, and ftq's bytes are what their page says."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

STUDIES = Path(__file__).resolve().parents[2] / "docs" / "studies"
sys.path.insert(0, str(STUDIES))

import ftq  # noqa: E402
import kv_coders  # noqa: E402
import kv_types  # noqa: E402


def gaussian(blocks: int, seed: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((blocks, 1, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "bits", "published"),
    [
        ("q4_0", 4.5, 0.0074),
        ("q4_1", 5.0, 0.0061),
        ("turbo4", 4.125, 0.0092),
        ("turbo3", 3.125, 0.0338),
        ("turbo2", 2.125, 0.1185),
        ("s4:b32:e5m3:n10", 4.25, 0.0063),
        ("s3:b32:e5m3:n10", 3.25, 0.0261),
        ("s2:b64:e5m3:n10", 2.125, 0.1113),
        ("ftq4", 4.25, 0.0051),
        ("ftq3", 3.25, 0.0185),
        ("ftq2", 2.25, 0.0686),
    ],
)
def test_distortion_of_a_gaussian_is_the_published_one(name: str, bits: float, published: float) -> None:
    coder, sample = kv_coders.make(name), gaussian(768).reshape(-1, 1, 128)
    assert coder.bits(128) == bits
    assert kv_coders.distortion(sample, coder(sample)) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(("bits", "window"), [(2, 4), (3, 5)])
def test_viterbi_finds_the_best_of_all_paths(bits: int, window: int) -> None:
    rng = np.random.default_rng(1)
    table = rng.standard_normal(1 << window).astype(np.float32)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    found = np.square(x - table[kv_coders.viterbi(x, table, bits)]).sum(0)
    for column in range(x.shape[1]):
        least = np.inf
        for first in range(1 << window):
            for steps in itertools.product(range(1 << bits), repeat=2):
                state, error = first, (x[0, column] - table[first]) ** 2
                for t, new in enumerate(steps, 1):
                    state = (state << bits | new) & ((1 << window) - 1)
                    error += (x[t, column] - table[state]) ** 2
                least = min(least, float(error))
        assert found[column] == pytest.approx(least, rel=1e-5)


def test_a_ring_begins_with_its_own_last_bits() -> None:
    table = kv_coders.train(2, 4, rounds=2)
    x = np.random.default_rng(2).standard_normal((64, 9)).astype(np.float32)
    states = kv_coders.trellis_states(x, table, 2, "ring")
    following = np.concatenate([states, states[:1]])
    assert ((following[1:] >> 2) == (following[:-1] & 3)).all()


def test_rotating_twice_changes_nothing() -> None:
    rows = np.random.default_rng(3).standard_normal((4, 2, 256)).astype(np.float32)
    for size in (64, 256):
        turned = kv_coders.rotate(rows, size)
        assert np.allclose(kv_coders.rotate(turned, size), rows, atol=1e-5)
        assert np.allclose(np.square(turned).sum(), np.square(rows).sum(), rtol=1e-5)


def by_the_page(block: bytes, bits: int) -> list[float]:
    """One block read with whole numbers alone, as the format's description says it."""
    stream = int.from_bytes(block[1:], "little") >> (bits + 1)
    codes = (block[0], block[0] + (block[1] & 7) - 4)
    scales = [float(np.array([code << 7], np.uint16).view(np.float16)[0]) for code in codes]
    return [scales[t // 32] * float(ftq.TABLE[bits][(stream >> (bits * t)) & 127]) / 32 for t in range(64)]


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_block_reads_as_the_page_says(bits: int) -> None:
    blocks = ftq.encode(gaussian(6)[:, 0] * 3, bits)
    assert blocks.shape == (6, 2 + 8 * bits)
    assert (blocks[:, 1] >> 3 & ((1 << (bits - 2)) - 1) == 0).all(), "the unused bits are zero"
    assert [by_the_page(block.tobytes(), bits) for block in blocks] == ftq.decode(blocks, bits).tolist()


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_vectors(bits: int) -> None:
    vectors = json.loads((STUDIES / "ftq-vectors.json").read_text())[f"ftq{bits}"]
    for vector in vectors:
        block = np.frombuffer(bytes.fromhex(vector["block"]), np.uint8)[None]
        assert ftq.decode(block, bits)[0].tolist() == vector["read"], vector["name"]
        again = ftq.decode(ftq.encode(np.array([vector["written"]], np.float32), bits), bits)[0]
        assert np.allclose(again, vector["read"]), vector["name"]


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_unusual_values(bits: int) -> None:
    usual = gaussian(1)[0, 0]
    zeros = ftq.encode(np.zeros((1, 64), np.float32), bits)
    assert zeros[0].tolist() == [0, 4] + [0] * 8 * bits
    assert not ftq.decode(zeros, bits).any()
    for strange in (np.nan, np.inf, -np.inf, 1e30, 1e-30, 1e-42, 0.0):
        for count in (1, 32, 64):
            values = usual.copy()
            values[:count] = strange
            read = ftq.decode(ftq.encode(values[None], bits), bits)
            assert np.isfinite(read).all()
    # One half may be much smaller than the other, and a row much smaller or larger than others.
    for factor in (1e-3, 1.0, 1e3):
        values = usual * np.float32(factor)
        assert kv_coders.distortion(values, ftq.decode(ftq.encode(values[None], bits), bits)[0]) < 0.15
    values = usual.copy()
    values[:32] *= 1e-3
    assert kv_coders.distortion(values, ftq.decode(ftq.encode(values[None], bits), bits)[0]) < 0.15


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_tables_are_symmetric_and_fit_a_byte(bits: int) -> None:
    table = ftq.TABLE[bits]
    assert (table == -table[::-1]).all()
    assert (np.abs(table) <= 127).all()
    assert (table == np.rint(table)).all()


@pytest.mark.parametrize(
    "name",
    [
        "q4_0",
        "q8_0/ftq3",
        "ftq4+tail512+sinks4",
        "ftq2+gk1.05+gv0.95",
        "q4_0+engine",
        "s4:b32:e5m3:n10+plain",
        "ftq3+centred",
    ],
)
def test_a_setting_has_one_name(name: str) -> None:
    assert kv_types.Setting.parse(name).name == name


def test_a_tail_and_sinks_stay_as_they_are() -> None:
    assert kv_types.due(batch_start=0, batch=32, tail=64, sinks=4).tolist() == []
    assert kv_types.due(batch_start=64, batch=32, tail=64, sinks=4).tolist() == []
    assert kv_types.due(batch_start=96, batch=32, tail=64, sinks=4).tolist() == list(range(4, 32))
    every = np.concatenate([kv_types.due(start, 32, 64, 4) for start in range(0, 320, 32)])
    assert every.tolist() == list(range(4, 288 - 64))


def written(rows: np.ndarray, start: int, cache: np.ndarray) -> SimpleNamespace:
    """The node by which an engine wrote `rows` (tokens, width) into an f16 cache from the place `start` on."""
    places = np.arange(start, start + len(rows), dtype=np.int64)
    cache[places] = rows
    source = SimpleNamespace(type=0, ne=rows.shape[::-1], nb=(4, rows.strides[0]), data=rows.ctypes.data)
    index = SimpleNamespace(type=27, data=places.ctypes.data, kept=places)
    sources = [SimpleNamespace(contents=source), SimpleNamespace(contents=index)]
    view = SimpleNamespace(contents=SimpleNamespace(name=b"cache_k_l0"))
    return SimpleNamespace(
        name=b"cache_k_l0 (view)", type=1, ne=cache.shape[::-1], data=cache.ctypes.data, src=sources, view_src=view
    )


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        ("q4_0", range(96)),
        ("q4_0+sinks4", range(4, 96)),
        ("q4_0+tail32+sinks4", range(4, 32)),
        ("q4_0+tail512", range(0)),
        ("q4_0+centred", range(96)),
    ],
)
def test_the_hook_changes_the_rows_it_should(name: str, coded: range) -> None:
    rows = np.random.default_rng(8).standard_normal((96, 128)).astype(np.float32) + 5
    cache = np.zeros((128, 128), np.float16)
    hook = kv_types.Hook({"k": 64, "v": 64}, centres={"k0": kv_coders.rotate(np.full((2, 64), 5, np.float32), 64)})
    hook.use(kv_types.Setting.parse(name))
    for start in range(0, 96, 32):
        hook.after(written(np.ascontiguousarray(rows[start : start + 32]), start, cache))
    changed = np.flatnonzero((cache[:96] != rows.astype(np.float16)).any(1))
    assert changed.tolist() == list(coded)
    error = kv_coders.distortion(rows, cache[:96].astype(np.float32))
    assert error < (0.0005 if "centred" in name else 0.02)


def test_divergence_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(6)
    logits = rng.standard_normal((2, 3, 50)).astype(np.float32)
    p, q = (np.exp(part) / np.exp(part).sum(1, keepdims=True) for part in logits.astype(np.float64))
    kld, same = kv_types.divergence(np.log(p).astype(np.float32), np.log(q).astype(np.float32))
    assert np.allclose(kld, (p * np.log(p / q)).sum(1), rtol=1e-4)
    assert same.tolist() == (p.argmax(1) == q.argmax(1)).tolist()
