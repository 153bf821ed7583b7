"""The formats ftq4, ftq3 and ftq2, byte for byte: a reference that writes and reads their blocks.

A block holds 64 values in 2 + 8k bytes, k = 4, 3 or 2 bits a value:

    byte 0      d     scale of values 0 to 31: the half whose bits are d << 7
    byte 1      aux   bits 0 to 2: the scale of values 32 to 63 is the half whose bits are (d + (aux & 7) - 4) << 7;
                      bits 3 to k: zero; the bits from k + 1 up begin the stream
    byte 2 ...        the rest of the stream, least significant bits first

The stream has 7 - k bits that belong to no value, then k bits for each of the 64. Value t is

    half(scale) * TABLE[k][(stream >> (k * t)) & 127] / 32

so its table index is its own k bits over the 7 - k bits before them. A block of zeros has d = 0 and (aux & 7) = 4.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "TABLE", "WINDOW", "Floats", "Ints", "decode", "encode"]

Floats: TypeAlias = NDArray[Any]  # float32 throughout
Ints: TypeAlias = NDArray[np.int64]
Bytes: TypeAlias = NDArray[np.uint8]

BLOCK: Final = 64
WINDOW: Final = 7
_HALF: Final = BLOCK // 2
_UNIT: Final = np.float32(1 / 32)
_LARGEST: Final = 57344.0

# Entries 64 to 127 of a table are entries 63 to 0 with the other sign.
# fmt: off
_LOWER: Final[dict[int, tuple[int, ...]]] = {
    4: (
        33, -66, -2, 43, 20, 26, -9, -51, -35, 95, -19, 58, -24, 11, 5, -75,
        -22, -47, -7, 6, -73, 70, 0, 57, 41, 32, -36, -3, -14, 91, 21, 13,
        2, 39, 10, -7, 17, -44, -18, 104, 85, -80, -14, -27, 64, -29, 30, 125,
        15, -10, -54, -44, -31, -65, 60, 27, -48, 48, 4, -35, 54, -18, -24, 39,
    ),
    3: (
        36, -92, -55, -2, 16, -34, -15, 61, -22, 31, -102, 53, 76, -2, 12, 18,
        -36, -2, 12, 28, -85, -11, 44, -58, 8, -74, 57, 19, 39, -27, 28, -5,
        67, -59, -30, -14, -3, 31, -44, 11, 39, -20, 22, 6, -10, -75, -37, -51,
        91, 20, 44, -23, -44, 68, 1, 119, -37, 71, -52, 28, 50, 12, -4, -19,
    ),
    2: (
        58, -8, 18, -41, -62, -19, 21, 62, 43, -1, 9, -49, 53, -39, 13, -13,
        105, 22, -50, -13, -8, 25, 86, -107, 41, -10, -37, 10, -72, 39, -25, 6,
        -64, -33, 50, 9, 82, 4, -17, 27, 8, 48, -71, -20, -29, -89, 47, 18,
        64, 28, -8, -10, -28, -46, 44, 20, 3, 36, 62, -34, 23, 3, -71, -27,
    ),
}
# fmt: on
# The deviation of the values, in a table's unit, that a table suits best.
_SUITED: Final = {4: 40.7, 3: 41.0, 2: 41.7}
_SCALES: Final = np.arange(0, 0x7C00, 0x80, dtype=np.uint16).view(np.float16).astype(np.float32)


def _whole(lower: tuple[int, ...]) -> Floats:
    half = np.array(lower, np.float32)
    return np.concatenate([half, -half[::-1]])


TABLE: Final[dict[int, Floats]] = {bits: _whole(lower) for bits, lower in _LOWER.items()}


def _forward(x: Floats, table: Floats, bits: int, before: Floats) -> tuple[Floats, Floats]:
    """Least cost, less the squares of `x` (time, n), of every path into every state at every time.

    `before` (groups, n) is the cost of coming from each group: the states with the same newest 7 - bits bits.
    """
    states, ways, (steps, n) = len(table), 1 << bits, x.shape
    groups = states >> bits
    costs = np.empty((steps, states, n), np.float32)
    square, twice = np.square(table)[:, None], (-2 * table)[:, None]
    for t in range(steps):
        now = costs[t]
        np.multiply(twice, x[t], out=now)
        now += square
        by_new_bits = now.reshape(ways, groups, n)
        by_new_bits += before
        before = now.reshape(groups, ways, n).min(1)
    return costs, before


def _back(costs: Floats, bits: int, group: Ints | None) -> tuple[Ints, Ints]:
    """The best states (time, n) that end in `group` (None: anywhere), and the group before the first."""
    steps, states, n = costs.shape
    ways, columns = 1 << bits, np.arange(n)
    out = np.empty((steps, n), np.int64)
    for t in range(steps - 1, -1, -1):
        if group is None:
            state = costs[t].argmin(0)
        else:
            state = costs[t].reshape(states >> bits, ways, n)[group, :, columns].argmin(1) + (group << bits)
        out[t] = state
        group = state & ((states >> bits) - 1)
    assert group is not None
    return out, group


def _tried(
    x: Floats, table: Floats, bits: int, guess: Floats, least: Ints, most: Ints, tries: int, before: Floats
) -> tuple[Ints, Floats, Floats]:
    """Scale codes (n), costs and group costs of the best of some scales for half a block of values `x` (32, n).

    `before` and the group costs returned are in the values' own unit.
    """
    middles = (_SCALES[1:] + _SCALES[:-1]) / 2
    factors = [1.0] if tries == 1 else [float(f) for f in np.geomspace(1 / 1.15, 1.15, tries)]
    best = np.full(x.shape[1], np.inf, np.float32)
    code = np.zeros(x.shape[1], np.int64)
    kept: tuple[Floats, Floats] | None = None
    for factor in factors:
        trial = np.clip(np.searchsorted(middles, guess * np.float32(factor)), least, most)
        scale = np.where(trial > 0, _SCALES[trial] * _UNIT, 1).astype(np.float32)
        costs, groups = _forward(x / scale, table, bits, before / np.square(scale))
        groups = groups * np.square(scale)
        total = groups.min(0)
        better = total < best
        if kept is None:
            kept = costs, groups
        else:
            kept[0][:, :, better], kept[1][:, better] = costs[:, :, better], groups[:, better]
        best[better], code[better] = total[better], trial[better]
    assert kept is not None
    return code, kept[0], kept[1]


def encode(values: Floats, bits: int, tries: int = 3) -> Bytes:
    """The blocks (n, 2 + 8 * bits) of `values` (n, 64), trying `tries` scales for each half of a block.

    A value that is no number counts as zero; greater sizes than 57344 count as that.
    """
    values = np.clip(np.nan_to_num(values, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST), -_LARGEST, _LARGEST)
    out = [_encode(values[at : at + 256], bits, tries) for at in range(0, len(values), 256)]
    return np.concatenate(out) if out else np.empty((0, 2 + 8 * bits), np.uint8)


def _encode(values: Floats, bits: int, tries: int) -> Bytes:
    table, n = TABLE[bits], len(values)
    top = len(_SCALES) - 1
    halves = [np.ascontiguousarray(values[:, at : at + _HALF].T, dtype=np.float32) for at in (0, _HALF)]
    guesses = [np.sqrt(np.square(half).mean(0)) / (_SUITED[bits] * _UNIT) for half in halves]
    # A half that is much smaller than the other takes the least scale that the other's allows.
    guesses[0] = np.maximum(guesses[0], guesses[1] * np.float32(0.7))
    one = np.ones(n, np.int64)
    free = np.zeros((len(table) >> bits, n), np.float32)
    first, costs_1, groups = _tried(halves[0], table, bits, guesses[0], one, (top - 3) * one, tries, free)
    least, most = np.maximum(first - 4, 1), np.minimum(first + 3, top)
    second, costs_2, _ = _tried(halves[1], table, bits, guesses[1], least, most, tries, groups)
    states_2, group = _back(costs_2, bits, None)
    states_1, start = _back(costs_1, bits, group)
    states = np.concatenate([states_1, states_2])
    # The stream: the bits before the first value, then each value's own, which are the upper ones of its state.
    before = (start[:, None] >> np.arange(WINDOW - bits)) & 1
    new = ((states.T >> (WINDOW - bits))[:, :, None] >> np.arange(bits)) & 1
    delta = ((second - first + 4)[:, None] >> np.arange(3)) & 1
    unused = np.zeros((n, bits - 2), np.int64)
    stream = np.concatenate([delta, unused, before, new.reshape(n, -1)], 1).astype(np.uint8)
    blocks = np.concatenate([first[:, None].astype(np.uint8), np.packbits(stream, axis=1, bitorder="little")], 1)
    blocks[~values.any(1)] = np.array([0, 4] + [0] * (8 * bits), np.uint8)
    return blocks


def decode(blocks: Bytes, bits: int) -> Floats:
    """The values (n, 64) of `blocks` (n, 2 + 8 * bits)."""
    stream = np.unpackbits(blocks[:, 1:], axis=1, bitorder="little")[:, bits + 1 :]
    at = bits * np.arange(BLOCK)[:, None] + np.arange(WINDOW)
    index = (stream[:, at].astype(np.int64) << np.arange(WINDOW)).sum(2)
    first = blocks[:, 0].astype(np.int64)
    second = first + (blocks[:, 1] & 7) - 4
    scales = (np.stack([first, second], 1) << 7).astype(np.uint16).view(np.float16).astype(np.float32)
    out: Floats = TABLE[bits][index] * np.repeat(scales * _UNIT, _HALF, axis=1)
    return out
