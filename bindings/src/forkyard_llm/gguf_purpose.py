"""Say what a GGUF file is for: models that write text, and everything else that comes as GGUF, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .gguf_reader import GgufSummary

__all__ = [
    "DRAFT",
    "EMBEDDINGS",
    "ENCODERS",
    "FOR_EMBEDDINGS",
    "LACKS",
    "PROJECTOR",
    "RANKING",
    "TEXT",
    "WITH_A_TOKENIZER",
    "purpose_of",
]

TEXT: Final = "text"
EMBEDDINGS: Final = "embeddings"
RANKING: Final = "ranking"
DRAFT: Final = "draft"
PROJECTOR: Final = "projector"

LACKS: Final[Mapping[str, str]] = {
    TEXT: "this is a whole model, which writes text",
    EMBEDDINGS: (
        "this model makes embeddings, not text; open it with embedding=True, or take `forkyard-llm embed`, or"
        " `forkyard-llm serve MODEL -- --embeddings`"
    ),
    RANKING: (
        "this model ranks texts and writes none (a reranker); open it with embedding=True, or take `forkyard-llm rank`,"
        " or `forkyard-llm serve MODEL -- --reranking`"
    ),
    "translation": (
        "this is an encoder-decoder model: it reads one text and writes another, and cannot continue a prompt; take a"
        " decoder-only model"
    ),
    "diffusion": (
        "this is a diffusion model: it fills in all tokens at once and cannot continue a prompt; llama.cpp's own"
        " llama-diffusion-cli runs it"
    ),
    "speech": "this model makes sound, not text; llama.cpp's own tools run it together with the model it belongs to",
    DRAFT: (
        "this is a draft model, which only guesses for another one; give that model, and this file to its server:"
        " `forkyard-llm serve MODEL -- -md THIS`"
    ),
    PROJECTOR: (
        "this is the projector of a model that sees or hears (mmproj), not the model; give the model, and this file"
        " with it: Llama(MODEL, mmproj=THIS), `forkyard-llm serve MODEL -- --mmproj THIS`"
    ),
    "adapter": (
        "this is a LoRA adapter, not a model; give the model it was made for, and this file to its server:"
        " `forkyard-llm serve MODEL -- --lora THIS`"
    ),
    "control-vector": (
        "this is a control vector, not a model; give the model it was made for, and this file to its server:"
        " `forkyard-llm serve MODEL -- --control-vector THIS`"
    ),
    "imatrix": "this is an importance matrix, which llama-quantize reads, not a model",
    "vocabulary": "this file holds a vocabulary and no weights: it can only tokenize (vocab_only=True); give the model",
}
"""Every purpose, and what to say where a file of another one is needed."""

FOR_EMBEDDINGS: Final = frozenset({TEXT, EMBEDDINGS, RANKING})
"""Of these purposes a file can make embeddings."""

WITH_A_TOKENIZER: Final = frozenset({TEXT, EMBEDDINGS, RANKING, "translation", "diffusion", "vocabulary"})
"""Of these purposes a file can tokenize."""

# Architectures, as the engines' tables at their pins have them, that do not continue a text.
_ARCHITECTURES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "bert",
            "eurobert",
            "gemma-embedding",
            "jina-bert-v2",
            "jina-bert-v3",
            "llama-embed",
            "modern-bert",
            "neo-bert",
            "nomic-bert",
            "nomic-bert-moe",
            "t5encoder",
        ),
        EMBEDDINGS,
    ),
    "t5": "translation",
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), "diffusion"),
    **dict.fromkeys(("wavtokenizer-dec", "pockettts", "qwen3tts"), "speech"),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), DRAFT),
    "clip": PROJECTOR,
    "controlvector": "control-vector",
    "imatrix": "imatrix",
}
ENCODERS: Final = frozenset(name for name, purpose in _ARCHITECTURES.items() if purpose == EMBEDDINGS)
"""Architectures whose tokens see those behind them, too."""
_TYPES: Final[Mapping[str, str]] = {
    "adapter": "adapter",
    "control-vector": "control-vector",
    "imatrix": "imatrix",
    "mmproj": PROJECTOR,
    "clip-vision": PROJECTOR,
    "vocab": "vocabulary",
}
_POOLING_RANK: Final = 4
_POOLINGS: Final = (1, 2, 3)


def purpose_of(summary: GgufSummary, *, tensors: int) -> str:
    """What the file is for: a key of `LACKS`. `tensors`: how many there are in all parts of the model."""

    def text_of(key: str) -> str:
        value = summary.values.get(key)
        return value.data if value is not None and isinstance(value.data, str) else ""

    def of(key: str) -> object:
        value = summary.values.get(f"{summary.architecture}.{key}")
        return None if value is None else value.data

    for purpose in (_TYPES.get(text_of("general.type")), _ARCHITECTURES.get(summary.architecture or "")):
        if purpose is not None:
            return purpose
    if text_of("adapter.type"):
        return "adapter"
    if summary.architecture is None and any(key.startswith("imatrix.") for key in summary.values):
        return "imatrix"
    # The converters write a pooling only for models that were made for it.
    if of("pooling_type") == _POOLING_RANK or f"{summary.architecture}.classifier.output_labels" in summary.values:
        return RANKING
    if of("pooling_type") in _POOLINGS or of("attention.causal") is False:
        return EMBEDDINGS
    if not tensors and any(key.startswith("tokenizer.") for key in summary.values):
        return "vocabulary"
    return TEXT
