"""Which types of the KV cache suit a model: what its file says of its family decides, and what the payload has.

The rules are what was measured on three small models, one of each of the first three families here
(docs/stacks/turboquant.md has the figures); ``forkyard bench kv`` measures it for any model.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .gguf_reader import GgufSummary
from .gguf_types import TENSOR_TYPES
from .payloads import Payload

__all__ = ["Advice", "advise", "bytes_per_token"]

_TAIL: Final = {"kv_tail_tokens": 128, "kv_sink_tokens": 4}
_HADAMARD: Final = {"k_cache_hadamard": True, "v_cache_hadamard": True}
# Arguments of `Llama` as options of the engines' own programs.
_FLAGS: Final = {
    "type_k": "-ctk", "type_v": "-ctv", "kv_tail_tokens": "--kv-tail-tokens", "kv_sink_tokens": "--kv-sink-tokens",
    "k_cache_hadamard": "-khad", "v_cache_hadamard": "-vhad",
}  # fmt: skip
_FEW_BITS: Final = "ftq4"
_SAFE: Final = "q8_0"


@dataclass(frozen=True)
class Advice:
    """Types for one model on one payload.

    ``options`` are arguments of :class:`Llama`, none where the model keeps no such cache. The sizes are bytes that a
    token takes in the layers which see all tokens.
    """

    options: Mapping[str, str | int]
    why: str
    bytes_per_token: int = 0
    f16_bytes_per_token: int = 0

    @property
    def flags(self) -> str:
        """The same for the engine's own programs (``llama-server``), as a shell takes it."""
        words = []
        for name, value in self.options.items():
            words += [_FLAGS[name]] if value is True else [_FLAGS[name], str(value)]
        return shlex.join(words)


def advise(model: GgufSummary, payload: Payload) -> Advice:
    """The types for a model whose file was checked, on a payload that can load it."""
    if not _heads(model):
        return Advice({}, "it keeps no K and V of its tokens")
    key, value = _length(model, "key"), _length(model, "value")
    types, why = _types(model, payload, key, value)
    options: dict[str, str | int] = dict(types)
    few_bits = _FEW_BITS in types.values()
    # On a GPU attention with a tail converts the whole cache for each token; with latent attention it is refused.
    if "kv-tail" in payload.capabilities and not payload.for_gpu and not _number(model, "attention.kv_lora_rank"):
        options |= _TAIL
    if few_bits and payload.engine == "ik_llama.cpp":
        options |= _HADAMARD
    sizes = [
        bytes_per_token(model, payload.engine, k, v) for k, v in ((types["type_k"], types["type_v"]), ("f16", "f16"))
    ]
    return Advice(options, why, *sizes)


def bytes_per_token(model: GgufSummary, engine: str, k: str, v: str) -> int:
    """Bytes that a token takes with K and V of these types, in the layers which see all tokens; 0 without a cache."""
    return _heads(model) * (_row(engine, k, _length(model, "key")) + _row(engine, v, _length(model, "value")))


def _types(model: GgufSummary, payload: Payload, key: int, value: int) -> tuple[dict[str, str], str]:
    on_gpu = (payload.manifest.get("backend") or {}).get("cache_types") if payload.for_gpu else None
    few = "kv-tail" in payload.capabilities and (on_gpu is None or _FEW_BITS in on_gpu)
    k, v = _FEW_BITS, _FEW_BITS
    if not few:
        k = v = _SAFE
        why = "8 bits lose almost nothing; this payload has no types of ours, which need half of that"
    elif _number(model, "attention.kv_lora_rank"):
        k = v = _SAFE
        why = "latent attention (MLA): fewer bits were not measured there, and a tail is refused"
    elif _biases(model):
        k = _SAFE
        why = "K has biases (as in Qwen 2 and 2.5), so that 4 bits of K lose much; V may have them"
    else:
        why = "4.25 bits lose less than q4_0 does with 4.5; if memory is short, type_v='ftq3' costs least"
    for name, kind, length in (("K", k, key), ("V", v, value)):
        if kind == _FEW_BITS and length % 64:
            why = f"{name} has heads of {length} values, which blocks of 64 do not divide"
            k, v = (_SAFE if name == "K" else k), (_SAFE if name == "V" else v)
    if any(length % 32 for length in (key, value)):
        return {"type_k": "f16", "type_v": "f16"}, f"heads of {key} and {value} values fit no smaller type"
    return {"type_k": k, "type_v": v}, why


def _biases(model: GgufSummary) -> bool:
    return any(name.startswith("blk.") and name.endswith((".attn_k.bias", ".attn_qkv.bias")) for name in model.shapes)


def _number(model: GgufSummary, name: str) -> int:
    found = model.values.get(f"{model.architecture}.{name}")
    return int(max(found.numbers, default=0)) if found is not None else 0


def _heads(model: GgufSummary) -> int:
    """Heads of K and V in all layers."""
    for name in ("attention.head_count_kv", "attention.head_count"):
        found = model.values.get(f"{model.architecture}.{name}")
        if found is not None and found.numbers:
            return int(sum(found.numbers)) if found.count is not None else int(found.numbers[0]) * model.layers
    return 0


def _length(model: GgufSummary, name: str) -> int:
    """Values of a head of K or V."""
    heads = _number(model, "attention.head_count")
    return _number(model, f"attention.{name}_length") or _number(model, "embedding_length") // max(heads, 1)


def _row(engine: str, kind: str, width: int) -> int:
    (found,) = (one for one in TENSOR_TYPES[engine].values() if one.name == kind)
    return found.data_bytes(width, 1)
