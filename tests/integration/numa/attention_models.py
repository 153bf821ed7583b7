"""Tiny models whose layers are all attention: dense, mixtures of experts, latent attention, sliding windows."""

from __future__ import annotations

from pathlib import Path

import gguf

from .gguf_builder import Builder, Type

N_EMBD = 256
N_HEAD, N_HEAD_KV, HEAD_DIM = 4, 2, 64
N_FF = 512
N_EXPERT, N_EXPERT_USED = 4, 2
EPSILON = 1e-5


def _attention(b: Builder, layer: int, *, norms: bool = False, bias: bool = False) -> None:
    """Query, key, value and output of a layer, with normalized heads or biases if asked for."""
    blk = f"blk.{layer}"
    b.norm(f"{blk}.attn_norm", b.n_embd)
    for part, heads in (("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV)):
        b.matrix(f"{blk}.attn_{part}.weight", heads * HEAD_DIM, b.n_embd)
        if bias:
            b.normal(f"{blk}.attn_{part}.bias", (heads * HEAD_DIM,), 0.1)
    b.matrix(f"{blk}.attn_output.weight", b.n_embd, N_HEAD * HEAD_DIM)
    if bias:
        b.normal(f"{blk}.attn_output.bias", (b.n_embd,), 0.1)
    if norms:
        b.norm(f"{blk}.attn_q_norm", HEAD_DIM)
        b.norm(f"{blk}.attn_k_norm", HEAD_DIM)


def _attention_keys(b: Builder, n_ff: int = N_FF) -> None:
    b.keys(
        attention__head_count=N_HEAD,
        attention__head_count_kv=N_HEAD_KV,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        attention__layer_norm_rms_epsilon=EPSILON,
        rope__dimension_count=HEAD_DIM,
        feed_forward_length=n_ff,
    )


def ffn(b: Builder, layer: int, n_ff: int = N_FF) -> None:
    """A gated feed-forward part with its normalization."""
    blk = f"blk.{layer}"
    b.norm(f"{blk}.ffn_norm", b.n_embd)
    b.matrix(f"{blk}.ffn_gate.weight", n_ff, b.n_embd)
    b.matrix(f"{blk}.ffn_up.weight", n_ff, b.n_embd)
    b.matrix(f"{blk}.ffn_down.weight", b.n_embd, n_ff)


def experts(
    b: Builder, layer: int, *, n_ff: int, shared: int = 0, kind: gguf.GGMLQuantizationType | None = None
) -> None:
    """A router and its experts; ``shared`` is the width of an expert that every token passes."""
    blk = f"blk.{layer}"
    b.matrix(f"{blk}.ffn_gate_inp.weight", N_EXPERT, b.n_embd, kind=Type.F32)
    b.matrix(f"{blk}.ffn_gate_exps.weight", n_ff, b.n_embd, count=N_EXPERT, kind=kind)
    b.matrix(f"{blk}.ffn_up_exps.weight", n_ff, b.n_embd, count=N_EXPERT, kind=kind)
    b.matrix(f"{blk}.ffn_down_exps.weight", b.n_embd, n_ff, count=N_EXPERT, kind=kind)
    if shared:
        b.matrix(f"{blk}.ffn_gate_shexp.weight", shared, b.n_embd)
        b.matrix(f"{blk}.ffn_up_shexp.weight", shared, b.n_embd)
        b.matrix(f"{blk}.ffn_down_shexp.weight", b.n_embd, shared)


def write_dense(path: Path, kind: gguf.GGMLQuantizationType = Type.F16, *, n_layer: int = 2) -> None:
    """``llama``: RoPE on whole heads, two queries to a key."""
    b = Builder(path, "llama", n_embd=N_EMBD, n_layer=n_layer, kind=kind)
    _attention_keys(b)
    b.embeddings()
    for layer in range(n_layer):
        _attention(b, layer)
        ffn(b, layer)
    b.finish()


def write_biased(path: Path) -> None:
    """``qwen2``: biases of keys that are far larger than what tokens add to them, and that RoPE hardly turns."""
    b = Builder(path, "qwen2", n_embd=N_EMBD, n_layer=2, kind=Type.F16)
    _attention_keys(b)
    b.keys(rope__freq_base=1e18)
    b.embeddings()
    for layer in range(2):
        _attention(b, layer)
        for part, heads, size in (("q", N_HEAD, 0.1), ("k", N_HEAD_KV, 8.0), ("v", N_HEAD_KV, 0.1)):
            b.normal(f"blk.{layer}.attn_{part}.bias", (heads * HEAD_DIM,), size)
        ffn(b, layer)
    b.finish()


def write_experts(path: Path, kind: gguf.GGMLQuantizationType = Type.F16) -> None:
    """``qwen3moe``: each token passes two of four experts."""
    b = Builder(path, "qwen3moe", n_embd=N_EMBD, n_layer=2, kind=kind)
    _attention_keys(b)
    n_ff = 256
    b.keys(expert_count=N_EXPERT, expert_used_count=N_EXPERT_USED, expert_feed_forward_length=n_ff)
    b.embeddings()
    for layer in range(b.n_layer):
        _attention(b, layer, norms=True)
        b.norm(f"blk.{layer}.ffn_norm", b.n_embd)
        experts(b, layer, n_ff=n_ff)
    b.finish()


def write_sinks(path: Path) -> None:
    """``gpt-oss``: MXFP4 experts, biases everywhere, attention sinks, a sliding window in every other layer."""
    b = Builder(path, "gpt-oss", n_embd=N_EMBD, n_layer=2)
    _attention_keys(b)
    n_ff = 256
    b.keys(
        expert_count=N_EXPERT,
        expert_used_count=N_EXPERT_USED,
        expert_feed_forward_length=n_ff,
        attention__sliding_window=16,
    )
    b.embeddings()
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        _attention(b, layer, bias=True)
        b.norm(f"{blk}.post_attention_norm", b.n_embd)
        b.normal(f"{blk}.attn_sinks.weight", (N_HEAD,), 1.0)
        experts(b, layer, n_ff=n_ff, kind=Type.MXFP4)
        b.normal(f"{blk}.ffn_gate_inp.bias", (N_EXPERT,), 0.1)
        b.normal(f"{blk}.ffn_gate_exps.bias", (N_EXPERT, n_ff), 0.1)
        b.normal(f"{blk}.ffn_up_exps.bias", (N_EXPERT, n_ff), 0.1)
        b.normal(f"{blk}.ffn_down_exps.bias", (N_EXPERT, b.n_embd), 0.1)
    b.finish()


def write_window(path: Path) -> None:
    """``gemma3``: five layers with a sliding window of 16 tokens, then one without; head output is normalized."""
    b = Builder(path, "gemma3", n_embd=128, n_layer=6)
    _attention_keys(b, 256)
    b.keys(attention__sliding_window=16)
    b.embeddings()
    for layer in range(b.n_layer):
        _attention(b, layer, norms=True)
        ffn(b, layer, 256)
        b.norm(f"blk.{layer}.post_attention_norm", b.n_embd)
        b.norm(f"blk.{layer}.post_ffw_norm", b.n_embd)
    b.finish()


def write_latent(path: Path, kind: gguf.GGMLQuantizationType = Type.F16, *, absorbed: bool = True) -> None:
    """``deepseek2``: a latent vector of 512 values and 64 rotated ones per token (MLA), the geometry ik_llama.cpp wants.

    A dense layer, then one of experts with a shared one. Without ``absorbed`` the file has the two halves of the key
    and value projection in one matrix, as older files do; the engines then split it or do without.
    """
    n_head, lora, rope, nope, v_dim, q_lora = 4, 512, 64, 128, 128, 256
    b = Builder(path, "deepseek2", n_embd=N_EMBD, n_layer=2, kind=kind)
    b.keys(
        attention__head_count=n_head,
        attention__head_count_kv=1 if absorbed else n_head,
        attention__layer_norm_rms_epsilon=EPSILON,
        attention__q_lora_rank=q_lora,
        attention__kv_lora_rank=lora,
        attention__key_length=lora + rope if absorbed else nope + rope,
        attention__value_length=lora if absorbed else v_dim,
        rope__dimension_count=rope,
        feed_forward_length=256,
        leading_dense_block_count=1,
        expert_count=N_EXPERT,
        expert_used_count=N_EXPERT_USED,
        expert_shared_count=1,
        expert_feed_forward_length=256,
        expert_weights_scale=1.0,
        expert_weights_norm=True,
        expert_gating_func=2,
    )
    if absorbed:
        b.keys(attention__key_length_mla=nope + rope, attention__value_length_mla=v_dim)
    b.embeddings()
    for layer in range(b.n_layer):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", b.n_embd)
        b.norm(f"{blk}.attn_q_a_norm", q_lora)
        b.norm(f"{blk}.attn_kv_a_norm", lora)
        b.matrix(f"{blk}.attn_q_a.weight", q_lora, b.n_embd)
        b.matrix(f"{blk}.attn_q_b.weight", n_head * (nope + rope), q_lora)
        b.matrix(f"{blk}.attn_kv_a_mqa.weight", lora + rope, b.n_embd)
        if absorbed:
            b.matrix(f"{blk}.attn_k_b.weight", lora, nope, count=n_head)
            b.matrix(f"{blk}.attn_v_b.weight", v_dim, lora, count=n_head)
        else:
            b.matrix(f"{blk}.attn_kv_b.weight", n_head * (nope + v_dim), lora)
        b.matrix(f"{blk}.attn_output.weight", b.n_embd, n_head * v_dim)
        if layer == 0:
            ffn(b, layer, 256)
            continue
        b.norm(f"{blk}.ffn_norm", b.n_embd)
        experts(b, layer, n_ff=256, shared=256)
        b.normal(f"{blk}.exp_probs_b.bias", (N_EXPERT,), 0.1)
    b.finish()


def write_compressed(path: Path) -> None:
    """``deepseek4``: a sliding window beside compressed keys of older tokens, whose states have buffers of their own."""
    n_head, head_dim, q_lora, groups, o_lora, hc = 8, 64, 64, 8, 32, 4
    n_index_head, index_dim = 64, 128
    ratios = [0, 4, 128]
    b = Builder(path, "deepseek4", n_embd=128, n_layer=len(ratios))
    b.keys(
        attention__head_count=n_head,
        attention__head_count_kv=1,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        attention__layer_norm_rms_epsilon=EPSILON,
        attention__q_lora_rank=q_lora,
        attention__sliding_window=16,
        attention__output_group_count=groups,
        attention__output_lora_rank=o_lora,
        attention__compress_ratios=ratios,
        attention__compress_rope_freq_base=160000.0,
        attention__indexer__head_count=n_index_head,
        attention__indexer__key_length=index_dim,
        attention__indexer__top_k=131072,
        rope__dimension_count=head_dim // 2,
        feed_forward_length=128,
        expert_count=N_EXPERT,
        expert_used_count=N_EXPERT_USED,
        expert_shared_count=1,
        expert_feed_forward_length=128,
        expert_weights_scale=1.0,
        expert_weights_norm=True,
        expert_gating_func=4,
        swiglu_clamp_exp=10.0,
        hash_layer_count=0,
        hyper_connection__count=hc,
        hyper_connection__sinkhorn_iterations=2,
        hyper_connection__epsilon=1e-6,
    )
    b.embeddings()
    b.matrix("output_hc_fn.weight", hc, hc * b.n_embd, kind=Type.F32)
    b.normal("output_hc_base.weight", (hc,), 0.1)
    b.normal("output_hc_scale.weight", (1,), 0.1, 1.0)
    mix = (2 + hc) * hc
    for layer, ratio in enumerate(ratios):
        blk = f"blk.{layer}"
        b.norm(f"{blk}.attn_norm", b.n_embd)
        b.normal(f"{blk}.attn_sinks.weight", (n_head,), 1.0)
        b.matrix(f"{blk}.attn_q_a.weight", q_lora, b.n_embd)
        b.norm(f"{blk}.attn_q_a_norm", q_lora)
        b.matrix(f"{blk}.attn_q_b.weight", n_head * head_dim, q_lora)
        b.matrix(f"{blk}.attn_kv.weight", head_dim, b.n_embd)
        b.norm(f"{blk}.attn_kv_a_norm", head_dim)
        b.matrix(f"{blk}.attn_output_a.weight", o_lora * groups, n_head * head_dim // groups)
        b.matrix(f"{blk}.attn_output_b.weight", b.n_embd, groups * o_lora)
        for part in ("attn", "ffn"):
            b.matrix(f"{blk}.hc_{part}_fn.weight", mix, hc * b.n_embd, kind=Type.F32)
            b.normal(f"{blk}.hc_{part}_base.weight", (mix,), 0.1)
            b.normal(f"{blk}.hc_{part}_scale.weight", (3,), 0.1, 1.0)
        if ratio:
            _compressor(b, f"{blk}.attn", head_dim, ratio)
        if ratio == 4:
            b.matrix(f"{blk}.indexer.proj.weight", n_index_head, b.n_embd)
            b.matrix(f"{blk}.indexer.attn_q_b.weight", n_index_head * index_dim, q_lora)
            _compressor(b, f"{blk}.indexer", index_dim, ratio)
        b.norm(f"{blk}.ffn_norm", b.n_embd)
        experts(b, layer, n_ff=128, shared=128)
        b.normal(f"{blk}.exp_probs_b.bias", (N_EXPERT,), 0.1)
    b.finish()


def _compressor(b: Builder, prefix: str, head_dim: int, ratio: int) -> None:
    width = head_dim * (2 if ratio == 4 else 1)
    b.matrix(f"{prefix}_compressor_kv.weight", width, b.n_embd)
    b.matrix(f"{prefix}_compressor_gate.weight", width, b.n_embd)
    b.normal(f"{prefix}_compressor_ape.weight", (ratio, width), 0.1)
    b.norm(f"{prefix}_compressor_norm", head_dim)
