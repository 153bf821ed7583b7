"""Tiny models whose attention has as many KV heads as a split is tried with; the others are those of the NUMA tests."""

from __future__ import annotations

from pathlib import Path

from ..numa import arch_models, state_models
from ..numa.attention_models import EPSILON, ffn
from ..numa.gguf_builder import Builder

HEADS = {"grouped": (8, 4, 64), "fused": (8, 4, 64), "three": (6, 3, 64), "one": (4, 1, 64), "normed": (4, 1, 128)}
"""Query heads, KV heads and values of a head of each model that is written here. ``fused`` is ``grouped`` with Q, K and V in
one matrix; ``normed`` is ``one`` with a norm of each head of Q and K, and V rotated in two parts where it is quantized."""


def _write(
    path: Path, n_head: int, n_head_kv: int, head_dim: int, *, fused: bool = False, normed: bool = False
) -> None:
    b = Builder(path, "qwen3" if normed else "llama", n_embd=256, n_layer=3, texts=True)
    b.keys(
        attention__head_count=n_head,
        attention__head_count_kv=n_head_kv,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=EPSILON,
        rope__dimension_count=head_dim,
        feed_forward_length=512,
    )
    b.embeddings()
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", b.n_embd)
        parts = (("qkv", n_head + 2 * n_head_kv),) if fused else (("q", n_head), ("k", n_head_kv), ("v", n_head_kv))
        for part, heads in parts:
            b.matrix(f"{blk}.attn_{part}.weight", heads * head_dim, b.n_embd)
        if normed:
            b.norm(f"{blk}.attn_q_norm", head_dim)
            b.norm(f"{blk}.attn_k_norm", head_dim)
        b.matrix(f"{blk}.attn_output.weight", b.n_embd, n_head * head_dim)
        ffn(b, layer)
    b.finish()


def write_model(name: str, folder: Path) -> Path:
    """The model file of that name under ``folder``, written if it is not there yet."""
    path = folder / f"{name}.gguf"
    if path.exists():
        return path
    if name in ("hybrid", "drafting"):
        # ``qwen3next`` with three V heads to each of four K heads.
        state_models.write_hybrid_delta(path, n_key=4, n_value=12, drafts=name == "drafting")
    elif name in HEADS:
        _write(path, *HEADS[name], fused=name == "fused", normed=name == "normed")
    else:
        arch_models.write_model(name, folder)
    return path
