"""Codes for rotated rows of a KV cache, emulated in numpy: what each writes, and what is read back from it.

A coder takes rotated rows, float32 of shape (tokens, heads, head size), and returns what a reader of its format sees.
`bits` counts everything that is stored: codes, scales, zero points and start states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import ftq
import numpy as np
from ftq import Floats, Ints

__all__ = ["Coder", "Floats", "Ints", "distortion", "hadamard", "make", "rotate", "train", "viterbi"]

LLOYD_MAX = {
    1: (0.797885,),
    2: (0.45278, 1.51042),
    3: (0.24509, 0.75601, 1.34391, 2.15195),
    4: (0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259),
}
"""Positive centroids of the best scalar code of a normal variable, by bits."""

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Coder:
    """One format: its name, what it stores per value in bits (as a function of the head size), and its round trip."""

    name: str
    bits: Callable[[int], float]
    code: Callable[[Floats], Floats]

    def __call__(self, rows: Floats) -> Floats:
        """What is read back after `rows` (tokens, heads, head size) were written."""
        return self.code(rows)


def distortion(rows: Floats, read: Floats) -> float:
    """Squared error over squared size."""
    return float(np.square(rows - read, dtype=np.float64).sum() / np.square(rows, dtype=np.float64).sum())


@cache
def hadamard(size: int) -> Floats:
    """The orthonormal Hadamard matrix of a power of two; it is its own inverse."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.ascontiguousarray(matrix / np.sqrt(np.float32(size)), dtype=np.float32)


def rotate(rows: Floats, size: int) -> Floats:
    """`rows` with each piece of `size` values of the last axis rotated; twice gives `rows` again."""
    return (rows.reshape(-1, size) @ hadamard(size)).reshape(rows.shape)


# Scales ----------------------------------------------------------------------------------------------------------


@cache
def scale_grid(name: str) -> tuple[Floats, int]:
    """Every scale of a format in ascending order, and how many bits one takes.

    "eXmY" has no sign. e5m3 is the upper byte of a half without its sign bit; e4m4 has a bias of 11, e8m0 of 127.
    """
    if name in ("fp16", "e5m3", "e5m2"):
        step = {"fp16": 1, "e5m3": 1 << 7, "e5m2": 1 << 8}[name]
        grid = np.arange(0, 0x7C00, step, dtype=np.uint16).view(np.float16).astype(np.float32)
        return grid, {"fp16": 16, "e5m3": 8, "e5m2": 7}[name]
    if name == "e8m0":
        return np.exp2(np.arange(-40, 40, dtype=np.float32)), 8
    if name == "e4m4":
        code = np.arange(256)
        exponent, mantissa = code >> 4, code & 15
        normal = np.exp2(exponent - 11.0) * (1 + mantissa / 16)
        return np.where(exponent > 0, normal, np.exp2(-10.0) * mantissa / 16).astype(np.float32), 8
    msg = f"there is no scale format {name!r}"
    raise ValueError(msg)


def to_grid(value: Floats, grid: Floats) -> Floats:
    """The value of `grid` nearest to each `value`."""
    middles = (grid[1:] + grid[:-1]) / 2
    return grid[np.searchsorted(middles, value)]


def _factors(tries: int, spread: float) -> list[float]:
    """Factors on the first guess of a scale, at equal ratios, from 1/spread to spread."""
    return [1.0] if tries == 1 else [float(f) for f in np.geomspace(1 / spread, spread, tries)]


# Scalar codes ------------------------------------------------------------------------------------------------------


def _levels(bits: int) -> Floats:
    half = np.array(LLOYD_MAX[bits], np.float32)
    return np.concatenate([-half[::-1], half])


def _nearest(x: Floats, levels: Floats) -> Floats:
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


def _best_scale(
    blocks: Floats, guess: Floats, factors: list[float], grid: Floats, read: Callable[[Floats], Floats]
) -> Floats:
    """Round trip of `blocks` (n, size) with the best of several scales each; `read` codes blocks of unit scale."""
    best = np.zeros_like(blocks)
    least = np.full(len(blocks), np.inf, np.float32)
    for factor in factors:
        scale = to_grid(guess * np.float32(factor), grid)[:, None]
        out = read(blocks / np.where(scale > 0, scale, 1)) * scale
        error = np.square(blocks - out).sum(1)
        better = error < least
        best[better], least[better] = out[better], error[better]
    return best


def _rms(blocks: Floats) -> Floats:
    out: Floats = np.sqrt(np.square(blocks).mean(1))
    return out


def scalar(bits: int, block: int, scale: str, tries: int, levels: Floats | None = None) -> Coder:
    """A scalar code with one scale a block, of which `tries` are tried."""
    grid, scale_bits = scale_grid(scale)
    table = _levels(bits) if levels is None else levels

    def code(rows: Floats) -> Floats:
        blocks = rows.reshape(-1, block)
        factors = _factors(tries, 1.35)
        return _best_scale(blocks, _rms(blocks), factors, grid, lambda x: _nearest(x, table)).reshape(rows.shape)

    return Coder(f"s{bits}:b{block}:{scale}:n{tries}", lambda size: bits + scale_bits / block, code)


def turbo(bits: int, rule: str = "norm") -> Coder:
    """TurboQuant's scalar code as the forks store it: the block is the head (at most 128), its norm in 16 bits.

    `rule` says what the stored number is: "norm" gives the read row the norm of the written one, "mse" least error,
    "raw" is the norm of the written row as it is.
    """
    levels = _levels(bits)

    def code(rows: Floats) -> Floats:
        size = min(rows.shape[-1], 128)
        blocks = rows.reshape(-1, size)
        scale = _rms(blocks)[:, None]
        c = _nearest(blocks / np.where(scale > 0, scale, 1), levels)
        if rule == "norm":
            scale = scale * np.sqrt(size / np.square(c).sum(1, keepdims=True))
        elif rule == "mse":
            scale = (blocks * c).sum(1, keepdims=True) / np.square(c).sum(1, keepdims=True)
        return (c * scale.astype(np.float16).astype(np.float32)).reshape(rows.shape)

    return Coder(f"turbo{bits}" + ("" if rule == "norm" else f":{rule}"), lambda size: bits + 16 / min(size, 128), code)


# Types that llama.cpp has --------------------------------------------------------------------------------------------


def _half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


def _inverse(d: Floats) -> Floats:
    return np.where(d == 0, 0, 1 / np.where(d == 0, 1, d)).astype(np.float32)


def _q8_0(x: Floats) -> Floats:
    d = np.abs(x).max(1, keepdims=True) / 127
    out: Floats = np.rint(x * _inverse(d)) * _half(d)
    return out


def _q4_0(x: Floats) -> Floats:
    extreme = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    d = extreme / -8
    return (np.minimum(np.floor(x * _inverse(d) + 8.5), 15) - 8) * _half(d)


def _with_minimum(top: int) -> Callable[[Floats], Floats]:
    def code(x: Floats) -> Floats:
        low = x.min(1, keepdims=True)
        d = (x.max(1, keepdims=True) - low) / top
        out: Floats = np.minimum(np.floor((x - low) * _inverse(d) + 0.5), top) * _half(d) + _half(low)
        return out

    return code


def _iq4_nl(x: Floats) -> Floats:
    levels = np.array(_IQ4_NL, np.float32)
    extreme = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    c = _nearest(x * levels[0] * _inverse(extreme), levels)
    up, down = (x**3 * c).sum(1, keepdims=True), np.square(x * c).sum(1, keepdims=True)
    return _half(up * _inverse(down)) * c


_STOCK: dict[str, tuple[float, Callable[[Floats], Floats]]] = {
    "q8_0": (8.5, _q8_0),
    "q5_1": (6, _with_minimum(31)),
    "q4_1": (5, _with_minimum(15)),
    "q4_0": (4.5, _q4_0),
    "iq4_nl": (4.5, _iq4_nl),
}


def stock(name: str) -> Coder:
    """A type of llama.cpp with blocks of 32, by the arithmetic of its reference code."""
    bits, code = _STOCK[name]
    return Coder(name, lambda size: bits, lambda rows: code(rows.reshape(-1, 32)).reshape(rows.shape))


# Trellis codes --------------------------------------------------------------------------------------------------------


def viterbi(x: Floats, table: Floats, bits: int, start: Ints | None = None, end: Ints | None = None) -> Ints:
    """The states (time, n) whose table entries are nearest to the columns of `x` (time, n), in sum of squares.

    A state is the last `window` bits of the stream, 2**window = len(table); each value brings `bits` new ones. `start`
    fixes the bits before the first value, `end` the newest bits of the last state, window - bits of them each.
    """
    states, ways, (steps, n) = len(table), 1 << bits, x.shape
    groups = states >> bits  # states that share the bits they keep have the same predecessors
    costs = np.empty((steps, states, n), np.float32)
    if start is None:
        before = np.zeros((groups, n), np.float32)
    else:
        before = np.full((groups, n), np.inf, np.float32)
        before[start, np.arange(n)] = 0
    square, twice = np.square(table)[:, None], (-2 * table)[:, None]
    for t in range(steps):
        now = costs[t]
        np.multiply(twice, x[t], out=now)
        now += square
        by_group = now.reshape(groups, ways, n)
        by_group += before[:, None, :]
        # Predecessors of group g are the states g, g + groups, g + 2 * groups ...
        before = now.reshape(ways, groups, n).min(0)
    last = costs[-1]
    columns = np.arange(n)
    if end is None:
        state = last.argmin(0)
    else:
        choices = last.reshape(ways, groups, n)[:, end, columns]
        state = (choices.argmin(0) * groups) + end
    out = np.empty((steps, n), np.int64)
    for t in range(steps - 1, -1, -1):
        out[t] = state
        if t:
            group = state >> bits
            choices = costs[t - 1].reshape(ways, groups, n)[:, group, columns]
            state = choices.argmin(0) * groups + group
    return out


def trellis_states(x: Floats, table: Floats, bits: int, ends: str) -> Ints:
    """States for `x` (time, n); `ends` says what the bits before the first value are.

    "free": any, stored; "zero": zeros; "ring": the last bits of the block itself, chosen by coding the block twice.
    """
    n = x.shape[1]
    groups = len(table) >> bits
    if ends == "free":
        return viterbi(x, table, bits)
    if ends == "zero":
        return viterbi(x, table, bits, start=np.zeros(n, np.int64))
    if ends == "ring":
        half = len(x) // 2
        turned = viterbi(np.roll(x, half, 0), table, bits)
        # The state at the seam of the turned block: what it keeps for the first value of the block as written.
        seam = turned[half - 1] & (groups - 1)
        return viterbi(x, table, bits, start=seam, end=seam)
    msg = f"there is no way {ends!r} to start a block"
    raise ValueError(msg)


_CHUNK = 512  # blocks coded at once: their costs stay in the processor's cache


def _trellis_read(x: Floats, table: Floats, bits: int, ends: str) -> Floats:
    """Round trip of blocks (n, size) of unit scale."""
    out = np.empty_like(x)
    for at in range(0, len(x), _CHUNK):
        part = np.ascontiguousarray(x[at : at + _CHUNK].T)
        out[at : at + _CHUNK] = table[trellis_states(part, table, bits, ends)].T
    return out


@cache
def train(bits: int, window: int, *, symmetric: bool = False, seed: int = 1, rounds: int = 40) -> Floats:
    """A table for a trellis with a window of `window` bits, fitted to the Gaussian by Lloyd's iteration.

    `symmetric` makes the entry of a state the negative of that of its complement.
    """
    rng = np.random.default_rng(seed)
    states = 1 << window
    sorted_values = np.sort(rng.standard_normal((states, 200)), axis=None).reshape(states, 200).mean(1)
    table = rng.permutation(sorted_values).astype(np.float32)
    if symmetric:
        table = (table - table[::-1]) / np.float32(np.sqrt(2))
    for round_ in range(rounds):
        x = rng.standard_normal((128, 256 if round_ < rounds - 8 else 1024)).astype(np.float32)
        state = viterbi(x, table, bits)
        total = np.bincount(state.ravel(), x.ravel(), states)
        count = np.bincount(state.ravel(), minlength=states)
        if symmetric:
            total, count = total - total[::-1], count + count[::-1]
        table = np.where(count > 0, total / np.maximum(count, 1), table).astype(np.float32)
    return table


def trellis(
    bits: int, window: int, block: int, scale: str, tries: int, ends: str = "ring", table: Floats | None = None
) -> Coder:
    """A trellis code with one scale a block, of which `tries` are tried, each by a whole pass of the encoder."""
    grid, scale_bits = scale_grid(scale)
    start_bits = window - bits if ends == "free" else 0

    def code(rows: Floats) -> Floats:
        entries = train(bits, window) if table is None else table
        blocks = rows.reshape(-1, block)
        guess = _rms(blocks)
        factors = _factors(tries, 1.15)
        return _best_scale(blocks, guess, factors, grid, lambda x: _trellis_read(x, entries, bits, ends)).reshape(
            rows.shape
        )

    name = f"t{bits}:w{window}:b{block}:{scale}:n{tries}:{ends}"
    return Coder(name, lambda size: bits + (scale_bits + start_bits) / block, code)


# Other codes ----------------------------------------------------------------------------------------------------------


def kvarn(bits: int, axis: str, tile: int = 128, rounds: int = 16) -> Coder:
    """KVarN's tiles, from its published description (arXiv 2606.03458): balance both axes, then round.

    A tile of `tile` tokens of a head is divided by row and column scales until every row and column has the same
    deviation, then rounded between the least and the greatest value of each group. A group is a token's row (`axis`
    "token") or a channel's column ("channel"); its scale and zero point, and the other axis' scale, take 16 bits each.
    Tokens that fill no tile stay as they are: the format keeps them exact until the tile is full.
    """
    top = (1 << bits) - 1

    def read(y: Floats) -> Floats:
        row = np.ones((*y.shape[:2], 1), np.float32)
        column = np.ones((y.shape[0], 1, y.shape[2]), np.float32)
        for _ in range(rounds):
            row = row * np.clip((y / row / column).std(2, keepdims=True), 1e-8, None)
            column = column * np.clip((y / row / column).std(1, keepdims=True), 1e-8, None)
            # Rows may take any common factor from columns; halves hold columns near 1.
            size = np.exp(np.log(column).mean((1, 2), keepdims=True))
            row, column = row * size, column / size
        along, other = (2, _half(column)) if axis == "token" else (1, _half(row))
        z = y / other
        low = z.min(along, keepdims=True)
        step = _half((z.max(along, keepdims=True) - low) / top)
        low = _half(low)
        out: Floats = (np.clip(np.rint((z - low) * _inverse(step)), 0, top) * step + low) * other
        return out

    def code(rows: Floats) -> Floats:
        tokens, heads, size = rows.shape
        whole = tokens // tile * tile
        out = rows.copy()
        tiles = rows[:whole].reshape(-1, tile, heads, size).transpose(0, 2, 1, 3).reshape(-1, tile, size)
        read_back = read(np.ascontiguousarray(tiles)).reshape(-1, heads, tile, size).transpose(0, 2, 1, 3)
        out[:whole] = read_back.reshape(whole, heads, size)
        return out

    def stored(size: int) -> float:
        group, across = (size, tile) if axis == "token" else (tile, size)
        return bits + 32 / group + 16 / across

    return Coder(f"kvarn{bits}:{axis}", stored, code)


def noise(relative: float) -> Coder:
    """No format: the rows plus Gaussian noise of `relative` times their energy, shrunk as a least-error code does."""
    rng = np.random.default_rng(7)

    def code(rows: Floats) -> Floats:
        size = np.sqrt(np.square(rows).mean(-1, keepdims=True) * np.float32(relative * (1 - relative)))
        out: Floats = rows * np.float32(1 - relative) + size * rng.standard_normal(rows.shape).astype(np.float32)
        return out

    return Coder(f"noise:{relative}", lambda size: float("nan"), code)


def _ftq(name: str, bits: int, tries: int) -> Coder:
    def code(rows: Floats) -> Floats:
        return ftq.decode(ftq.encode(rows.reshape(-1, ftq.BLOCK), bits, tries), bits).reshape(rows.shape)

    return Coder(name, lambda size: bits + 16 / ftq.BLOCK, code)


def make(name: str) -> Coder:
    """The coder a name stands for.

    These are `f16`, `q4_0` and others of llama.cpp, `ftq4`, `ftq4:n1` (scales tried), `turbo3`, `turbo3:mse`,
    `kvarn4:token`, `noise:0.01`, `s4:b64:e5m3:n5` (bits, block, scale, scales tried) and
    `t3:w6:b64:e5m3:n1:ring` (with the window and the ends).
    """
    head, *rest = name.split(":")
    if name == "f16":
        return Coder(name, lambda size: 16, _half)
    if head in _STOCK:
        return stock(head)
    if head.startswith("turbo"):
        return turbo(int(head[5:]), *rest)
    if head.startswith("kvarn"):
        return kvarn(int(head[5:]), rest[0])
    if head in ("ftq4", "ftq3", "ftq2"):
        return _ftq(name, int(head[3]), int(rest[0][1:]) if rest else 3)
    if head == "noise":
        return noise(float(rest[0]))
    if head[0] == "s":
        block, scale, tries = rest
        return scalar(int(head[1:]), int(block[1:]), scale, int(tries[1:]))
    if head[0] == "t":
        window, block, scale, tries, ends = rest
        return trellis(int(head[1:]), int(window[1:]), int(block[1:]), scale, int(tries[1:]), ends)
    msg = f"there is no coder {name!r}"
    raise ValueError(msg)
