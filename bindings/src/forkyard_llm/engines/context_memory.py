"""The memory a context takes at least, compared with what the system has before an engine asks for it.

Linux gives memory out that it does not have, and kills a process when it is used: the engines never see an error.
"""

from __future__ import annotations

from collections.abc import Callable

from ..gguf_purpose import ENCODERS

__all__ = ["batch_bytes", "least_bytes"]

_CELL_BYTES = 40  # what both engines note of each position, beside keys and values

# Architectures that say one of these keep less than all keys and values of all layers.
_KEEPS_LESS = (
    "attention.sliding_window",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.shared_kv_layers",
    "full_attention_interval",
    "ssm.conv_kernel",
    "ssm.state_size",
    "wkv.head_size",
)


_MASK_BYTES = 2  # whether one token of a batch sees another
_LOGIT_BYTES = 4


def batch_bytes(architecture: str | None, tokens: int, n_vocab: int) -> int:
    """Bytes that a batch of so many tokens takes at least, where the engine computes an output of each.

    A decoder's output is all logits, which the engines compute for embeddings as well.
    """
    logits = 0 if architecture in ENCODERS else n_vocab * _LOGIT_BYTES
    return tokens * (tokens * _MASK_BYTES + logits)


def least_bytes(metadata: Callable[[str], str | None], n_ctx: int, key_bytes: float, value_bytes: float) -> int:
    """Bytes a context of ``n_ctx`` tokens takes at least; where the model's kind is not known well, far too few.

    Args:
        metadata: the text of a scalar of the model file's metadata, by key.
        n_ctx: tokens; 0 for the model's own number.
        key_bytes, value_bytes: bytes of one number in the KV cache.
    """
    architecture = metadata("general.architecture")

    def number(key: str, default: int = 0) -> int:
        text = metadata(f"{architecture}.{key}")
        return int(text) if text is not None and text.isdecimal() else default

    tokens = n_ctx or number("context_length")
    heads, width = number("attention.head_count"), number("embedding_length")
    if not heads or any(metadata(f"{architecture}.{key}") is not None for key in _KEEPS_LESS):
        return tokens * _CELL_BYTES
    layers = number("block_count") - number("nextn_predict_layers")
    keys = number("attention.key_length", width // heads) * key_bytes
    values = number("attention.value_length", width // heads) * value_bytes
    return tokens * (_CELL_BYTES + int(layers * number("attention.head_count_kv", heads) * (keys + values)))
