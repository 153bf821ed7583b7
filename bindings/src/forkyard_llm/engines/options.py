"""What can be asked of a model and its context, and which engine knows which option: data, checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import UnsupportedOption, UsageError
from .numa import NumaChoice

__all__ = [
    "CAPABILITIES",
    "CHOICES",
    "ENGINE_OPTIONS",
    "FAMILIES",
    "EngineOption",
    "ModelOptions",
    "check_engine_options",
    "choice",
    "families_with",
]

FAMILIES = ("llama.cpp", "ik_llama.cpp")

OptionValue: TypeAlias = bool | int | float


@dataclass(frozen=True)
class EngineOption:
    """An option only one family has: its type and the members of the params structs it sets."""

    kind: type
    model_field: str = ""
    context_field: str = ""


CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "split_mode": {
        "llama.cpp": ("none", "layer", "row", "tensor"),
        "ik_llama.cpp": ("none", "layer", "attn", "graph"),
    },
    "cache type": {
        "llama.cpp": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
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
        ),
    },
}
"""Options whose values are names, and the names each family's own tools accept."""

ENGINE_OPTIONS: Mapping[str, Mapping[str, EngineOption]] = {
    "llama.cpp": {
        "direct_io": EngineOption(bool),
        "use_extra_bufts": EngineOption(bool, model_field="use_extra_bufts"),
        "no_host": EngineOption(bool, model_field="no_host"),
        "op_offload": EngineOption(bool, context_field="op_offload"),
        "swa_full": EngineOption(bool, context_field="swa_full"),
        "kv_unified": EngineOption(bool, context_field="kv_unified"),
    },
    "ik_llama.cpp": {
        "repack_tensors": EngineOption(bool, model_field="repack_tensors"),
        "use_thp": EngineOption(bool, model_field="use_thp"),
        "validate_quants": EngineOption(bool, model_field="validate_quants"),
        "merge_qkv": EngineOption(bool, model_field="merge_qkv"),
        "merge_up_gate_exps": EngineOption(bool, model_field="merge_up_gate_exps"),
        "mla_attn": EngineOption(int, model_field="mla", context_field="mla_attn"),
        "attn_max_batch": EngineOption(int, model_field="amb", context_field="attn_max_batch"),
        "fused_moe_up_gate": EngineOption(bool, context_field="fused_moe_up_gate"),
        "grouped_expert_routing": EngineOption(bool, context_field="grouped_expert_routing"),
        "fused_up_gate": EngineOption(bool, context_field="fused_up_gate"),
        "fused_mmad": EngineOption(bool, context_field="fused_mmad"),
        "rope_cache": EngineOption(bool, context_field="rope_cache"),
        "graph_reuse": EngineOption(bool, context_field="graph_reuse"),
        "min_experts": EngineOption(int, context_field="min_experts"),
        "thresh_experts": EngineOption(float, context_field="thresh_experts"),
        "only_active_experts": EngineOption(bool, context_field="only_active_experts"),
        "k_cache_hadamard": EngineOption(bool, context_field="k_cache_hadamard"),
        "v_cache_hadamard": EngineOption(bool, context_field="v_cache_hadamard"),
    },
}

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
    }
)

CAPABILITIES: Mapping[str, frozenset[str]] = {
    "llama.cpp": _SHARED
    | frozenset(ENGINE_OPTIONS["llama.cpp"])
    | frozenset(f"split_mode:{name}" for name in CHOICES["split_mode"]["llama.cpp"]),
    "ik_llama.cpp": _SHARED
    | frozenset(ENGINE_OPTIONS["ik_llama.cpp"])
    | frozenset(f"split_mode:{name}" for name in CHOICES["split_mode"]["ik_llama.cpp"]),
}
"""What each family can do by itself; a payload's patch stacks add the capabilities its manifest lists."""


@dataclass(frozen=True)
class ModelOptions:
    """How to load a model and make its context. None means: what the engine's own defaults say.

    ``engine_options`` holds the options of :data:`ENGINE_OPTIONS` by name.
    """

    n_ctx: int = 512
    n_batch: int = 512
    n_threads: int = 1
    n_threads_batch: int = 1
    n_ubatch: int | None = None
    n_gpu_layers: int = 0
    split_mode: str | None = None
    main_gpu: int = 0
    tensor_split: tuple[float, ...] = ()
    use_mmap: bool = True
    use_mlock: bool = False
    check_tensors: bool = False
    vocab_only: bool = False
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    flash_attn: bool | None = None
    offload_kqv: bool = True
    type_k: str | None = None
    type_v: str | None = None
    numa: NumaChoice = NumaChoice()  # noqa: RUF009 - frozen
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_range("n_ctx", self.n_ctx, 0)
        _check_range("n_batch", self.n_batch, 1)
        _check_range("n_threads", self.n_threads, 1)
        _check_range("n_threads_batch", self.n_threads_batch, 1)
        if self.n_ubatch is not None:
            _check_range("n_ubatch", self.n_ubatch, 1)


def _check_range(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**31:
        msg = f"{name} must be an integer from {low} to {2**31 - 1}; got {value!r}"
        raise UsageError(msg)


def families_with(option: str) -> tuple[str, ...]:
    """The families that have the engine option or capability called ``option``."""
    return tuple(family for family in FAMILIES if option in CAPABILITIES[family])


def check_engine_options(family: str, options: Mapping[str, Any]) -> None:
    """Check the names and types of engine options given for ``family``.

    Raises:
        UnsupportedOption: only the other family has the option; the message names it.
        UsageError: no family has it, or the value is of the wrong type.
    """
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
        accepted = (int, float) if option.kind is float else option.kind
        if not isinstance(value, accepted) or (option.kind is not bool and isinstance(value, bool)):
            msg = f"option {name!r} must be {option.kind.__name__}; got {value!r}"
            raise UsageError(msg)


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
