"""Tokenizers: the model's own, and one of the package transformers instead."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llama import Llama

__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]


class BaseLlamaTokenizer(abc.ABC):
    """Text to tokens and back."""

    @abc.abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokens of ``text`` (UTF-8)."""

    @abc.abstractmethod
    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Text of ``tokens``, which follow ``prev_tokens``."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of a model."""

    def __init__(self, llama: Llama) -> None:
        self._model = llama._llm

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokens of ``text`` (UTF-8)."""
        return self._model.tokenize(text, add_bos=add_bos, special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Text of ``tokens``; those before them change nothing.

        Behind the token that begins a text there is no space, which some tokenizers put in front of every text.
        """
        text = b"".join(self._model.pieces(tokens, special=special))
        begins = len(tokens) > 0 and tokens[0] == self._model.token_bos()
        return text[1:] if begins and text.startswith(b" ") else text

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokens of ``text``."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> LlamaTokenizer:
        """The tokenizer of a model file, whose weights are not loaded."""
        from .llama import Llama

        return cls(Llama(path, vocab_only=True, verbose=False))


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the package transformers."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokens of ``text`` (UTF-8), with the tokenizer's own around it if ``special``."""
        return list(self.hf_tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=special))

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """What ``tokens`` add to the text of ``prev_tokens``."""
        before = list(prev_tokens or ())
        known, whole = (
            self.hf_tokenizer.decode(some, skip_special_tokens=not special).encode("utf-8", "ignore") if some else b""
            for some in (before, [*before, *tokens])
        )
        return bytes(whole[len(known) :])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> LlamaHFTokenizer:
        """A tokenizer by its name or path. Raises ImportError without the package transformers."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path))
