"""Random one-layer models that show what a K-shift did to the cache.

With one layer a cached key depends on its token and its position only. So "decode n tokens, drop the first d, shift
the rest by -d" must leave the same keys as "decode the last n-d tokens from position 0": the second is an exact
reference for the first, for any cache type, and no pretrained model is needed.

The weights make attention loud: sharp scores, an attention output larger than the residual stream and no feed-forward
part, so that a key in the wrong coordinates changes the logits a lot. All values come from one fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

SEED = 20261123
N_VOCAB = 96
N_EMBD = 128
N_FF = 32
N_CTX_TRAIN = 512


@dataclass(frozen=True)
class Attention:
    """Head geometry of a plain attention layer; sizes in values, not bytes."""

    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int


class _Writer:
    """A GGUF under construction: one architecture, one layer, seeded weights."""

    def __init__(self, path: Path, arch: str, *, n_head: int, n_head_kv: int, n_embd: int = N_EMBD) -> None:
        self._gguf = gguf.GGUFWriter(path, arch)
        self._arch = arch
        self.n_embd = n_embd
        self._rng = np.random.default_rng(SEED)
        self._gguf.add_vocab_size(N_VOCAB)
        self._gguf.add_context_length(N_CTX_TRAIN)
        self._gguf.add_embedding_length(n_embd)
        self._gguf.add_block_count(1)
        self._gguf.add_feed_forward_length(N_FF)
        self._gguf.add_head_count(n_head)
        self._gguf.add_head_count_kv(n_head_kv)
        self._gguf.add_tokenizer_model("no_vocab")

    def number(self, key: str, value: int | float | bool) -> None:
        """One architecture key, ``key`` without the architecture's prefix."""
        name = f"{self._arch}.{key}"
        if isinstance(value, bool):
            self._gguf.add_bool(name, value)
        elif isinstance(value, int):
            self._gguf.add_uint32(name, value)
        else:
            self._gguf.add_float32(name, value)

    def text(self, key: str, value: str) -> None:
        self._gguf.add_string(f"{self._arch}.{key}", value)

    def normal(self, name: str, shape: tuple[int, ...], std: float) -> None:
        """A weight with independent normal values; ``shape`` as numpy has it, rows first."""
        values: NDArray[np.float32] = self._rng.standard_normal(shape, dtype=np.float32)
        self._gguf.add_tensor(name, values * np.float32(std))

    def matrix(self, name: str, n_out: int, n_in: int, gain: float) -> None:
        """A projection whose output has ``gain`` times the scale of its input."""
        self.normal(name, (n_out, n_in), gain / float(np.sqrt(n_in)))

    def constant(self, name: str, shape: tuple[int, ...], value: float) -> None:
        self._gguf.add_tensor(name, np.full(shape, value, dtype=np.float32))

    def norm(self, name: str, size: int, *, bias: bool = False) -> None:
        self.constant(f"{name}.weight", (size,), 1.0)
        if bias:
            self.constant(f"{name}.bias", (size,), 0.0)

    def embeddings(self, *, bias: bool = False) -> None:
        self.normal("token_embd.weight", (N_VOCAB, self.n_embd), 1.0)
        self.norm("output_norm", self.n_embd, bias=bias)
        self.matrix("output.weight", N_VOCAB, self.n_embd, 2.0)
        self.norm("blk.0.attn_norm", self.n_embd, bias=bias)
        self.norm("blk.0.ffn_norm", self.n_embd, bias=bias)

    def silent_ffn(self) -> None:
        self.constant("blk.0.ffn_gate.weight", (N_FF, self.n_embd), 0.0)
        self.constant("blk.0.ffn_up.weight", (N_FF, self.n_embd), 0.0)
        self.constant("blk.0.ffn_down.weight", (self.n_embd, N_FF), 0.0)

    def silent_experts(self, n_expert: int) -> None:
        self.constant("blk.0.ffn_gate_inp.weight", (n_expert, self.n_embd), 0.0)
        self.constant("blk.0.exp_probs_b.bias", (n_expert,), 0.0)
        for part, shape in (("gate", (N_FF, self.n_embd)), ("up", (N_FF, self.n_embd)), ("down", (self.n_embd, N_FF))):
            self.constant(f"blk.0.ffn_{part}_exps.weight", (n_expert, *shape), 0.0)
            self.constant(f"blk.0.ffn_{part}_shexp.weight", shape, 0.0)

    def finish(self) -> None:
        self._gguf.write_header_to_file()
        self._gguf.write_kv_data_to_file()
        self._gguf.write_tensors_to_file()
        self._gguf.close()


def write_dense(path: Path, geometry: Attention, *, yarn: float = 1.0) -> None:
    """A ``stablelm`` model: RoPE turns the first ``n_rot`` values of each head (pairs half a rotation apart).

    ``yarn`` is the factor by which YaRN extends the context; 1 is no YaRN.
    """
    g = geometry
    n_embd = g.n_head * g.head_dim
    w = _Writer(path, "stablelm", n_head=g.n_head, n_head_kv=g.n_head_kv, n_embd=n_embd)
    w.number("attention.layer_norm_epsilon", 1e-5)
    w.number("attention.key_length", g.head_dim)
    w.number("attention.value_length", g.head_dim)
    w.number("rope.dimension_count", g.n_rot)
    w.number("use_parallel_residual", True)
    if yarn != 1.0:
        w.text("rope.scaling.type", "yarn")
        w.number("rope.scaling.factor", yarn)
        w.number("rope.scaling.original_context_length", N_CTX_TRAIN)
    w.embeddings(bias=True)
    w.matrix("blk.0.attn_q.weight", g.n_head * g.head_dim, n_embd, 1.5)
    w.matrix("blk.0.attn_k.weight", g.n_head_kv * g.head_dim, n_embd, 1.5)
    w.matrix("blk.0.attn_v.weight", g.n_head_kv * g.head_dim, n_embd, 1.0)
    w.matrix("blk.0.attn_output.weight", n_embd, g.n_head * g.head_dim, 4.0)
    w.silent_ffn()
    w.finish()


def _mla_attention(w: _Writer, *, n_head: int, lora: int, nope: int, rope: int, v_dim: int, absorbed: bool) -> None:
    w.number("attention.layer_norm_rms_epsilon", 1e-5)
    w.number("leading_dense_block_count", 1)
    w.number("expert_shared_count", 0)
    w.number("expert_feed_forward_length", N_FF)
    w.number("expert_gating_func", 2)
    w.number("attention.q_lora_rank", N_EMBD)
    w.number("attention.kv_lora_rank", lora)
    w.number("rope.dimension_count", rope)
    w.embeddings()
    w.norm("blk.0.attn_q_a_norm", N_EMBD)
    w.norm("blk.0.attn_kv_a_norm", lora)
    w.matrix("blk.0.attn_q_a.weight", N_EMBD, N_EMBD, 1.0)
    w.matrix("blk.0.attn_q_b.weight", n_head * (nope + rope), N_EMBD, 2.0)
    w.matrix("blk.0.attn_kv_a_mqa.weight", lora + rope, N_EMBD, 1.5)
    if absorbed:
        w.number("attention.key_length", lora + rope)
        w.number("attention.value_length", lora)
        w.number("attention.key_length_mla", nope + rope)
        w.number("attention.value_length_mla", v_dim)
        w.normal("blk.0.attn_k_b.weight", (n_head, lora, nope), 1.0 / float(np.sqrt(lora)))
        w.normal("blk.0.attn_v_b.weight", (n_head, v_dim, lora), 1.0 / float(np.sqrt(lora)))
    else:
        w.number("attention.key_length", nope + rope)
        w.number("attention.value_length", v_dim)
        w.matrix("blk.0.attn_kv_b.weight", n_head * (nope + v_dim), lora, 1.0)
    w.matrix("blk.0.attn_output.weight", N_EMBD, n_head * v_dim, 4.0)
    w.silent_ffn()


def write_latent(path: Path, *, absorbed: bool) -> None:
    """A ``deepseek2`` model; ``absorbed`` caches the latent vector (MLA), else one key per head (nope, then rope)."""
    n_head = 2
    w = _Writer(path, "deepseek2", n_head=n_head, n_head_kv=1 if absorbed else n_head)
    _mla_attention(w, n_head=n_head, lora=128, nope=64, rope=64, v_dim=64, absorbed=absorbed)
    w.finish()


def _hyper_connections(w: _Writer, count: int) -> None:
    w.number("hyper_connection.count", count)
    w.number("hyper_connection.epsilon", 1e-6)
    w.number("hyper_connection.magnitude", 2.0)
    for part, outputs in (("blk.0.hc_attn", 2), ("blk.0.hc_ffn", 2), ("output_hc", 1)):
        w.constant(f"{part}_fn.weight", (outputs * count, count * N_EMBD), 0.0)
        w.constant(f"{part}_base.weight", (outputs * count,), 0.0)
        w.constant(f"{part}_scale.weight", (outputs,), 1.0)


def write_indexed(path: Path, arch: str) -> None:
    """A ``deepseek32``, ``glm-dsa`` or ``hy_v4`` model: MLA that attends only to the few keys its indexer picks."""
    n_head, n_index_head, index_dim = 2, 4, 128
    w = _Writer(path, arch, n_head=n_head, n_head_kv=1)
    _mla_attention(w, n_head=n_head, lora=128, nope=64, rope=64, v_dim=64, absorbed=True)
    w.number("expert_count", 2)
    w.number("expert_used_count", 1)
    w.number("attention.indexer.head_count", n_index_head)
    w.number("attention.indexer.key_length", index_dim)
    w.number("attention.indexer.top_k", 8)
    w.norm("blk.0.indexer.k_norm", index_dim, bias=True)
    w.matrix("blk.0.indexer.proj.weight", n_index_head, N_EMBD, 1.0)
    w.matrix("blk.0.indexer.attn_k.weight", index_dim, N_EMBD, 1.0)
    w.matrix("blk.0.indexer.attn_q_b.weight", n_index_head * index_dim, N_EMBD, 1.0)
    if arch == "hy_v4":
        w.number("attention.indexer.types", 1)
        _hyper_connections(w, 2)
        w.constant("blk.0.attn_sinks.weight", (n_head,), -10.0)
        w.constant("blk.0.attn_gate.weight", (n_head * 64, N_EMBD), 0.0)
    w.finish()


def write_block_sparse(path: Path) -> None:
    """A ``minimax-m3`` model: its indexer keeps keys of its own and picks whole blocks of positions."""
    n_head, n_head_kv, head_dim, n_rot, index_dim = 2, 1, 64, 32, 64
    w = _Writer(path, "minimax-m3", n_head=n_head, n_head_kv=n_head_kv)
    w.number("attention.layer_norm_rms_epsilon", 1e-5)
    w.number("attention.key_length", head_dim)
    w.number("attention.value_length", head_dim)
    w.number("rope.dimension_count", n_rot)
    w.number("leading_dense_block_count", 0)
    w.number("expert_count", 2)
    w.number("expert_used_count", 1)
    w.number("expert_shared_count", 1)
    w.number("expert_feed_forward_length", N_FF)
    w.number("expert_gating_func", 2)
    w.number("attention.indexer.head_count", n_head_kv)
    w.number("attention.indexer.key_length", index_dim)
    w.number("attention.indexer.top_k", 3)
    w.number("attention.indexer.block_size", 4)
    w.number("attention.indexer.local_blocks", 1)
    w.embeddings()
    w.matrix("blk.0.attn_q.weight", n_head * head_dim, N_EMBD, 1.0)
    w.matrix("blk.0.attn_k.weight", n_head_kv * head_dim, N_EMBD, 1.0)
    w.matrix("blk.0.attn_v.weight", n_head_kv * head_dim, N_EMBD, 1.0)
    w.matrix("blk.0.attn_output.weight", N_EMBD, n_head * head_dim, 4.0)
    w.constant("blk.0.attn_q_norm.weight", (head_dim,), 1.5)
    w.constant("blk.0.attn_k_norm.weight", (head_dim,), 1.5)
    w.matrix("blk.0.indexer.q_proj.weight", n_head_kv * index_dim, N_EMBD, 1.0)
    w.matrix("blk.0.indexer.k_proj.weight", index_dim, N_EMBD, 1.0)
    w.constant("blk.0.indexer.q_norm.weight", (index_dim,), 1.0)
    w.constant("blk.0.indexer.k_norm.weight", (index_dim,), 1.0)
    w.silent_experts(2)
    w.finish()


MODELS: Mapping[str, Callable[[Path], None]] = {
    "full-64": lambda path: write_dense(path, Attention(2, 2, 64, 64)),
    "full-96": lambda path: write_dense(path, Attention(2, 2, 96, 96)),
    "partial-64-of-128": lambda path: write_dense(path, Attention(2, 2, 128, 64)),
    "partial-32-of-64": lambda path: write_dense(path, Attention(4, 2, 64, 32)),
    "partial-16-of-64": lambda path: write_dense(path, Attention(2, 2, 64, 16)),
    "partial-64-of-192": lambda path: write_dense(path, Attention(2, 1, 192, 64)),
    "latent-per-head": lambda path: write_latent(path, absorbed=False),
    "latent-absorbed": lambda path: write_latent(path, absorbed=True),
    "indexed-deepseek32": lambda path: write_indexed(path, "deepseek32"),
    "indexed-glm-dsa": lambda path: write_indexed(path, "glm-dsa"),
    "indexed-hy-v4": lambda path: write_indexed(path, "hy_v4"),
    "yarn-64x": lambda path: write_dense(path, Attention(2, 2, 64, 64), yarn=64.0),
    "block-sparse": write_block_sparse,
}
"""Every model by name; ``partial-R-of-H`` has RoPE on R of the H values of a head."""


def write_model(name: str, folder: Path) -> Path:
    """The model file of that name under ``folder``, written if it is not there yet."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        MODELS[name](path)
    return path
