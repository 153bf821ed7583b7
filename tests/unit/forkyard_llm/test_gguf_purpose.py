"""Files that are GGUF and cannot continue a text: refused by what they say they are, with what to do instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from forkyard_llm.errors import ModelError
from forkyard_llm.gguf_check import EMBEDDINGS, FOR_EMBEDDINGS, TEXT, WITH_A_TOKENIZER, check
from forkyard_llm.gguf_purpose import ENCODERS

from .gguf_bytes import BOOL, U32, gguf, scalar, string, strings, tensor, write

MAKE_EMBEDDINGS = (
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "eurobert",
    "gemma-embedding",
    "llama-embed",
    "t5encoder",
)


def model(folder: Path, architecture: str | None, *values: bytes, tensors: int = 1) -> Path:
    named = [string(b"general.architecture", architecture.encode())] if architecture is not None else []
    infos = [tensor(b"t%d" % index, [8], 0, 32 * index) for index in range(tensors)]
    return write(folder, gguf([*named, *values], infos, b"\0" * 32 * tensors))


def said(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check(path, purposes={TEXT})
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("architecture", MAKE_EMBEDDINGS)
def test_encoders_make_embeddings(tmp_path: Path, architecture: str) -> None:
    path = model(tmp_path, architecture)
    assert "this model makes embeddings, not text; open it with embedding=True" in said(path)
    check(path, purposes={EMBEDDINGS})
    check(path, purposes=FOR_EMBEDDINGS)
    assert architecture in ENCODERS
    check(path)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("qwen3", [scalar("qwen3.pooling_type", U32, 3)], "makes embeddings, not text"),
        ("llama", [scalar("llama.attention.causal", BOOL, False)], "makes embeddings, not text"),
        ("qwen3", [scalar("qwen3.pooling_type", U32, 4)], "ranks texts and writes none"),
        ("qwen3", [strings(b"qwen3.classifier.output_labels", [b"yes", b"no"])], "ranks texts and writes none"),
        ("t5", [], "an encoder-decoder model"),
        ("dream", [], "a diffusion model"),
        ("llada", [], "a diffusion model"),
        ("llada-moe", [], "a diffusion model"),
        ("rnd1", [], "a diffusion model"),
        ("wavtokenizer-dec", [], "makes sound, not text"),
        ("eagle3", [], "a draft model"),
        ("clip", [], "the projector of a model that sees or hears"),
        ("qwen2vl", [string(b"general.type", b"mmproj")], "-- --mmproj THIS"),
        ("llama", [string(b"general.type", b"adapter")], "-- --lora THIS"),
        ("llama", [string(b"adapter.type", b"lora")], "a LoRA adapter, not a model"),
        ("controlvector", [], "-- --control-vector THIS"),
        ("llama", [string(b"general.type", b"imatrix")], "an importance matrix"),
        (None, [scalar("imatrix.chunk_count", U32, 3)], "an importance matrix"),
    ],
)
def test_what_does_not_continue_a_text(
    tmp_path: Path, architecture: str | None, values: Sequence[bytes], message: str
) -> None:
    assert message in said(model(tmp_path, architecture, *values))


def test_a_vocabulary_can_only_tokenize(tmp_path: Path) -> None:
    path = model(tmp_path, "llama", strings(b"tokenizer.ggml.tokens", [b"a"]), tensors=0)
    assert "a vocabulary and no weights" in said(path)
    check(path, purposes=WITH_A_TOKENIZER)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [string(b"general.type", b"model")],
        [scalar("llama.pooling_type", U32, 0)],
        [scalar("llama.attention.causal", BOOL, True)],
        [strings(b"tokenizer.ggml.tokens", [b"a"])],
    ],
)
def test_models_that_write_text(tmp_path: Path, values: Sequence[bytes]) -> None:
    check(model(tmp_path, "llama", *values), purposes={TEXT})
