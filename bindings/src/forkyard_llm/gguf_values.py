"""Judge the numbers in a model's metadata: the engines believe them, and abort, divide by zero or loop on some.

A rule is for every key whose name, without the architecture in front, fits a pattern. A range is wider than what any
model has, by orders of magnitude where there is no limit of the engines themselves; it says which numbers cannot be
true, not which are good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from .gguf_reader import FLOATS, STRING, UINT32, GgufSummary, Value, fail, shown, type_name

__all__ = ["check_values"]

_TINY: Final = 1e-30  # the smallest number that can be divided by without an infinite result
_BILLION: Final = 1e9

_MAX_BLOCKS: Final = 512  # LLAMA_MAX_LAYERS of both engines
_MAX_EXPERTS: Final = 1024  # LLAMA_MAX_EXPERTS of llama.cpp


@dataclass(frozen=True)
class _Range:
    """The numbers a key may have, both ends included. `zero`: 0 as well, for "none" or "the default"."""

    pattern: str
    low: float
    high: float
    zero: bool = False

    def holds(self, number: float) -> bool:
        return self.low <= number <= self.high or (self.zero and number == 0)


@dataclass(frozen=True)
class _Types:
    """The GGUF types a value, or the elements of an array, may have."""

    kinds: tuple[int, ...]
    array: bool = False


# Keys that an engine reads without looking at the type, or with a function that ends the process for any other.
_TYPES: Final[Mapping[str, _Types]] = {
    "general.file_type": _Types((UINT32,)),
    "general.type": _Types((STRING,)),
    "tokenizer.ggml.model": _Types((STRING,)),
    "tokenizer.ggml.precompiled_charsmap": _Types((0, 1), array=True),
    "adapter.type": _Types((STRING,)),
    "adapter.lora.alpha": _Types((6,)),
}

# The first pattern that fits a key counts.
_RANGES: Final = (
    # Shapes. The largest models have about 130 blocks, 20,000 values per token, 128 heads of 576 values.
    _Range("block_count", 1, _MAX_BLOCKS),
    _Range("*block_count", 0, _MAX_BLOCKS),
    _Range("*_layers", 0, _MAX_BLOCKS),
    _Range("context_length", 1, 2**31 - 1),
    _Range("embedding_length", 1, 1 << 20),
    _Range("*embedding_length*", 0, 1 << 20),
    _Range("features_length", 1, 1 << 20),
    _Range("*feed_forward_length", 0, 1 << 22),
    _Range("vocab_size", 1, 1 << 24),
    _Range("*head_count*", 0, 1 << 14),
    _Range("*key_length*", 0, 1 << 16),
    _Range("*value_length*", 0, 1 << 16),
    _Range("*lora_rank*", 0, 1 << 16),
    _Range("attention.sliding_window", 2, 1 << 28, zero=True),
    _Range("expert_*count", 0, _MAX_EXPERTS),
    _Range("expert_gating_func", 0, 4),
    _Range("rope.dimension_count*", 0, 1 << 16),
    _Range("rope.dimension_sections", 0, 1 << 16),
    _Range("rope.scaling.original_context_length", 1, 2**31 - 1, zero=True),
    _Range("ssm.group_count", 0, 1 << 16),
    _Range("ssm.conv_kernel", 0, 1 << 12),
    _Range("ssm.*_size", 0, 1 << 22),
    _Range("ssm.time_step_rank", 1, 1 << 22),
    _Range("wkv.head_size", 1, 1 << 16),
    _Range("pooling_type", -1, 4),
    # Small numbers that are added or divided by. The norms' epsilons are 1e-12 to 1e-3.
    _Range("*epsilon", _TINY, 1, zero=True),
    _Range("*eps", _TINY, 1, zero=True),
    # Rotation: bases are 500 to 1e9 or so, factors 0.1 to 128; the engines divide by both.
    _Range("rope.freq_base*", 1, 1e15),
    _Range("*rope_freq_base*", 1, 1e15),
    _Range("rope.scaling.factor", 1e-6, 1e6, zero=True),
    _Range("rope.scale_linear", 1e-6, 1e6, zero=True),
    _Range("rope.scaling.*factor", -1e6, 1e6),
    _Range("rope.scaling.alpha", 0, 1e6),
    _Range("rope.scaling.yarn_[lb]*", -1e6, 1e6),
    # Factors, caps and limits.
    _Range("*softcapping", _TINY, _BILLION, zero=True),
    _Range("*scale", -_BILLION, _BILLION),
    _Range("attention.clamp_kqv", 0, _BILLION),
    _Range("attention.max_alibi_bias", 0, _BILLION),
    _Range("swiglu_clamp*", -_BILLION, _BILLION),
)
# What one engine cannot do and the other can; looked at before the others.
_RANGES_OF: Final[Mapping[str | None, Sequence[_Range]]] = {
    "ik_llama.cpp": (
        _Range("*norm*epsilon", _TINY, 1),
        _Range("expert_gating_func", 0, 3),
        _Range("attention.sliding_window", 16, 1 << 28, zero=True),  # smaller ones leave nothing to attend to
        _Range("expert_count", 0, 512),  # its LLAMA_MAX_EXPERTS
    )
}

# Every other float, also of keys that are newer than this.
_ANY_FLOAT: Final = _Range("*", -_BILLION, _BILLION)

_SCALINGS: Final[Mapping[str | None, Set[str]]] = {
    None: {"none", "linear", "yarn", "longrope"},
    "llama.cpp": {"none", "linear", "yarn", "longrope"},
    "ik_llama.cpp": {"none", "linear", "yarn"},
}
"""The values of rope.scaling.type each engine knows; they abort for others."""


def check_values(summary: GgufSummary, *, engine: str | None = None) -> None:
    """Check each number in a model's metadata by itself, for `engine` (None: for either).

    Raises ModelError, naming the key.
    """
    prefix = f"{summary.architecture}."
    rules = (*_RANGES_OF.get(engine, ()), *_RANGES)
    for key, value in summary.values.items():
        problem = _wrong_type(key, value) or _not_finite(key, value)
        if problem is None:
            problem = _out_of_range(key, key.removeprefix(prefix), value, rules if key.startswith(prefix) else ())
        if problem is None and key == f"{prefix}rope.scaling.type":
            problem = _unknown_scaling(key, value, sorted(_SCALINGS[engine]))
        if problem is not None:
            fail(summary.path, problem, value.offset)


def _wrong_type(key: str, value: Value) -> str | None:
    wanted = _TYPES.get(key)
    if wanted is None or ((value.count is not None) == wanted.array and value.kind in wanted.kinds):
        return None
    what = f"an array of {type_name(value.kind)}" if value.count is not None else type_name(value.kind)
    names = " or ".join(map(type_name, wanted.kinds))
    return f"{key} is {what}, not {'an array of ' if wanted.array else ''}{names}"


def _not_finite(key: str, value: Value) -> str | None:
    if value.kind not in FLOATS or math.isfinite(sum(value.numbers)):
        return None
    wrong = next(number for number in value.numbers if not math.isfinite(number))
    return f"{key} is {wrong}, which is no number a model can have"


def _out_of_range(key: str, name: str, value: Value, rules: Sequence[_Range]) -> str | None:
    general = _ANY_FLOAT if value.kind in FLOATS else None
    rule = next((rule for rule in rules if fnmatchcase(name, rule.pattern)), general)
    if rule is None:
        return None
    if value.kind == STRING:
        return f"{key} is {'a string' if value.count is None else 'an array of strings'}, not a number"
    wrong = next((number for number in value.numbers if not rule.holds(number)), None)
    return None if wrong is None else f"{key} is {wrong:.9g}; the engine takes {rule.low:.9g} to {rule.high:.9g}"


def _unknown_scaling(key: str, value: Value, known: Sequence[str]) -> str | None:
    if value.kind != STRING or value.count is not None:
        return f"{key} is not a string"
    return None if value.data in known else f"{key} is {shown(str(value.data))!r}; the engine takes {', '.join(known)}"
