"""What can be asked of a model and its context, and which engine knows which option: data, checked before use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checks import FLOAT_MAX, INT_MAX, flag, integer, number, shown
from ..errors import UnsupportedOption, UsageError
from ..text import to_engine
from .numa import NumaChoice

__all__ = [
    "CAPABILITIES",
    "CHOICES",
    "COMMON_OPTIONS",
    "ENGINE_OPTIONS",
    "FAMILIES",
    "FLASH_CACHE",
    "MAX_THREADS",
    "NO_POOLING",
    "RANK",
    "UNDONE",
    "ModelOptions",
    "Option",
    "check_engine_options",
    "choice",
    "families_with",
]

FAMILIES = ("llama.cpp", "ik_llama.cpp")

MAX_THREADS = 512
"""GGML_MAX_N_THREADS of ggml.h. Beyond it llama.cpp writes behind an array, and both run out of stack."""


@dataclass(frozen=True)
class Option:
    """A flag, a number or a text: its type, the numbers the engines survive, the members of the params structs it sets.

    The members are named only for options that one family has.
    """

    kind: type
    low: float = 0
    high: float = INT_MAX
    model_field: str = ""
    context_field: str = ""

    def checked(self, name: str, value: object) -> bool | int | float | bytes:
        """``value`` as the plain Python value that C is handed.

        Raises:
            UsageError: it is of another type, or out of range.
        """
        if self.kind is bool:
            return flag(name, value)
        if self.kind is str:
            return to_engine(value, name, nul=False)
        if self.kind is int:
            return integer(name, value, int(self.low), int(self.high))
        return number(name, value, self.low, self.high)


COMMON_OPTIONS: Mapping[str, Option] = {
    # The engines round it up to whole blocks, within a C int.
    "n_ctx": Option(int, high=INT_MAX - 1023),
    "n_batch": Option(int, low=1),
    "n_ubatch": Option(int, low=1),
    "n_parallel": Option(int, low=1, high=256),
    "n_threads": Option(int, low=1, high=MAX_THREADS),
    "n_threads_batch": Option(int, low=1, high=MAX_THREADS),
    "n_gpu_layers": Option(int, low=-1),
    "main_gpu": Option(int),
    "use_mmap": Option(bool),
    "use_mlock": Option(bool),
    "check_tensors": Option(bool),
    "vocab_only": Option(bool),
    "embedding": Option(bool),
    "rope_freq_base": Option(float, high=FLOAT_MAX),
    "rope_freq_scale": Option(float, high=FLOAT_MAX),
    "flash_attn": Option(bool),
    "offload_kqv": Option(bool),
}
"""The flags and numbers both families have, and what both survive; None, where it is a default, is not checked."""

NO_POOLING = "none"
RANK = "rank"

_FTQ = ("ftq4", "ftq3", "ftq2")
"""Cache types of the stack turboquant, which a payload without it does not have."""

CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "split_mode": {
        "llama.cpp": ("none", "layer", "row", "tensor"),
        "ik_llama.cpp": ("none", "layer", "attn", "graph"),
    },
    "cache type": {
        "llama.cpp": (
            "f32",
            "f16",
            "bf16",
            "q8_0",
            "q4_0",
            "q4_1",
            "iq4_nl",
            "q5_0",
            "q5_1",
            *_FTQ,
        ),
        "ik_llama.cpp": (
            "f32",
            "f16",
            "bf16",
            "q8_0",
            "q4_0",
            "q4_1",
            "iq4_nl",
            "q5_0",
            "q5_1",
            "q6_0",
            "q8_kv",
            *_FTQ,
        ),
    },
    # In the order of the numbers that model files have for them.
    "pooling": {
        "llama.cpp": (NO_POOLING, "mean", "cls", "last", RANK),
        "ik_llama.cpp": (NO_POOLING, "mean", "cls", "last"),
    },
}
"""Options whose values are names, and the names each family's own tools accept."""

_TAIL = {
    "kv_tail_tokens": Option(int, context_field="n_kv_tail"),
    "kv_sink_tokens": Option(int, context_field="n_kv_sink"),
}
"""Options of the stack turboquant, which a payload without it does not have."""

ENGINE_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "llama.cpp": {
        "direct_io": Option(bool),
        "use_extra_bufts": Option(bool, model_field="use_extra_bufts"),
        "no_host": Option(bool, model_field="no_host"),
        "op_offload": Option(bool, context_field="op_offload"),
        "swa_full": Option(bool, context_field="swa_full"),
        "kv_unified": Option(bool, context_field="kv_unified"),
        **_TAIL,
        "kv_center": Option(bool, context_field="kv_center"),
        "kv_layer_types": Option(str, context_field="kv_layer_types"),
    },
    "ik_llama.cpp": {
        "repack_tensors": Option(bool, model_field="repack_tensors"),
        "use_thp": Option(bool, model_field="use_thp"),
        "validate_quants": Option(bool, model_field="validate_quants"),
        "merge_qkv": Option(bool, model_field="merge_qkv"),
        "merge_up_gate_exps": Option(bool, model_field="merge_up_gate_exps"),
        "mla_attn": Option(int, model_field="mla", context_field="mla_attn"),
        "attn_max_batch": Option(int, model_field="amb", context_field="attn_max_batch"),
        "fused_moe_up_gate": Option(bool, context_field="fused_moe_up_gate"),
        "grouped_expert_routing": Option(bool, context_field="grouped_expert_routing"),
        "fused_up_gate": Option(bool, context_field="fused_up_gate"),
        "fused_mmad": Option(bool, context_field="fused_mmad"),
        "rope_cache": Option(bool, context_field="rope_cache"),
        "graph_reuse": Option(bool, context_field="graph_reuse"),
        "min_experts": Option(int, context_field="min_experts"),
        "thresh_experts": Option(float, context_field="thresh_experts"),
        "only_active_experts": Option(bool, context_field="only_active_experts"),
        "k_cache_hadamard": Option(bool, context_field="k_cache_hadamard"),
        "v_cache_hadamard": Option(bool, context_field="v_cache_hadamard"),
        **_TAIL,
    },
}

FLASH_CACHE: Mapping[str, frozenset[str]] = {
    "type_k": frozenset({"f16", "q8_0", "q8_kv", "q6_0", "q4_0", "q4_1", "iq4_nl", *_FTQ}),
    "type_v": frozenset({"f16", "q8_0", "q6_0", "q4_0", "q4_1", "iq4_nl", *_FTQ}),
}
"""Cache types that ik_llama.cpp's flash attention computes with on a CPU, if built with GGML_IQK_FA_ALL_QUANTS.

Beside them bf16 for both, where the payload uses AVX-512 BF16. It ends the process over any other.
"""

UNDONE: Mapping[str, str] = {
    "flash_attn": "flash_attn is not compatible",
    "use_mlock": "failed to mlock",
    "direct_io": "Falling back to buffered",
    "mla_attn": "changing MLA from",
    "kv_center": "no centers of K",
    "k_cache_hadamard": "Turning K-cache Hadamard off",
    "v_cache_hadamard": "Turning V-cache Hadamard off",
}
"""What a warning of the engines says (a regular expression) where they go on without what an option asks for.

They tell it in no other way. A test looks for these words in their libraries.
"""

_SHARED = frozenset(
    {
        "completion",
        "chat",
        "streaming",
        "seed",
        "logit_bias",
        "penalties",
        "min_p",
        "flash_attn",
        "quantized_kv",
        "mmap",
        "embeddings",
    }
)

CAPABILITIES: Mapping[str, frozenset[str]] = {
    "llama.cpp": _SHARED
    | frozenset(ENGINE_OPTIONS["llama.cpp"])
    | frozenset(f"split_mode:{name}" for name in CHOICES["split_mode"]["llama.cpp"])
    | frozenset(f"pooling:{name}" for name in CHOICES["pooling"]["llama.cpp"]),
    "ik_llama.cpp": _SHARED
    | frozenset(ENGINE_OPTIONS["ik_llama.cpp"])
    | frozenset(f"split_mode:{name}" for name in CHOICES["split_mode"]["ik_llama.cpp"])
    | frozenset(f"pooling:{name}" for name in CHOICES["pooling"]["ik_llama.cpp"]),
}
"""What each family can do by itself; a payload's patch stacks add the capabilities its manifest lists."""


@dataclass(frozen=True)
class ModelOptions:
    """How to load a model and make its context. None means: what the engine's own defaults say.

    ``positions`` is how many the model has, where they are rows of a tensor; 0 where they are not. ``guesses`` are
    the most tokens that are guessed and checked at a time, ``own_guesses`` are made by layers of the model.
    ``engine_options`` holds the options of :data:`ENGINE_OPTIONS` by name; ``rpc_servers`` what
    :func:`forkyard_llm.engines.rpc.addresses` made of addresses.
    """

    n_ctx: int = 512
    n_batch: int = 512
    n_threads: int = 1
    n_threads_batch: int = 1
    n_ubatch: int | None = None
    n_parallel: int = 1
    guesses: int = 0
    own_guesses: bool = False
    n_gpu_layers: int = 0
    split_mode: str | None = None
    main_gpu: int = 0
    tensor_split: Sequence[float] = ()
    devices: Sequence[str] | None = None
    rpc_servers: Sequence[str] = ()
    use_mmap: bool = True
    use_mlock: bool = False
    check_tensors: bool = False
    vocab_only: bool = False
    embedding: bool = False
    pooling: str | None = None
    positions: int = 0
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    flash_attn: bool | None = None
    offload_kqv: bool = True
    type_k: str | None = None
    type_v: str | None = None
    numa: NumaChoice = NumaChoice()  # noqa: RUF009 - frozen
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, option in COMMON_OPTIONS.items():
            value = getattr(self, name)
            if value is not None or defaults[name] is not None:
                self._set(name, option.checked(name, value))
        if self.n_parallel > self.n_batch:
            # A batch holds a token of each request.
            msg = f"n_parallel is {self.n_parallel}, and a batch has room for {self.n_batch} tokens: raise n_batch"
            raise UsageError(msg)
        self._set("tensor_split", _shares(self.tensor_split))
        self._check_embedding()
        if self.devices is not None:
            self._set("devices", _names(self.devices))

    def _check_embedding(self) -> None:
        if self.pooling is not None and not self.embedding:
            msg = f"pooling={shown(self.pooling)} is for embeddings: give embedding=True with it, or leave it out"
            raise UsageError(msg)
        if self.embedding and self.n_parallel > 1:
            msg = "embedding=True computes several texts in one batch by itself: leave n_parallel out"
            raise UsageError(msg)
        if self.embedding and self.engine_options.get("kv_unified") is False:
            msg = "kv_unified=False would divide the context among the texts of a batch: leave it out for embeddings"
            raise UsageError(msg)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _shares(given: Iterable[object]) -> tuple[float, ...]:
    """``tensor_split`` as plain numbers; which devices there are is for the engine to say."""
    try:
        shares = tuple(number(f"part {index} of tensor_split", part, 0) for index, part in enumerate(given))
    except TypeError as error:
        msg = f"tensor_split must be a sequence of numbers, one for each GPU; got {given!r}"
        raise UsageError(msg) from error
    if shares and not any(shares):
        msg = "tensor_split gives every GPU nothing; at least one part must be greater than 0"
        raise UsageError(msg)
    return shares


def _names(given: Iterable[object]) -> tuple[str, ...]:
    """``devices`` as names; which devices there are is for the engine to say."""
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(name, str) for name in names) or isinstance(given, str) or len(set(names)) != len(names):
        msg = f"devices must be a sequence of different names, as forkyard_llm.devices() has them; got {shown(given)}"
        raise UsageError(msg)
    return tuple(str(name) for name in names)


def families_with(option: str) -> tuple[str, ...]:
    """The families that have the engine option or capability called ``option``."""
    return tuple(family for family in FAMILIES if option in CAPABILITIES[family])


def check_engine_options(family: str, options: Mapping[str, Any]) -> dict[str, bool | int | float | bytes]:
    """The engine options given for ``family`` as the plain values C is handed, if names, types and ranges are right.

    Raises:
        UnsupportedOption: only the other family has the option; the message names it.
        UsageError: no family has it, or the value is of the wrong type or out of range.
    """
    checked = {}
    for name, value in options.items():
        option = ENGINE_OPTIONS[family].get(name)
        if option is None:
            having = [other for other in FAMILIES if name in ENGINE_OPTIONS[other]]
            if having:
                msg = f"{family} has no option {name!r}; {', '.join(having)} has it (engine={having[0]!r})"
                raise UnsupportedOption(msg)
            known = ", ".join(sorted(ENGINE_OPTIONS[family]))
            msg = f"no engine has an option {name!r}; options of {family} beyond the common ones: {known}"
            raise UsageError(msg)
        checked[name] = option.checked(f"option {name!r}", value)
    return checked


def choice(family: str, what: str, option: str, value: str) -> str:
    """``value`` in lower case, if ``family`` has it among the :data:`CHOICES` of ``what``.

    Args:
        option: the caller's name of the option, for the message.

    Raises:
        UnsupportedOption: only the other family has that value; the message names it.
        UsageError: no family has it.
    """
    name = value.lower() if isinstance(value, str) else value
    table = CHOICES[what]
    if name in table[family]:
        return name
    having = [other for other in FAMILIES if name in table[other]]
    if having:
        msg = (
            f"{family} has no {option} {value!r} (it has: {', '.join(table[family])});"
            f" {', '.join(having)} has it (engine={having[0]!r})"
        )
        raise UnsupportedOption(msg)
    msg = f"{option} {value!r} is not known to any engine; {family} has: {', '.join(table[family])}"
    raise UsageError(msg)
