"""The ways to guess tokens ahead (speculative decoding) that an engine's llama-server has, and how to ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..gguf_reader import GgufSummary
from .engine import SERVER, Engine

__all__ = ["NONE", "Guess", "guesses"]

NONE = "none"
_NGRAMS = ("ngram-simple", "ngram-map-k", "ngram-mod", "ngram-cache")
_LENGTH = ("--spec-draft-n-max", "--draft-max")
"""The option for the number of tokens that are guessed at once; the engines differ."""


@dataclass(frozen=True)
class Guess:
    """One way."""

    name: str
    words: tuple[str, ...] = ()
    """Arguments of llama-server."""
    python: Mapping[str, object] = field(default_factory=dict)
    """Keywords of `Llama` that come nearest to it."""


def guesses(
    engine: Engine,
    model: GgufSummary,
    draft: Path | None,
    label: str,
    remarks: list[str],
    lengths: Sequence[int] = (),
) -> list[Guess]:
    """Nothing, n-grams, a draft model, and MTP where the model has it.

    Args:
        draft: the draft model.
        label: the engine's name in remarks.
        remarks: get what it has not.
        lengths: how many tokens a model or MTP guesses at once (default: the engine's own number).
    """
    found = [Guess(NONE)]
    if engine.reads("--spec-type", SERVER):
        found += [Guess(kind, ("--spec-type", kind), {"draft_model": "ngram"}) for kind in _NGRAMS]
    else:
        remarks.append(f"{label} cannot guess from the text itself (--spec-type)")
    drafting = [] if draft is None else [Guess("draft model", ("-md", str(draft)), {"draft_model": str(draft)})]
    layers = model.values.get(f"{model.architecture}.nextn_predict_layers")
    if layers is not None and any(layers.numbers):
        words = ("--spec-type", "draft-mtp") if engine.name == "llama.cpp" else ("-mtp",)
        drafting.append(Guess("mtp", words, {"draft_model": "mtp"}))
    # llama.cpp still names the other one in its help, as removed.
    option = next((one for one in _LENGTH if engine.reads(one, SERVER)), None)
    for one in drafting:
        found += [
            Guess(f"{one.name}, {n} tokens", (*one.words, option, str(n)), {**one.python, "draft_tokens": n})
            for n in lengths
            if option
        ]
        if not lengths or not option:
            found.append(one)
    return found
