"""The six models of the published table, weight by weight.

Shapes are those of the models' ``config.json`` on Hugging Face (google/gemma-4-E2B-it, google/gemma-4-E4B-it,
google/gemma-4-26B-A4B-it, Qwen/Qwen3.6-27B, Qwen/Qwen3.6-35B-A3B, Qwen/Qwen3.5-122B-A10B) and of the graphs that
llama.cpp and ik_llama.cpp build for ``gemma4``, ``qwen35`` and ``qwen35moe``. That nothing is missing is tested: the
numbers of weights agree with those that the engines print (see :data:`PUBLISHED_VALUES`).

Storage types:

- Q4_K_M and Q5_K_M of dense models by the rules of ``llama-quantize`` (``src/llama-quant.cpp``): Q6_K for the output
  and for ``attn_v`` and ``ffn_down`` in the layers it gives more bits, one step up for a joint ``attn_qkv``.
- gemma-4-26B-A4B UD-Q4_K_M: the file's tensor directory (unsloth/gemma-4-26B-A4B-it-GGUF, revision c099eb48): Q4_K for
  the experts' joint gate and up, Q5_1 for their down (Q8_0 in the last layer), Q8_0 for other matrices.
- Qwen3.6-35B-A3B UD-Q5_K_M: Q5_K and Q6_K for the experts, Q8_0 for other matrices.
- Qwen3.5-122B-A10B UD-Q3_K_XL: Q8_0 outside the experts; the experts get what is left of the file's size.

Barriers were counted: ik_llama.cpp at 55d3c05b on random models with these layers and small widths, ``-rtr 1 -b 16
-ub 16 -t 2``, with a library before libgomp that counts calls of ``GOMP_barrier`` in one graph of one token.
"""

from __future__ import annotations

from collections.abc import Iterator

from forkyard.numamodel.tensors import BITS, Reading, Tensor
from forkyard.numamodel.workload import Workload, workload_of

_PER_LAYER = 256
_GEMMA_VOCABULARY = 262_144
_QWEN_VOCABULARY = 248_320

PUBLISHED_VALUES = {
    "gemma-4-E2B Q5_K_M": 4.65e9,
    "gemma-4-E4B Q5_K_M": 7.52e9,
    "gemma-4-26B-A4B UD-Q4_K_M": 25.23e9,
    "Qwen3.6-27B Q4_K_M": 26_895_998_464,
    "Qwen3.6-35B-A3B UD-Q5_K_M": 34.66e9,
    "Qwen3.5-122B-A10B UD-Q3_K_XL": 122_111_526_912,
}
"""Numbers of weights as llama.cpp prints them when it loads these models."""

PUBLISHED_SIZES = {
    "gemma-4-26B-A4B UD-Q4_K_M": 15.83 * 2**30,
    "Qwen3.6-27B Q4_K_M": 16_806_250_496,
    "Qwen3.6-35B-A3B UD-Q5_K_M": 24.76 * 2**30,
    "Qwen3.5-122B-A10B UD-Q3_K_XL": 56_959_537_152,
}
"""Bytes of the weights in these files, where they were found in published logs."""


def _matrix(inputs: int, outputs: int, bits: float, reading: Reading = Reading.ALWAYS) -> Tensor:
    return Tensor(reading, inputs, outputs, bits)


def _vector(size: int) -> Tensor:
    return Tensor(Reading.ALWAYS, size, 1, BITS["F32"], matrix=False)


def _experts(count: int, inputs: int, outputs: int, bits: float, *, own_rows: bool = False) -> Tensor:
    return Tensor(Reading.EXPERT, inputs, outputs, bits, experts=count, own_rows=own_rows)


def _more_bits(layer: int, layers: int) -> bool:
    """Whether the ``_K_M`` recipes of llama-quantize give this layer's sensitive weights more bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _gemma_small(layers: int, width: int, wide: tuple[int, int], shared: int, period: int, kv: int) -> Iterator[Tensor]:
    """gemma-4-E2B and E4B: per-layer embeddings; the last ``shared`` layers use keys and values of earlier ones."""
    low, high = BITS["Q5_K"], BITS["Q6_K"]
    yield _matrix(width, _GEMMA_VOCABULARY, high, Reading.HEAD)  # also the embedding
    yield _matrix(_PER_LAYER * layers, _GEMMA_VOCABULARY, low, Reading.LOOKUP)
    yield _matrix(width, _PER_LAYER * layers, low)
    yield from (_vector(_PER_LAYER), _vector(width), _vector(256))
    for layer in range(layers):
        head = 512 if (layer + 1) % period == 0 else 256
        feed_forward = wide[layer >= layers - shared]
        sensitive = high if _more_bits(layer, layers) else low
        yield _matrix(width, 8 * head, low)
        # The file holds these also where they are not used.
        used = Reading.ALWAYS if layer < layers - shared else Reading.LOOKUP
        yield _matrix(width, kv * head, low, used)
        yield _matrix(width, kv * head, sensitive, used)
        yield _matrix(8 * head, width, low)
        yield _matrix(width, feed_forward, low)
        yield _matrix(width, feed_forward, low)
        yield _matrix(feed_forward, width, sensitive)
        yield _matrix(width, _PER_LAYER, low)
        yield _matrix(_PER_LAYER, width, low)
        yield from (_vector(width) for _ in range(5))
        yield from (_vector(head), _vector(head), _vector(1))


def _gemma_experts() -> Iterator[Tensor]:
    """gemma-4-26B-A4B: a dense feed-forward part beside 128 experts; global layers have no projection for values."""
    layers, width, heads, dense, experts, inner = 30, 2816, 16, 2112, 128, 704
    bits = BITS["Q8_0"]
    yield _matrix(width, _GEMMA_VOCABULARY, bits, Reading.HEAD)
    yield from (_vector(width), _vector(256))
    for layer in range(layers):
        everywhere = (layer + 1) % 6 == 0
        head, kv = (512, 2) if everywhere else (256, 8)
        yield _matrix(width, heads * head, bits)
        for _ in range(1 if everywhere else 2):
            yield _matrix(width, kv * head, bits)
        yield _matrix(heads * head, width, bits)
        yield _matrix(width, dense, bits)
        yield _matrix(width, dense, bits)
        yield _matrix(dense, width, bits)
        yield _matrix(width, experts, BITS["F32"])
        yield _experts(experts, width, 2 * inner, BITS["Q4_K"])
        yield _experts(experts, inner, width, BITS["Q8_0" if layer == layers - 1 else "Q5_1"], own_rows=True)
        yield from (_vector(width) for _ in range(8))
        yield from (_vector(head), _vector(head), _vector(1), _vector(experts))


def _qwen(
    layers: int,
    width: int,
    heads: int,
    kv: int,
    value_heads: int,
    *,
    dense: int = 0,
    inner: int = 0,
    bits: tuple[float, float] = (0.0, 0.0),
) -> Iterator[Tensor]:
    """Qwen3.5 and 3.6: three layers of gated delta nets, then one of gated attention.

    Args:
        value_heads: of a delta net; it has 16 heads for keys, all of 128 values.
        dense: width of the feed-forward part; 0 for 256 experts of width ``inner`` and a shared one.
        bits: of the experts' gate and up, and of their down.
    """
    experts = 256
    low = BITS["Q4_K"] if dense else BITS["Q8_0"]
    yield _matrix(width, _QWEN_VOCABULARY, low, Reading.LOOKUP)
    yield _matrix(width, _QWEN_VOCABULARY, BITS["Q6_K"] if dense else low, Reading.HEAD)
    yield _vector(width)
    for layer in range(layers):
        yield from (_vector(width), _vector(width))
        if (layer + 1) % 4 == 0:
            sensitive = BITS["Q6_K"] if dense and _more_bits(layer // 4, layers // 4) else low
            yield _matrix(width, 2 * heads * 256, low)  # queries and a gate
            yield _matrix(width, kv * 256, low)
            yield _matrix(width, kv * 256, sensitive)
            yield _matrix(heads * 256, width, low)
            yield from (_vector(256), _vector(256))
        else:
            channels = (2 * 16 + value_heads) * 128
            yield _matrix(width, channels, BITS["Q5_K"] if dense else low)
            yield _matrix(width, value_heads * 128, low)
            yield _matrix(width, value_heads, low)
            yield _matrix(width, value_heads, low)
            yield _matrix(value_heads * 128, width, low)
            yield from (_vector(4 * channels), _vector(value_heads), _vector(value_heads), _vector(128))
        if dense:
            yield _matrix(width, dense, low)
            yield _matrix(width, dense, low)
            yield _matrix(dense, width, BITS["Q6_K"] if _more_bits(layer, layers) else low)
            continue
        yield _matrix(width, experts, BITS["F32"])
        yield _experts(experts, width, inner, bits[0])
        yield _experts(experts, width, inner, bits[0])
        yield _experts(experts, inner, width, bits[1], own_rows=True)
        yield _vector(width)
        yield _matrix(width, inner, low)
        yield _matrix(width, inner, low)
        yield _matrix(inner, width, low)


def _state(layers: int, value_heads: int) -> float:
    """Bytes of the delta nets' states: a matrix of 128 x 128 for each head, in three of four layers."""
    return layers * 3 / 4 * value_heads * 128 * 128 * 4


def _largest() -> Workload:
    """Qwen3.5-122B-A10B, with as many bits for the experts as the published size of the file leaves."""
    name = "Qwen3.5-122B-A10B UD-Q3_K_XL"

    def with_bits(bits: float) -> Workload:
        tensors = _qwen(48, 3072, 32, 2, 64, inner=1024, bits=(bits, bits))
        return workload_of(name, tensors, used=8, state=_state(48, 64), barriers=1793)

    empty = with_bits(0.0)
    one_bit = with_bits(1.0).size - empty.size
    return with_bits((PUBLISHED_SIZES[name] - empty.size) / one_bit)


def _workloads() -> Iterator[Workload]:
    yield workload_of(
        "gemma-4-E2B Q5_K_M", _gemma_small(35, 1536, (6144, 12288), shared=20, period=5, kv=1), barriers=1008
    )
    yield workload_of(
        "gemma-4-E4B Q5_K_M", _gemma_small(42, 2560, (10240, 10240), shared=18, period=6, kv=2), barriers=1235
    )
    yield workload_of("gemma-4-26B-A4B UD-Q4_K_M", _gemma_experts(), used=8, barriers=1042)
    yield workload_of(
        "Qwen3.6-27B Q4_K_M", _qwen(64, 5120, 24, 4, 48, dense=17408), state=_state(64, 48), barriers=1685
    )
    yield workload_of(
        "Qwen3.6-35B-A3B UD-Q5_K_M",
        _qwen(40, 2048, 16, 2, 32, inner=512, bits=(BITS["Q5_K"], BITS["Q6_K"])),
        used=8,
        state=_state(40, 32),
        barriers=1495,
    )
    yield _largest()


WORKLOADS = {workload.name: workload for workload in _workloads()}
"""The six models by name."""

BARRIERS_PER_MATRIX = sum(one.barriers for one in WORKLOADS.values()) / sum(one.matrices for one in WORKLOADS.values())
"""What these models have in common, for others whose barriers nobody counted."""
