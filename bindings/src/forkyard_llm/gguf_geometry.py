"""Judge the numbers in a model's metadata that must go together: heads, experts, rotation, shapes of tensors, tokens.

The engines compute shapes from some of them and look at others while they compute; where those disagree, an assertion
ends the process. Each rule follows from what the engines compute, for every architecture or for those of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

from .gguf_reader import GgufSummary, fail, shown

__all__ = ["check_geometry"]

# Architectures in which an engine asserts that RoPE turns whole heads, and that keys are as long as values.
_WHOLE_HEADS: Final = frozenset((
    "apertus", "arcee", "arctic", "baichuan", "bitnet-25", "bitnet-b1.58", "chameleon", "codeshell", "cogvlm",
    "cohere2moe", "dbrx", "deci", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "exaone-moe",
    "exaone4", "falcon", "gpt-oss", "granite", "granite_swa", "granitemoe", "graniteswitch", "grok", "grovemoe",
    "hunyuan-moe", "hunyuan_vl", "hy_v3", "internlm2", "jais2", "llama", "llama4", "maincoder", "mellum",
    "minicpm", "mistral3",
    "olmo", "olmo2", "olmoe", "orion", "paddleocr", "pangu-embedded", "plamo", "qwen2", "qwen2moe", "qwen2vl",
    "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "seed_oss", "smallthinker", "smollm3", "starcoder2", "talkie",
    "xverse",
))  # fmt: skip


# Further ones in which keys are as long as values.
_EQUAL_LENGTHS: Final = _WHOLE_HEADS | {"deepseek4"}

# Architectures whose queries have as many values as a token has: the engines make the shapes from the latter, and
# compute with the heads.
_SQUARE: Final = frozenset((
    "arctic", "baichuan", "bitnet", "chameleon", "codeshell", "cohere2", "command-r", "deepseek", "grok",
    "internlm2", "jamba", "lfm2", "lfm2moe", "nemotron", "olmo", "olmo2", "olmoe", "orion", "phi2", "phi3",
    "phimoe", "plamo", "qwen2", "qwen2moe", "qwen2vl", "stablelm", "starcoder2", "xverse",
))  # fmt: skip

# Numbers for which an architecture has one value only.
_FIXED: Final = {
    ("rwkv6", "token_shift_count"): 2,
    ("rwkv7", "token_shift_count"): 2,
    ("rwkv6qwen2", "token_shift_count"): 1,
    ("arwkv7", "token_shift_count"): 1,
    ("deepseek4", "hyper_connection.count"): 4,
}

# Architectures that cache one latent vector for all heads where attention.key_length_mla is given: the cached key is
# that vector and the turned values, the cached value is the vector.
_LATENT: Final = frozenset({"deepseek2", "deepseek32", "glm-dsa", "hy_v4", "mistral4"})
# Cached key and value of the only such models ik_llama.cpp can convert; it aborts for others.
_LATENT_OF_IK: Final = {"deepseek2": (576, 512), "glm-dsa": (576, 512), "mistral4": (320, 256)}


def check_geometry(parts: Sequence[GgufSummary], *, engine: str | None = None) -> None:
    """Check the metadata of a model, which the first of its `parts` has, against itself and the tensors of all.

    Every number by itself must have been checked. Raises ModelError, naming the key.
    """
    _Geometry(parts, engine).check()


class _Geometry:
    def __init__(self, parts: Sequence[GgufSummary], engine: str | None) -> None:
        self._summary = parts[0]
        self._shapes = {name: shape for part in parts for name, shape in part.shapes.items()}
        self._engine = engine
        self._prefix = f"{parts[0].architecture}."

    def check(self) -> None:
        self._experts()
        self._expert_groups()
        self._shared_heads()
        self._rotation()
        self._latent()
        self._rows()
        self._widths()
        self._window()
        self._divisors()
        self._vocabulary()

    def _experts(self) -> None:
        experts, used = self._largest("expert_count"), self._largest("expert_used_count")
        if used > experts:
            self._fail(f"{self._prefix}expert_used_count", f"expert_used_count is {used} of {experts} experts")
        if experts and not used:
            key = f"{self._prefix}expert_used_count"
            self._fail(
                key if key in self._summary.values else f"{self._prefix}expert_count",
                f"{self._prefix}expert_count is {experts}, but {self._prefix}expert_used_count is 0",
            )

    def _expert_groups(self) -> None:
        """The experts are in groups of equal size, of which some are used."""
        experts, groups = self._largest("expert_count"), self._largest("expert_group_count")
        used = self._largest("expert_group_used_count")
        if not groups:
            return
        key = f"{self._prefix}expert_group_count"
        if groups >= experts or experts % groups:
            self._fail(key, f"{key} is {groups}, which does not divide {experts} experts into groups")
        if groups > 1 and not 0 < used < groups:
            self._fail_first(
                ("expert_group_used_count", "expert_group_count"),
                f"{self._prefix}expert_group_used_count is {used} of {groups} groups",
            )

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
        if not any(heads):
            return
        size = self._largest("embedding_length") // int(max(heads))
        keys = self._largest("attention.key_length", size)
        values = self._largest("attention.value_length", size)
        key = f"{self._prefix}rope.dimension_count"
        given = key in self._summary.values
        turned = self._largest("rope.dimension_count") if given else keys
        if self._summary.architecture in _SQUARE and max(heads) * keys != self._largest("embedding_length"):
            self._fail_first(
                ("attention.head_count", "attention.key_length", "embedding_length"),
                f"{int(max(heads))} heads of {keys} values do not make {self._prefix}embedding_length",
            )
        whole = self._summary.architecture in _WHOLE_HEADS
        rotates = self._summary.values.get(f"{self._prefix}rope.scaling.finetuned")
        none = given and not turned and (rotates is None or rotates.data is not False)
        if none or turned > keys or (given and turned % 2) or (whole and turned != keys):
            those = "all" if whole else "an even number"
            self._fail_first(
                ("rope.dimension_count", "attention.key_length", "attention.head_count"),
                f"{key} is {turned}, but RoPE turns {those} of the {keys} values of a head",
            )
        others = [self._largest(f"attention.{name}_length_swa") or keys for name in ("key", "value")]
        if whole and any(other != keys for other in others):
            self._fail_first(
                ("attention.key_length_swa", "attention.value_length_swa"),
                f"attention.key_length_swa and attention.value_length_swa are {others};"
                f" in {self._summary.architecture} every block has heads of {keys} values",
            )
        if self._summary.architecture in _EQUAL_LENGTHS and keys != values:
            self._fail_first(
                ("attention.value_length", "attention.key_length", "attention.head_count"),
                f"{self._prefix}attention.value_length is {values} and attention.key_length {keys};"
                f" in {self._summary.architecture} they are equal",
            )

    def _latent(self) -> None:
        architecture = self._summary.architecture
        if architecture not in _LATENT:
            return
        rank, turned = self._largest("attention.kv_lora_rank"), self._largest("rope.dimension_count")
        keys, values = self._largest("attention.key_length"), self._largest("attention.value_length")
        whole = self._largest("attention.key_length_mla") or keys
        if whole <= turned:
            self._fail_first(
                ("rope.dimension_count", "attention.key_length_mla", "attention.key_length"),
                f"{self._prefix}rope.dimension_count is {turned}, but a key has {whole} values in all",
            )
        heads, shared = self._per_block("attention.head_count"), self._per_block("attention.head_count_kv")
        absorbed = f"{self._prefix}attention.key_length_mla" in self._summary.values
        for queries, others in zip(heads, shared, strict=False):
            if not queries or others != (1 if absorbed else queries):
                why = "all share one latent vector" if absorbed else "without attention.key_length_mla each has a key"
                key = f"{self._prefix}attention.head_count_kv"
                self._fail_first(("attention.head_count_kv",), f"{key} is {others} for {queries} heads; {why}")
        if absorbed and (keys != rank + turned or values != rank):
            self._fail_first(
                (
                    "attention.key_length",
                    "attention.value_length",
                    "attention.kv_lora_rank",
                    "attention.key_length_mla",
                ),
                f"{self._prefix}attention.key_length is {keys} and attention.value_length {values}; with a latent"
                f" vector of {rank} values (kv_lora_rank) and {turned} turned ones they are {rank + turned} and {rank}",
            )
        if self._engine == "ik_llama.cpp" and architecture in _LATENT_OF_IK and shared and shared[0] == 1:
            wanted = _LATENT_OF_IK[architecture]
            if (keys, values) != wanted or turned != wanted[0] - wanted[1] or not heads or heads[0] % 4:
                self._fail_first(
                    ("attention.head_count", "attention.key_length", "attention.head_count_kv"),
                    f"{int(heads[0]) if heads else 0} heads that share keys of {keys} and values of {values} numbers;"
                    f" ik_llama.cpp can have {wanted[0]} and {wanted[1]} in {architecture}, and heads in groups of 4;"
                    " use engine='llama.cpp'",
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

    def _widths(self) -> None:
        """The engines compute with these before they look at the shapes."""
        width = self._shapes.get("token_embd.weight", (0,))[0]
        key = f"{self._prefix}embedding_length"
        other = any(self._prefix + name in self._summary.values for name in ("features_length", "embedding_length_out"))
        if width and key in self._summary.values and self._largest("embedding_length") != width and not other:
            self._fail(key, f"{key} is {self._largest('embedding_length')}, but token_embd.weight has {width} columns")
        key = f"{self._prefix}ssm.inner_size"
        for name, shape in self._shapes.items():
            if (
                key in self._summary.values
                and name.endswith(".ssm_out.weight")
                and shape[0] != self._largest("ssm.inner_size")
            ):
                self._fail(key, f"{key} is {self._largest('ssm.inner_size')}, but {shown(name)} has {shape[0]} columns")

    def _window(self) -> None:
        """A pattern of 1 says that every block sees all tokens, so that none has the window."""
        key = f"{self._prefix}attention.sliding_window_pattern"
        value = self._summary.values.get(key)
        if value is not None and value.count is None and value.data == 1 and self._largest("attention.sliding_window"):
            self._fail(key, f"{key} is 1: no block has the window that attention.sliding_window gives")

    def _divisors(self) -> None:
        """What is in groups of equal size, and what an architecture has one number of."""
        for whole, part in (
            ("embedding_length", "wkv.head_size"),
            ("attention.head_count", "attention.output_group_count"),
        ):
            total, share, key = self._largest(whole), self._largest(part), self._prefix + part
            if key in self._summary.values and (not share or total % share):
                self._fail(key, f"{key} is {share}, which does not divide {whole} ({total})")
        for (architecture, name), wanted in _FIXED.items():
            key, found = self._prefix + name, self._largest(name)
            if architecture == self._summary.architecture and key in self._summary.values and found != wanted:
                self._fail(key, f"{key} is {found}, in this architecture it is {wanted}")

    def _vocabulary(self) -> None:
        tokens = self._summary.values.get("tokenizer.ggml.tokens")
        rows = self._shapes.get("token_embd.weight", (0, 0))[1:]
        if tokens is not None and tokens.count is not None and rows and tokens.count < rows[0]:
            self._fail(
                "tokenizer.ggml.tokens",
                f"tokenizer.ggml.tokens has {tokens.count} tokens, but token_embd.weight has {rows[0]} rows",
            )

    # -- reading

    def _largest(self, name: str, default: int = 0) -> int:
        value = self._summary.values.get(self._prefix + name)
        return int(max(value.numbers, default=0)) if value is not None else default

    def _per_block(self, name: str) -> Sequence[float]:
        value = self._summary.values.get(self._prefix + name)
        if value is None:
            return ()
        numbers = value.numbers
        return numbers if value.count is not None else [*numbers] * max(self._largest("block_count"), 1)

    def _fail_first(self, names: Sequence[str], problem: str) -> NoReturn:
        """Fail at the first of the keys that is there."""
        keys = (self._prefix + name for name in names)
        self._fail(next((key for key in keys if key in self._summary.values), "general.architecture"), problem)

    def _fail(self, key: str, problem: str) -> NoReturn:
        fail(self._summary.path, problem, self._summary.values[key].offset)
