"""Random models with the layers of the published ones and small widths: their graphs have the same operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np

SEED = 20261124
WIDTH = 256
VOCABULARY = 256
FEED_FORWARD = 64
INNER = 32
EXPERTS = 16
USED = 8
PER_LAYER = 256
"""Of gemma's per-layer embeddings; as in the real models, where it is small as well."""


class _Writer:
    """A GGUF under construction; matrices are Q8_0, vectors 0.5."""

    def __init__(self, path: Path, arch: str, layers: int) -> None:
        self._gguf = gguf.GGUFWriter(path, arch)
        self._arch = arch
        self._random = np.random.default_rng(SEED)
        self._gguf.add_vocab_size(VOCABULARY)
        self._gguf.add_context_length(4096)
        self._gguf.add_embedding_length(WIDTH)
        self._gguf.add_block_count(layers)
        self._gguf.add_tokenizer_model("no_vocab")
        self.real("attention.layer_norm_rms_epsilon", 1e-6)
        self.whole("feed_forward_length", FEED_FORWARD)
        self.whole("attention.head_count", 2)
        self.whole("attention.head_count_kv", 1)
        self.whole("attention.key_length", 64)
        self.whole("attention.value_length", 64)

    def whole(self, key: str, value: int) -> None:
        self._gguf.add_uint32(f"{self._arch}.{key}", value)

    def real(self, key: str, value: float) -> None:
        self._gguf.add_float32(f"{self._arch}.{key}", value)

    def several(self, key: str, values: list[int] | list[bool]) -> None:
        self._gguf.add_array(f"{self._arch}.{key}", values)

    def matrix(self, name: str, *shape: int) -> None:
        values = self._random.standard_normal(shape, dtype=np.float32) * 0.05
        kind = gguf.GGMLQuantizationType.Q8_0
        self._gguf.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def plain(self, name: str, *shape: int) -> None:
        self._gguf.add_tensor(name, np.full(shape, 0.5, dtype=np.float32))

    def norms(self, block: str, *names: str, size: int = WIDTH) -> None:
        for name in names:
            self.plain(f"{block}{name}.weight", size)

    def experts(self) -> None:
        self.whole("expert_count", EXPERTS)
        self.whole("expert_used_count", USED)
        self.whole("expert_feed_forward_length", INNER)

    def dense(self, block: str, suffix: str = "", inner: int = FEED_FORWARD) -> None:
        self.matrix(f"{block}ffn_gate{suffix}", inner, WIDTH)
        self.matrix(f"{block}ffn_up{suffix}", inner, WIDTH)
        self.matrix(f"{block}ffn_down{suffix}", WIDTH, inner)

    def finish(self) -> None:
        self._gguf.write_header_to_file()
        self._gguf.write_kv_data_to_file()
        self._gguf.write_tensors_to_file()
        self._gguf.close()


def _gemma(path: Path, *, layers: int, shared: int, period: int, experts: bool) -> None:
    w = _Writer(path, "gemma4", layers)
    w.whole("attention.key_length_swa", 32)
    w.whole("attention.value_length_swa", 32)
    w.whole("rope.dimension_count", 64)
    w.whole("rope.dimension_count_swa", 32)
    w.real("rope.freq_base", 1e6)
    w.real("rope.freq_base_swa", 1e4)
    w.real("final_logit_softcapping", 30.0)
    w.whole("attention.sliding_window", 512)
    w.whole("attention.shared_kv_layers", shared)
    w.whole("embedding_length_per_layer_input", 0 if experts else PER_LAYER)
    local = [(layer + 1) % period != 0 for layer in range(layers)]
    w.several("attention.sliding_window_pattern", local)
    if experts:
        w.experts()
    w.matrix("token_embd", VOCABULARY, WIDTH)
    w.norms("", "output_norm")
    w.plain("rope_freqs.weight", 32)
    if not experts:
        w.matrix("per_layer_token_embd", VOCABULARY, PER_LAYER * layers)
        w.matrix("per_layer_model_proj", PER_LAYER * layers, WIDTH)
        w.norms("", "per_layer_proj_norm", size=PER_LAYER)
    for layer in range(layers):
        block, head = f"blk.{layer}.", 32 if local[layer] else 64
        w.norms(block, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        w.norms(block, "attn_q_norm", "attn_k_norm", size=head)
        w.norms(block, "layer_output_scale", size=1)
        w.matrix(f"{block}attn_q", 2 * head, WIDTH)
        w.matrix(f"{block}attn_k", head, WIDTH)
        if local[layer] or not experts:
            w.matrix(f"{block}attn_v", head, WIDTH)
        w.matrix(f"{block}attn_output", WIDTH, 2 * head)
        w.dense(block)
        if experts:
            w.norms(block, "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
            w.plain(f"{block}ffn_gate_inp.weight", EXPERTS, WIDTH)
            w.plain(f"{block}ffn_gate_inp.scale", WIDTH)
            w.matrix(f"{block}ffn_gate_up_exps", EXPERTS, 2 * INNER, WIDTH)
            w.matrix(f"{block}ffn_down_exps", EXPERTS, WIDTH, INNER)
            w.plain(f"{block}ffn_down_exps.scale", EXPERTS)
        else:
            w.matrix(f"{block}inp_gate", PER_LAYER, WIDTH)
            w.matrix(f"{block}proj", WIDTH, PER_LAYER)
            w.norms(block, "post_norm")
    w.finish()


def _qwen(path: Path, *, layers: int, experts: bool) -> None:
    state, groups, heads = 32, 2, 4
    w = _Writer(path, "qwen35moe" if experts else "qwen35", layers)
    w.whole("rope.dimension_count", 16)
    w.several("rope.dimension_sections", [3, 3, 2, 0])
    w.real("rope.freq_base", 1e7)
    w.whole("ssm.conv_kernel", 4)
    w.whole("ssm.inner_size", state * heads)
    w.whole("ssm.state_size", state)
    w.whole("ssm.time_step_rank", heads)
    w.whole("ssm.group_count", groups)
    w.whole("full_attention_interval", 4)
    if experts:
        w.experts()
        w.whole("expert_shared_feed_forward_length", INNER)
    w.matrix("token_embd", VOCABULARY, WIDTH)
    w.matrix("output", VOCABULARY, WIDTH)
    w.norms("", "output_norm")
    for layer in range(layers):
        block = f"blk.{layer}."
        w.norms(block, "attn_norm", "post_attention_norm")
        if (layer + 1) % 4 == 0:
            w.matrix(f"{block}attn_q", 2 * 2 * 64, WIDTH)
            w.matrix(f"{block}attn_k", 64, WIDTH)
            w.matrix(f"{block}attn_v", 64, WIDTH)
            w.matrix(f"{block}attn_output", WIDTH, 2 * 64)
            w.norms(block, "attn_q_norm", "attn_k_norm", size=64)
        else:
            channels = state * (2 * groups + heads)
            w.matrix(f"{block}attn_qkv", channels, WIDTH)
            w.matrix(f"{block}attn_gate", state * heads, WIDTH)
            w.plain(f"{block}ssm_conv1d.weight", channels, 4)
            w.plain(f"{block}ssm_dt.bias", heads)
            w.plain(f"{block}ssm_a", heads)
            w.matrix(f"{block}ssm_beta", heads, WIDTH)
            w.matrix(f"{block}ssm_alpha", heads, WIDTH)
            w.norms(block, "ssm_norm", size=state)
            w.matrix(f"{block}ssm_out", WIDTH, state * heads)
        if not experts:
            w.dense(block)
            continue
        w.plain(f"{block}ffn_gate_inp.weight", EXPERTS, WIDTH)
        w.matrix(f"{block}ffn_gate_exps", EXPERTS, INNER, WIDTH)
        w.matrix(f"{block}ffn_up_exps", EXPERTS, INNER, WIDTH)
        w.matrix(f"{block}ffn_down_exps", EXPERTS, WIDTH, INNER)
        w.plain(f"{block}ffn_gate_inp_shexp.weight", WIDTH)
        w.dense(block, "_shexp", INNER)
    w.finish()


MODELS: Mapping[str, Callable[[Path], None]] = {
    "gemma-4-E2B Q5_K_M": lambda path: _gemma(path, layers=35, shared=20, period=5, experts=False),
    "gemma-4-E4B Q5_K_M": lambda path: _gemma(path, layers=42, shared=18, period=6, experts=False),
    "gemma-4-26B-A4B UD-Q4_K_M": lambda path: _gemma(path, layers=30, shared=0, period=6, experts=True),
    "Qwen3.6-27B Q4_K_M": lambda path: _qwen(path, layers=64, experts=False),
    "Qwen3.6-35B-A3B UD-Q5_K_M": lambda path: _qwen(path, layers=40, experts=True),
    "Qwen3.5-122B-A10B UD-Q3_K_XL": lambda path: _qwen(path, layers=48, experts=True),
}
"""By the names of the published table."""
