"""Tiny models with a recurrent state: state spaces and linear attention, alone and mixed with attention."""

from __future__ import annotations

from pathlib import Path

from .attention_models import EPSILON, HEAD_DIM, N_EXPERT, N_EXPERT_USED, N_HEAD, N_HEAD_KV, experts, ffn
from .gguf_builder import Builder, Type

N_CONV = 4
"""Tokens that the convolution before a state sees."""


def _scan(b: Builder, layer: int, *, d_state: int, dt_rank: int) -> None:
    """The selective scan of Mamba."""
    blk = f"blk.{layer}"
    d_inner = 2 * b.n_embd
    b.matrix(f"{blk}.ssm_in.weight", 2 * d_inner, b.n_embd)
    b.normal(f"{blk}.ssm_conv1d.weight", (d_inner, N_CONV), 0.5)
    b.normal(f"{blk}.ssm_conv1d.bias", (d_inner,), 0.1)
    b.matrix(f"{blk}.ssm_x.weight", dt_rank + 2 * d_state, d_inner)
    b.matrix(f"{blk}.ssm_dt.weight", d_inner, dt_rank, kind=Type.F32)
    b.normal(f"{blk}.ssm_dt.bias", (d_inner,), 0.1)
    b.normal(f"{blk}.ssm_a", (d_inner, d_state), 0.1, -0.5)
    b.normal(f"{blk}.ssm_d", (d_inner,), 0.5)
    b.matrix(f"{blk}.ssm_out.weight", b.n_embd, d_inner)


def write_scan(path: Path) -> None:
    """``mamba``: state only, no attention and no feed-forward part."""
    d_state, dt_rank = 16, 16
    b = Builder(path, "mamba", n_embd=128, n_layer=2)
    b.keys(
        feed_forward_length=0,
        attention__head_count=0,
        attention__layer_norm_rms_epsilon=EPSILON,
        ssm__conv_kernel=N_CONV,
        ssm__inner_size=2 * b.n_embd,
        ssm__state_size=d_state,
        ssm__time_step_rank=dt_rank,
    )
    b.embeddings()
    for layer in range(b.n_layer):
        b.norm(f"blk.{layer}.attn_norm", b.n_embd)
        _scan(b, layer, d_state=d_state, dt_rank=dt_rank)
    b.finish()


def _grouped_scan(b: Builder, layer: int, *, d_state: int, n_head: int, n_group: int) -> None:
    """The state space of Mamba 2."""
    blk = f"blk.{layer}"
    d_inner = 2 * b.n_embd
    d_conv = d_inner + 2 * n_group * d_state
    b.matrix(f"{blk}.ssm_in.weight", d_inner + d_conv + n_head, b.n_embd)
    b.normal(f"{blk}.ssm_conv1d.weight", (d_conv, N_CONV), 0.5)
    b.normal(f"{blk}.ssm_conv1d.bias", (d_conv,), 0.1)
    b.normal(f"{blk}.ssm_dt.bias", (n_head,), 0.1)
    b.normal(f"{blk}.ssm_a", (n_head, 1), 0.1, -0.5)
    b.normal(f"{blk}.ssm_d", (n_head, 1), 0.5)
    b.normal(f"{blk}.ssm_norm.weight", (n_group, d_inner // n_group), 0.1, 1.0)
    b.matrix(f"{blk}.ssm_out.weight", b.n_embd, d_inner)


def write_hybrid_scan(path: Path) -> None:
    """``granitehybrid``: two layers of Mamba 2 around one of attention."""
    d_state, n_head, n_group = 32, 4, 2
    b = Builder(path, "granitehybrid", n_embd=128, n_layer=3)
    heads_kv = [0, N_HEAD_KV, 0]
    b.keys(
        feed_forward_length=256,
        attention__head_count=N_HEAD,
        attention__head_count_kv=heads_kv,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        attention__layer_norm_rms_epsilon=EPSILON,
        rope__dimension_count=HEAD_DIM,
        ssm__conv_kernel=N_CONV,
        ssm__inner_size=2 * b.n_embd,
        ssm__state_size=d_state,
        ssm__time_step_rank=n_head,
        ssm__group_count=n_group,
    )
    b.embeddings()
    for layer, n_head_kv in enumerate(heads_kv):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", b.n_embd)
        if n_head_kv:
            for part, heads in (("q", N_HEAD), ("k", n_head_kv), ("v", n_head_kv)):
                b.matrix(f"{blk}.attn_{part}.weight", heads * HEAD_DIM, b.n_embd)
            b.matrix(f"{blk}.attn_output.weight", b.n_embd, N_HEAD * HEAD_DIM)
        else:
            _grouped_scan(b, layer, d_state=d_state, n_head=n_head, n_group=n_group)
        ffn(b, layer, 256)
    b.finish()


def write_hybrid_delta(path: Path, *, n_key: int = 1, n_value: int = 2, drafts: bool = False) -> None:
    """``qwen3next``: three layers of gated linear attention, one of full attention, experts in all four.

    If it ``drafts``, it has one layer more that predicts a token further. What follows a token depends on that token
    first, by its large embedding, so that many drafts are right.
    """
    d_state, n_ff = 128, 128
    n_embd = 128
    scale = 8.0 if drafts else 1.0
    b = Builder(path, "qwen3next", n_embd=n_embd, n_layer=5 if drafts else 4, texts=drafts)
    if drafts:
        b.keys(nextn_predict_layers=1)
        b.identity("blk.4.nextn.eh_proj.weight", n_embd, 2 * n_embd, scale=scale)
        for part in ("enorm", "hnorm", "shared_head_norm"):
            b.norm(f"blk.4.nextn.{part}", n_embd)
    b.keys(
        feed_forward_length=n_ff,
        attention__head_count=N_HEAD,
        attention__head_count_kv=N_HEAD_KV,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        attention__layer_norm_rms_epsilon=EPSILON,
        rope__dimension_count=HEAD_DIM,
        full_attention_interval=4,
        expert_count=N_EXPERT,
        expert_used_count=N_EXPERT_USED,
        expert_feed_forward_length=n_ff,
        expert_shared_feed_forward_length=n_ff,
        ssm__conv_kernel=N_CONV,
        ssm__inner_size=d_state * n_value,
        ssm__state_size=d_state,
        ssm__time_step_rank=n_value,
        ssm__group_count=n_key,
    )
    b.embeddings(scale=scale)
    d_key, d_value = d_state * n_key, d_state * n_value
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", n_embd)
        b.norm(f"{blk}.post_attention_norm", n_embd)
        if layer >= 3:
            # The query projection also yields a gate.
            for part, heads in (("q", 2 * N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV)):
                b.matrix(f"{blk}.attn_{part}.weight", heads * HEAD_DIM, n_embd)
            b.matrix(f"{blk}.attn_output.weight", n_embd, N_HEAD * HEAD_DIM)
            b.norm(f"{blk}.attn_q_norm", HEAD_DIM)
            b.norm(f"{blk}.attn_k_norm", HEAD_DIM)
        else:
            b.matrix(f"{blk}.attn_qkv.weight", 2 * d_key + d_value, n_embd)
            b.matrix(f"{blk}.attn_gate.weight", d_value, n_embd)
            b.normal(f"{blk}.ssm_conv1d.weight", (2 * d_key + d_value, N_CONV), 0.5)
            b.normal(f"{blk}.ssm_dt.bias", (n_value,), 0.1)
            b.normal(f"{blk}.ssm_a", (n_value,), 0.1, -0.5)
            b.matrix(f"{blk}.ssm_ba.weight", 2 * n_value, n_embd)
            b.norm(f"{blk}.ssm_norm", d_state)
            b.matrix(f"{blk}.ssm_out.weight", n_embd, d_value)
        experts(b, layer, n_ff=n_ff, shared=n_ff)
        b.normal(f"{blk}.ffn_gate_inp_shexp.weight", (n_embd,), 0.1)
    b.finish()


def write_time_mix(path: Path) -> None:
    """``rwkv7``: a state updated by rank-one terms; also remembers the last token of each layer."""
    n_embd, n_head_dim, lora, n_ff = 128, 64, 32, 256
    b = Builder(path, "rwkv7", n_embd=n_embd, n_layer=2)
    b.keys(
        feed_forward_length=n_ff,
        attention__head_count=0,
        attention__layer_norm_epsilon=EPSILON,
        attention__decay_lora_rank=lora,
        attention__iclr_lora_rank=lora,
        attention__value_residual_mix_lora_rank=lora,
        attention__gate_lora_rank=lora,
        wkv__head_size=n_head_dim,
    )
    b.embeddings(bias=True)
    b.norm("token_embd_norm", n_embd, bias=True)
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", n_embd, bias=True)
        b.norm(f"{blk}.attn_norm_2", n_embd, bias=True)
        for part in "wav":
            b.normal(f"{blk}.time_mix_{part}0.weight", (n_embd,), 0.1)
            b.matrix(f"{blk}.time_mix_{part}1.weight", lora, n_embd)
            b.matrix(f"{blk}.time_mix_{part}2.weight", n_embd, lora)
        b.matrix(f"{blk}.time_mix_g1.weight", lora, n_embd)
        b.matrix(f"{blk}.time_mix_g2.weight", n_embd, lora)
        b.normal(f"{blk}.time_mix_lerp_fused.weight", (6, 1, 1, n_embd), 0.2, 0.5)
        for part in ("k_k", "k_a", "r_k"):
            b.normal(f"{blk}.time_mix_{part}.weight", (n_embd,), 0.1, 0.5)
        for part in ("key", "value", "receptance", "output"):
            b.matrix(f"{blk}.time_mix_{part}.weight", n_embd, n_embd)
        b.norm(f"{blk}.time_mix_ln", n_embd, bias=True)
        b.normal(f"{blk}.channel_mix_lerp_k.weight", (1, 1, n_embd), 0.2, 0.5)
        b.matrix(f"{blk}.channel_mix_key.weight", n_ff, n_embd)
        b.matrix(f"{blk}.channel_mix_value.weight", n_embd, n_ff)
    b.finish()
