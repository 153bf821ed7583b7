"""Models of an architecture newer than the file check's table: the engine's own answers refuse them after loading."""

from __future__ import annotations

from typing import Any

import pytest
from forkyard_llm import Llama
from forkyard_llm.errors import ModelError, UnsupportedOption, UsageError

from .conftest import MakePayload
from .test_llama_numa import make_engine


@pytest.mark.parametrize(
    ("function", "answer"),
    [("llama_model_has_encoder", True), ("llama_model_has_decoder", False), ("llama_model_is_diffusion", True)],
)
def test_a_model_that_does_not_continue_a_text(
    make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch, function: str, answer: bool
) -> None:
    engine = make_engine(make_payload, monkeypatch, patched=False)
    setattr(engine.api, function, lambda _: answer)
    with pytest.raises(ModelError, match=r"m\.gguf: llama\.cpp says that this model does not continue a text"):
        Llama("m.gguf")
    assert engine.api.calls[-2:] == ["model", "free model"]
    Llama("m.gguf", vocab_only=True).close()
    setattr(engine.api, function, lambda _: not answer)
    Llama("m.gguf").close()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"draft_tokens": 0}, "draft_tokens"),
        ({"max_waiting": -1}, "max_waiting"),
        ({"lora_scale": float("nan")}, "lora_scale"),
        ({"draft_model": "ngram", "n_parallel": 2}, "draft_model and n_parallel"),
        ({"draft_model": "mtp", "embedding": True}, "draft_model and embedding"),
        ({"draft_model": "mtp", "vocab_only": True}, "draft_model and vocab_only"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], name: str
) -> None:
    engine = make_engine(make_payload, monkeypatch, patched=False)
    with pytest.raises((UsageError, UnsupportedOption), match=name):
        Llama("m.gguf", **arguments)
    assert "model" not in engine.api.calls
