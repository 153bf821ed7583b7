"""The texts and tokens that upstream tests its tokenizers with, through the bindings of both engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import Llama

pytestmark = pytest.mark.usefixtures("built_payloads")

BORDER = b"\n__ggml_vocab_test__\n"
FEWEST = {"llama.cpp": 15, "ik_llama.cpp": 13}
"""Vocabularies with vectors that the pins have."""


def vectors(vocabulary: Path) -> list[tuple[bytes, list[int]]]:
    """Texts and their tokens."""
    texts = Path(f"{vocabulary}.inp").read_bytes().split(BORDER)
    tokens = [[int(word) for word in line.split()] for line in Path(f"{vocabulary}.out").read_text().splitlines()]
    # Upstream takes no empty text at the end.
    if len(texts) > len(tokens) and not texts[-1]:
        del texts[-1]
    return list(zip(texts, tokens, strict=True))


def with_vectors(tree: Path) -> dict[str, Path]:
    """Vocabularies by name."""
    files = [Path(str(path).removesuffix(".inp")) for path in sorted(tree.glob("models/ggml-vocab-*.gguf.inp"))]
    return {path.stem.removeprefix("ggml-vocab-"): path for path in files}


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_texts_have_the_tokens_that_upstream_says(engine: str, sources: Callable[[str], Path]):
    found = with_vectors(sources(engine))
    assert len(found) >= FEWEST[engine], sorted(found)
    wrong, texts = {}, 0
    for name, vocabulary in found.items():
        known = vectors(vocabulary)
        with Llama(vocabulary, engine=engine, vocab_only=True) as llm:
            missed = [text for text, tokens in known if llm.tokenize(text, add_bos=False) != tokens]
        texts += len(known)
        if missed:
            wrong[name] = missed
    assert not wrong
    print(f"{engine}: {texts} texts of {len(found)} vocabularies")
