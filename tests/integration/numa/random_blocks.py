"""Random weights in GGUF's quantized formats: random bits in every block, with scales that give a chosen spread.

No quantizer is needed, and the formats that have none in the ``gguf`` package come as easily as the others. The layout
of the blocks is in ggml-common.h of either engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
from numpy.typing import NDArray

Type = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class _Layout:
    """Where the f16 scale (and offset) of a block are, and what random bits amount to if the scale is 1.

    ``spread`` is the standard deviation of the values; an offset of ``centre`` times the scale makes their mean 0.
    """

    scale_at: int
    spread: float
    offset_at: int | None = None
    centre: float = 0.0


_LAYOUTS: Mapping[Type, _Layout] = {
    Type.Q4_0: _Layout(0, 4.6),
    Type.Q4_1: _Layout(0, 4.6, 2, -7.5),
    Type.Q5_0: _Layout(0, 9.2),
    Type.Q5_1: _Layout(0, 9.2, 2, -15.5),
    Type.Q8_0: _Layout(0, 74.0),
    Type.Q2_K: _Layout(80, 17.0, 82, 1.5),
    Type.Q3_K: _Layout(108, 42.0),
    Type.Q4_K: _Layout(0, 258.0, 2, 7.5),
    Type.Q5_K: _Layout(0, 516.0, 2, 15.5),
    Type.Q6_K: _Layout(208, 1369.0),
    Type.IQ4_NL: _Layout(0, 70.0),
    Type.IQ4_XS: _Layout(0, 1295.0),
}


def random_blocks(
    rng: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, std: float
) -> NDArray[np.uint8]:
    """Weights of ``shape`` (as numpy has it, rows first) of about the standard deviation ``std``, as GGUF's bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    *rows, columns = shape
    blocks = rng.integers(0, 256, (*rows, columns // block, size), dtype=np.uint8)
    if kind == Type.MXFP4:
        # The scale is 2^(e-128); e2m1 values, doubled, spread by about 5.5.
        blocks[..., 0] = 128 + round(float(np.log2(std / 5.5)))
    else:
        layout = _LAYOUTS[kind]
        _put(blocks, layout.scale_at, std / layout.spread)
        if layout.offset_at is not None:
            _put(blocks, layout.offset_at, layout.centre * std / layout.spread)
    return blocks.reshape(*rows, -1)


def _put(blocks: NDArray[np.uint8], at: int, value: float) -> None:
    blocks[..., at : at + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)
