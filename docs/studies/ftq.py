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
        30, -63, -2, 41, 17, 24, -10, -50, -34, 95, -19, 58, -23, 8, 1, -73,
        -21, -45, -8, 10, -76, 68, 3, 55, 39, 30, -35, -1, -15, 88, 20, 10,
        2, 39, 8, -6, 15, -44, -17, 105, 85, -75, -14, -29, 61, -26, 29, 127,
        15, -9, -53, -43, -30, -65, 59, 27, -46, 49, 4, -34, 50, -17, -23, 39,
    ),
    3: (
        33, -89, -57, -2, 14, -33, -17, 61, -18, 32, -100, 51, 65, 4, 12, 21,
        -37, -3, 13, 20, -83, -11, 40, -57, 9, -78, 53, 29, 33, -27, 25, -2,
        70, -56, -30, -12, -8, 39, -45, 15, 39, -16, 22, 6, -3, -75, -30, -47,
        94, 22, 45, -23, -43, 70, -1, 123, -36, 69, -57, 23, 45, 6, -6, -18,
    ),
    2: (
        47, -6, 12, -37, -69, -14, 28, 58, 40, 6, -1, -45, 45, -34, 11, -10,
        98, 17, -50, -14, -10, 29, 91, -109, 48, -7, -35, 17, -73, 25, -25, -14,
        -68, -27, 60, 14, 70, 6, -19, 30, 7, 54, -63, -19, -30, -72, 37, 15,
        62, 36, -2, -4, -19, -41, 51, 21, 0, 35, 51, -30, 20, -5, -70, -35,
    ),
}
# fmt: on
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
    deviation = np.sqrt(np.mean(np.square(table)))
    guesses = [np.sqrt(np.square(half).mean(0)) / (deviation * _UNIT) for half in halves]
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
