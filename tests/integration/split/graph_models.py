"""Tiny models that ik_llama.cpp can split among devices, by how many key-value heads there are to share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..numa.attention_models import write_latent
from ..numa.gguf_builder import N_VOCAB, Builder

N_EMBD = 256
N_FF = 256
EPSILON = 1e-5


def write_dense(path: Path, *, n_head: int, n_head_kv: int, head_dim: int = 64, n_layer: int = 2) -> None:
    """A ``llama`` model."""
    b = Builder(path, "llama", n_embd=N_EMBD, n_layer=n_layer)
    b.keys(
        attention__head_count=n_head,
        attention__head_count_kv=n_head_kv,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=EPSILON,
        rope__dimension_count=head_dim,
        feed_forward_length=N_FF,
    )
    b.embeddings()
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", N_EMBD)
        for part, heads in (("q", n_head), ("k", n_head_kv), ("v", n_head_kv)):
            b.matrix(f"{blk}.attn_{part}.weight", heads * head_dim, N_EMBD, gain=1.5)
        b.matrix(f"{blk}.attn_output.weight", N_EMBD, n_head * head_dim, gain=2.0)
        b.norm(f"{blk}.ffn_norm", N_EMBD)
        b.matrix(f"{blk}.ffn_gate.weight", N_FF, N_EMBD)
        b.matrix(f"{blk}.ffn_up.weight", N_FF, N_EMBD)
        b.matrix(f"{blk}.ffn_down.weight", N_EMBD, N_FF)
    b.finish()


def write_parallel(path: Path) -> None:
    """``cohere2``: attention and feed-forward part read the same input, and their parts are added in one step."""
    n_head, n_head_kv, head_dim = 4, 2, 64
    b = Builder(path, "cohere2", n_embd=N_EMBD, n_layer=4)
    b.keys(
        attention__head_count=n_head,
        attention__head_count_kv=n_head_kv,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_epsilon=EPSILON,
        attention__sliding_window=512,
        logit_scale=0.25,
        rope__dimension_count=head_dim,
        feed_forward_length=N_FF,
    )
    b.matrix("token_embd.weight", N_VOCAB, N_EMBD)
    b.norm("output_norm", N_EMBD)
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", N_EMBD)
        for part, heads in (("q", n_head), ("k", n_head_kv), ("v", n_head_kv)):
            b.matrix(f"{blk}.attn_{part}.weight", heads * head_dim, N_EMBD)
        b.matrix(f"{blk}.attn_output.weight", N_EMBD, n_head * head_dim)
        b.matrix(f"{blk}.ffn_gate.weight", N_FF, N_EMBD)
        b.matrix(f"{blk}.ffn_up.weight", N_FF, N_EMBD)
        b.matrix(f"{blk}.ffn_down.weight", N_EMBD, N_FF)
    b.finish()


def write_hybrid(path: Path) -> None:
    """``qwen35``: three layers of gated linear attention and one of attention."""
    n_head, n_head_kv, head_dim = 4, 2, 64
    d_state, n_key, n_value = 128, 2, 4
    b = Builder(path, "qwen35", n_embd=N_EMBD, n_layer=4)
    b.keys(
        attention__head_count=n_head,
        attention__head_count_kv=n_head_kv,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=EPSILON,
        rope__dimension_count=head_dim,
        rope__dimension_sections=[11, 11, 10, 0],
        feed_forward_length=N_FF,
        full_attention_interval=4,
        ssm__conv_kernel=4,
        ssm__inner_size=d_state * n_value,
        ssm__state_size=d_state,
        ssm__time_step_rank=n_value,
        ssm__group_count=n_key,
    )
    b.embeddings()
    d_key, d_value = d_state * n_key, d_state * n_value
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", N_EMBD)
        b.norm(f"{blk}.post_attention_norm", N_EMBD)
        if layer == 3:
            # The query projection also yields a gate.
            for part, heads in (("q", 2 * n_head), ("k", n_head_kv), ("v", n_head_kv)):
                b.matrix(f"{blk}.attn_{part}.weight", heads * head_dim, N_EMBD)
            b.matrix(f"{blk}.attn_output.weight", N_EMBD, n_head * head_dim)
            b.norm(f"{blk}.attn_q_norm", head_dim)
            b.norm(f"{blk}.attn_k_norm", head_dim)
        else:
            b.matrix(f"{blk}.attn_qkv.weight", 2 * d_key + d_value, N_EMBD)
            b.matrix(f"{blk}.attn_gate.weight", d_value, N_EMBD)
            b.normal(f"{blk}.ssm_conv1d.weight", (2 * d_key + d_value, 4), 0.5)
            b.normal(f"{blk}.ssm_dt.bias", (n_value,), 0.1)
            b.normal(f"{blk}.ssm_a", (n_value,), 0.1, -0.5)
            b.matrix(f"{blk}.ssm_beta.weight", n_value, N_EMBD)
            b.matrix(f"{blk}.ssm_alpha.weight", n_value, N_EMBD)
            b.norm(f"{blk}.ssm_norm", d_state)
            b.matrix(f"{blk}.ssm_out.weight", N_EMBD, d_value)
        b.matrix(f"{blk}.ffn_gate.weight", N_FF, N_EMBD)
        b.matrix(f"{blk}.ffn_up.weight", N_FF, N_EMBD)
        b.matrix(f"{blk}.ffn_down.weight", N_EMBD, N_FF)
    b.finish()


MODELS: Mapping[str, Callable[[Path], None]] = {
    "four": lambda path: write_dense(path, n_head=8, n_head_kv=4),
    "three": lambda path: write_dense(path, n_head=6, n_head_kv=3),
    # With one layer a key depends on its token and position alone: a shift must give what a fresh decode gives.
    "shallow": lambda path: write_dense(path, n_head=8, n_head_kv=4, n_layer=1),
    "one": lambda path: write_dense(path, n_head=4, n_head_kv=1),
    "wide": lambda path: write_dense(path, n_head=4, n_head_kv=2, head_dim=96),
    "odd": lambda path: write_dense(path, n_head=4, n_head_kv=2, head_dim=80),
    "parallel": write_parallel,
    "hybrid": write_hybrid,
    # One latent vector per token for all heads (MLA); in older files the engine takes the key and value matrix apart.
    "latent": write_latent,
    "latent-whole": lambda path: write_latent(path, absorbed=False),
}
