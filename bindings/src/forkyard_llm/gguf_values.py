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
from typing import Final, NoReturn

from .gguf_reader import BOOL, FLOATS, INTEGERS, STRING, GgufSummary, Value, fail, shown

__all__ = ["check_values"]

_NUMBERS: Final = (*INTEGERS, *FLOATS, BOOL)
_TINY: Final = 1e-30  # the smallest number that can be divided by without an infinite result
_BILLION: Final = 1e9

MAX_BLOCKS: Final = 512  # LLAMA_MAX_LAYERS of both engines
MAX_EXPERTS: Final[Mapping[str | None, int]] = {None: 1024, "llama.cpp": 1024, "ik_llama.cpp": 512}
"""LLAMA_MAX_EXPERTS of each engine."""


@dataclass(frozen=True)
class _Range:
    """The numbers a key may have, both ends included. `zero`: 0 as well, for "none" or "the default"."""

    pattern: str
    low: float
    high: float
    zero: bool = False

    def holds(self, number: float) -> bool:
        return self.low <= number <= self.high or (self.zero and number == 0)


# The first pattern that fits a key counts.
_RANGES: Final = (
    # Shapes. The largest models have about 130 blocks, 20,000 values per token, 128 heads of 576 values.
    _Range("block_count", 1, MAX_BLOCKS),
    _Range("*block_count", 0, MAX_BLOCKS),
    _Range("*_layers", 0, MAX_BLOCKS),
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
    _Range("attention.sliding_window", 0, 2**31 - 1),
    _Range("expert_*count", 0, MAX_EXPERTS[None]),
    _Range("expert_gating_func", 0, 4),
    _Range("rope.dimension_count*", 0, 1 << 16),
    _Range("rope.dimension_sections", 0, 1 << 16),
    _Range("rope.scaling.original_context_length", 1, 2**31 - 1, zero=True),
    _Range("ssm.group_count", 0, 1 << 16),
    _Range("ssm.conv_kernel", 0, 1 << 12),
    _Range("ssm.*_size", 0, 1 << 22),
    _Range("ssm.time_step_rank", 0, 1 << 22),
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
    )
}

_SCALINGS: Final[Mapping[str | None, Set[str]]] = {
    None: {"none", "linear", "yarn", "longrope"},
    "llama.cpp": {"none", "linear", "yarn", "longrope"},
    "ik_llama.cpp": {"none", "linear", "yarn"},
}
"""The values of rope.scaling.type each engine knows; they abort for others."""

# Architectures in which an engine asserts that RoPE turns whole heads, and that keys are as long as values.
_WHOLE_HEADS: Final = frozenset((
    "apertus", "arcee", "arctic", "baichuan", "bitnet-25", "bitnet-b1.58", "chameleon", "codeshell", "cogvlm",
    "cohere2moe", "dbrx", "deci", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "exaone-moe",
    "exaone4", "falcon", "granite", "granite_swa", "granitemoe", "graniteswitch", "grok", "grovemoe", "hunyuan-moe",
    "hunyuan_vl", "hy_v3", "internlm2", "jais2", "llama", "llama4", "maincoder", "mellum", "minicpm", "mistral3",
    "olmo", "olmo2", "olmoe", "orion", "paddleocr", "pangu-embedded", "plamo", "qwen2", "qwen2moe", "qwen2vl",
    "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "seed_oss", "smallthinker", "smollm3", "starcoder2", "talkie",
    "xverse",
))  # fmt: skip


def check_values(parts: Sequence[GgufSummary], *, engine: str | None = None) -> None:
    """Check the numbers in a model's metadata, which the first of its `parts` has, for `engine` (None: for either).

    Raises ModelError, naming the key.
    """
    shapes = {name: shape for part in parts for name, shape in part.shapes.items()}
    _Judge(parts[0], shapes, engine).run()


class _Judge:
    """The rules, applied to the metadata of one model."""

    def __init__(self, summary: GgufSummary, shapes: Mapping[str, tuple[int, ...]], engine: str | None) -> None:
        self._summary = summary
        self._shapes = shapes
        self._engine = engine
        self._prefix = f"{summary.architecture}."

    def run(self) -> None:
        for key, value in self._summary.values.items():
            self._finite(key, value)
            if key.startswith(self._prefix):
                self._in_range(key, value)
        self._scaling()
        self._experts()
        self._shared_heads()
        self._rotation()
        self._rows()
        self._vocabulary()

    # -- each number by itself

    def _finite(self, key: str, value: Value) -> None:
        if value.kind in FLOATS and not math.isfinite(sum(_numbers(value))):
            wrong = next((number for number in _numbers(value) if not math.isfinite(number)), math.inf)
            self._fail(key, f"{key} is {wrong}, which is no number a model can have")

    def _in_range(self, key: str, value: Value) -> None:
        name = key.removeprefix(self._prefix)
        rules = (*_RANGES_OF.get(self._engine, ()), *_RANGES)
        rule = next((rule for rule in rules if fnmatchcase(name, rule.pattern)), None)
        if rule is None:
            return
        if value.kind == STRING:
            self._fail(key, f"{key} is {'a string' if value.count is None else 'an array of strings'}, not a number")
        for number in _numbers(value):
            if not rule.holds(number):
                self._fail(key, f"{key} is {number:g}; it can be {rule.low:g} to {rule.high:g}")

    # -- numbers that must go together

    def _experts(self) -> None:
        experts, used = self._largest("expert_count"), self._largest("expert_used_count")
        limit = MAX_EXPERTS[self._engine]
        if experts > limit:
            who = self._engine or "an engine"
            self._fail(f"{self._prefix}expert_count", f"expert_count is {experts}; {who} can have at most {limit}")
        if used > experts:
            self._fail(f"{self._prefix}expert_used_count", f"expert_used_count is {used} of {experts} experts")
        if experts and not used:
            key = f"{self._prefix}expert_used_count"
            self._fail(
                key if key in self._summary.values else f"{self._prefix}expert_count",
                f"{self._prefix}expert_count is {experts}, but {self._prefix}expert_used_count is 0",
            )

    def _scaling(self) -> None:
        key = f"{self._prefix}rope.scaling.type"
        value, known = self._summary.values.get(key), sorted(_SCALINGS[self._engine])
        if value is None:
            return
        if value.kind != STRING or value.count is not None:
            self._fail(key, f"{key} is not a string")
        if value.data not in known:
            self._fail(key, f"{key} is {shown(str(value.data))!r}; known are {', '.join(known)}")

    def _shared_heads(self) -> None:
        """Queries share keys in equal groups; a layer without attention has 0 of either."""
        heads, shared = self._per_block("attention.head_count"), self._per_block("attention.head_count_kv")
        key = f"{self._prefix}attention.head_count_kv"
        for block, (queries, keys) in enumerate(zip(heads, shared, strict=False)):
            if keys and queries and (keys > queries or queries % keys):
                self._fail(key, f"{key} is {keys} in block {block}, where there are {queries} heads to share among")

    def _rotation(self) -> None:
        """RoPE turns pairs of a head's values, in some architectures all of them."""
        heads = self._per_block("attention.head_count")
        if not heads or not heads[0]:
            return
        size = self._largest("embedding_length") // int(heads[0])
        keys = self._largest("attention.key_length") or size
        values = self._largest("attention.value_length") or size
        key = f"{self._prefix}rope.dimension_count"
        turned = self._largest("rope.dimension_count") if key in self._summary.values else keys
        whole = self._summary.architecture in _WHOLE_HEADS
        if turned > keys or turned % 2 or (whole and turned != keys):
            those = "all" if whole else "an even number"
            self._fail_first(
                ("rope.dimension_count", "attention.key_length", "attention.head_count"),
                f"{key} is {turned}, but RoPE turns {those} of the {keys} values of a head",
            )
        if whole and keys != values:
            self._fail_first(
                ("attention.value_length", "attention.key_length", "attention.head_count"),
                f"{self._prefix}attention.value_length is {values} and attention.key_length {keys};"
                f" in {self._summary.architecture} they are equal",
            )

    def _rows(self) -> None:
        """Blocks with as many rows of queries or keys have as many heads; the engines look at the first block only."""
        if f"{self._prefix}attention.key_length_swa" in self._summary.values:
            return
        for name, part in (("attention.head_count", "attn_q"), ("attention.head_count_kv", "attn_k")):
            seen: dict[int, tuple[int, float]] = {}
            for block, count in enumerate(self._per_block(name)):
                shape = self._shapes.get(f"blk.{block}.{part}.weight", ())
                if len(shape) != 2:
                    continue
                before, others = seen.setdefault(shape[1], (block, count))
                if others != count:
                    key = self._prefix + name
                    self._fail(
                        key,
                        f"{key} is {count} in block {block} and {others} in block {before},"
                        f" but their {part}.weight have equal shapes",
                    )

    def _vocabulary(self) -> None:
        tokens = self._summary.values.get("tokenizer.ggml.tokens")
        rows = self._shapes.get("token_embd.weight", (0, 0))[1:]
        if tokens is not None and tokens.count is not None and rows and tokens.count < rows[0]:
            self._fail(
                "tokenizer.ggml.tokens",
                f"tokenizer.ggml.tokens has {tokens.count} tokens, but token_embd.weight has {rows[0]} rows",
            )

    # -- reading

    def _largest(self, name: str) -> int:
        value = self._summary.values.get(self._prefix + name)
        return int(max(_numbers(value), default=0)) if value is not None else 0

    def _per_block(self, name: str) -> Sequence[float]:
        value = self._summary.values.get(self._prefix + name)
        if value is None:
            return ()
        numbers = _numbers(value)
        return numbers if value.count is not None else [*numbers] * max(self._largest("block_count"), 1)

    def _fail_first(self, names: Sequence[str], problem: str) -> NoReturn:
        """Fail at the first of the keys that is there."""
        self._fail(next(key for key in (self._prefix + name for name in names) if key in self._summary.values), problem)

    def _fail(self, key: str, problem: str) -> NoReturn:
        fail(self._summary.path, problem, self._summary.values[key].offset)


def _numbers(value: Value) -> Sequence[float]:
    """The number, or the numbers, of a value; none if it holds other things."""
    if value.kind not in _NUMBERS or value.data is None:
        return ()
    return (value.data,) if value.count is None else value.data  # type: ignore[return-value]  # of a kind that is numbers
