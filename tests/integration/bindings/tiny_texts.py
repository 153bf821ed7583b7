"""Tiny models with a tokenizer, and a tiny encoder: small enough to be loaded hundreds of times."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

SEED = 20261129
N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF, N_LAYER = 64, 4, 2, 16, 128, 2
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Writer(gguf.GGUFWriter):  # type: ignore[misc]
    """Writes a model of random weights, the same ones each time."""

    def __init__(self, path: Path, arch: str) -> None:
        super().__init__(path, arch)
        self._rng = np.random.default_rng(SEED)

    def matrix(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self.add_tensor(
            name, self._rng.standard_normal(shape, dtype=np.float32) * np.float32(scale * shape[-1] ** -0.5)
        )

    def vector(self, name: str, size: int, value: float = 1.0) -> None:
        self.add_tensor(name, np.full(size, value, dtype=np.float32))

    def byte_vocabulary(self) -> int:
        """A SentencePiece vocabulary with a token for each byte; how many tokens it has."""
        tokens = ["<unk>", "<s>", "</s>", *BYTES, "\u2581", "a", "b", "\u2581a", "ab"]
        self.add_tokenizer_model("llama")
        self.add_token_scores([-float(token) for token in range(len(tokens))])
        self.add_token_types([2, 3, 3, *[6] * 256, *[1] * 5])
        self.add_unk_token_id(0)
        self.ends(tokens)
        return len(tokens)

    def ends(self, tokens: list[str]) -> None:
        self.add_token_list(tokens)
        self.add_bos_token_id(tokens.index("<s>"))
        self.add_eos_token_id(tokens.index("</s>"))
        self.add_pad_token_id(tokens.index("</s>"))
        self.add_add_bos_token(True)

    def finish(self) -> None:
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_tensors_to_file()
        self.close()


class _Writer(Writer):
    def __init__(self, path: Path, arch: str, *, layers: int = N_LAYER, context: int = 256) -> None:
        super().__init__(path, arch)
        self.add_context_length(context)
        self.add_embedding_length(N_EMBD)
        self.add_block_count(layers)
        self.add_feed_forward_length(N_FF)
        self.add_head_count(N_HEAD)


def write_decoder(
    path: Path, *, bytes_as_tokens: bool, causal: bool = True, sections: bool = False, context: int = 256
) -> None:
    """``llama`` with a SentencePiece vocabulary that has a token for each byte, or a byte-level BPE one.

    ``sections``: ``qwen2vl``, whose positions have several dimensions.
    """
    w = _Writer(path, "qwen2vl" if sections else "llama", context=context)
    w.add_causal_attention(causal)
    w.add_head_count_kv([N_HEAD_KV] * N_LAYER)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(HEAD_DIM)
    w.add_rope_freq_base(10000.0)
    if sections:
        w.add_rope_dimension_sections([2, 3, 3, 0])
    else:
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(4.0)
        w.add_rope_scaling_orig_ctx_len(128)
    if bytes_as_tokens:
        n_vocab = w.byte_vocabulary()
    else:
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in visible]
        spelled = {byte: chr(byte) for byte in visible} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
        tokens = [*(spelled[byte] for byte in range(256)), "he", "<s>", "</s>"]
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_merges(["h e"])
        w.add_token_types([*[1] * 257, 3, 3])
        w.ends(tokens)
        n_vocab = len(tokens)
    w.matrix("token_embd.weight", n_vocab, N_EMBD)
    w.vector("output_norm.weight", N_EMBD)
    w.matrix("output.weight", n_vocab, N_EMBD)
    for layer in range(N_LAYER):
        blk = f"blk.{layer}"
        w.vector(f"{blk}.attn_norm.weight", N_EMBD)
        w.vector(f"{blk}.ffn_norm.weight", N_EMBD)
        for part, heads in (("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV)):
            w.matrix(f"{blk}.attn_{part}.weight", heads * HEAD_DIM, N_EMBD)
            if sections:
                w.vector(f"{blk}.attn_{part}.bias", heads * HEAD_DIM, 0.125)
        w.matrix(f"{blk}.attn_output.weight", N_EMBD, N_HEAD * HEAD_DIM)
        w.matrix(f"{blk}.ffn_gate.weight", N_FF, N_EMBD)
        w.matrix(f"{blk}.ffn_up.weight", N_FF, N_EMBD)
        w.matrix(f"{blk}.ffn_down.weight", N_EMBD, N_FF)
    w.finish()


def write_relative_encoder(path: Path) -> None:
    """The encoder of a T5, whose attention knows distances and no positions."""
    w = _Writer(path, "t5encoder")
    w.add_layer_norm_rms_eps(1e-6)
    w.add_relative_attn_buckets_count(32)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    letters = [chr(ord("a") + at) for at in range(26)]
    tokens = ["<pad>", "</s>", "<unk>", *(f"\u2581{letter}" for letter in letters), *letters]
    w.add_tokenizer_model("t5")
    w.add_token_list(tokens)
    w.add_token_scores([-float(token) for token in range(len(tokens))])
    w.add_token_types([3, 3, 2, *[1] * 52])
    w.add_pad_token_id(0)
    w.add_eos_token_id(1)
    w.add_unk_token_id(2)
    w.add_add_bos_token(False)
    w.add_add_eos_token(True)
    w.matrix("token_embd.weight", len(tokens), N_EMBD)
    w.matrix("enc.blk.0.attn_rel_b.weight", 32, N_HEAD)
    w.vector("enc.output_norm.weight", N_EMBD)
    for layer in range(N_LAYER):
        blk = f"enc.blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            w.vector(f"{blk}.{norm}.weight", N_EMBD)
        for part in ("q", "k", "v", "o"):
            w.matrix(f"{blk}.attn_{part}.weight", N_HEAD * HEAD_DIM, N_EMBD)
        w.matrix(f"{blk}.ffn_up.weight", N_FF, N_EMBD)
        w.matrix(f"{blk}.ffn_down.weight", N_EMBD, N_FF)
    w.finish()


def write_encoder(path: Path, *, ranks: bool = False, causal: bool = False) -> None:
    """``bert`` with mean pooling, as the converters write an embedding model, or one that ends in a classifier."""
    w = _Writer(path, "bert")
    w.add_layer_norm_eps(1e-12)
    w.add_causal_attention(causal)
    w.add_pooling_type(gguf.PoolingType.RANK if ranks else gguf.PoolingType.MEAN)
    w.add_token_type_count(2)
    letters = [chr(ord("a") + at) for at in range(26)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{letter}" for letter in letters), *letters]
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("jina-v2-en")
    w.add_token_list(tokens)
    w.add_token_types([*[3] * 5, *[1] * (len(tokens) - 5)])
    for add, token in (
        (w.add_bos_token_id, "[CLS]"),
        (w.add_eos_token_id, "[SEP]"),
        (w.add_unk_token_id, "[UNK]"),
        (w.add_sep_token_id, "[SEP]"),
        (w.add_pad_token_id, "[PAD]"),
        (w.add_mask_token_id, "[MASK]"),
    ):
        add(tokens.index(token))
    w.matrix("token_embd.weight", len(tokens), N_EMBD)
    w.matrix("token_types.weight", 2, N_EMBD)
    w.matrix("position_embd.weight", 256, N_EMBD)
    norms = ["token_embd_norm"]
    for layer in range(N_LAYER):
        blk = f"blk.{layer}"
        norms += [f"{blk}.attn_output_norm", f"{blk}.layer_output_norm"]
        for part, n_out, n_in in (
            ("attn_q", N_EMBD, N_EMBD),
            ("attn_k", N_EMBD, N_EMBD),
            ("attn_v", N_EMBD, N_EMBD),
            ("attn_output", N_EMBD, N_EMBD),
            ("ffn_up", N_FF, N_EMBD),
            ("ffn_down", N_EMBD, N_FF),
        ):
            w.matrix(f"{blk}.{part}.weight", n_out, n_in)
            w.vector(f"{blk}.{part}.bias", n_out, 0.0)
    for norm in norms:
        w.vector(f"{norm}.weight", N_EMBD)
        w.vector(f"{norm}.bias", N_EMBD, 0.0)
    if ranks:
        for name, size in (("cls", N_EMBD), ("cls.output", 1)):
            w.matrix(f"{name}.weight", size, N_EMBD)
            w.vector(f"{name}.bias", size, 0.25)
    w.finish()


def write_guesser(path: Path) -> None:
    """``glm4moe`` with a layer that predicts a token further, and a vocabulary of bytes.

    What follows a token depends on that token first, by its large embedding, so that many guesses are right.
    """
    n_expert, scale = 4, np.float32(24)
    w = _Writer(path, "glm4moe", layers=N_LAYER + 1)
    w.add_nextn_predict_layers(1)
    w.add_head_count_kv(N_HEAD_KV)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(HEAD_DIM)
    w.add_rope_freq_base(10000.0)
    w.add_expert_count(n_expert)
    w.add_expert_used_count(2)
    w.add_expert_shared_count(1)
    w.add_expert_feed_forward_length(N_FF)
    w.add_expert_weights_scale(1.0)
    w.add_expert_weights_norm(True)
    w.add_leading_dense_block_count(1)
    n_vocab = w.byte_vocabulary()
    w.matrix("token_embd.weight", n_vocab, N_EMBD, scale=scale)
    w.vector("output_norm.weight", N_EMBD)
    w.matrix("output.weight", n_vocab, N_EMBD)
    for layer in range(N_LAYER + 1):
        blk = f"blk.{layer}"
        w.vector(f"{blk}.attn_norm.weight", N_EMBD)
        w.vector(f"{blk}.post_attention_norm.weight", N_EMBD)
        for part, heads in (("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV)):
            w.matrix(f"{blk}.attn_{part}.weight", heads * HEAD_DIM, N_EMBD)
            w.vector(f"{blk}.attn_{part}.bias", heads * HEAD_DIM, 0.0)
        w.matrix(f"{blk}.attn_output.weight", N_EMBD, N_HEAD * HEAD_DIM)
        kinds = [("", ())] if layer == 0 else [("_exps", (n_expert,)), ("_shexp", ())]
        for kind, several in kinds:
            w.matrix(f"{blk}.ffn_gate{kind}.weight", *several, N_FF, N_EMBD)
            w.matrix(f"{blk}.ffn_up{kind}.weight", *several, N_FF, N_EMBD)
            w.matrix(f"{blk}.ffn_down{kind}.weight", *several, N_EMBD, N_FF)
        if layer:
            w.matrix(f"{blk}.ffn_gate_inp.weight", n_expert, N_EMBD)
            w.vector(f"{blk}.exp_probs_b.bias", n_expert, 0.0)
    for part in ("enorm", "hnorm", "shared_head_norm"):
        w.vector(f"{blk}.nextn.{part}.weight", N_EMBD)
    # Of the token and of what was made of the one before it, the token.
    w.add_tensor(f"{blk}.nextn.eh_proj.weight", np.eye(N_EMBD, 2 * N_EMBD, dtype=np.float32) * scale)
    w.finish()
