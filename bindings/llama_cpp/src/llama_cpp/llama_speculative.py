"""Guesses of the next tokens: forkyard_llm's, under llama-cpp-python's names."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt
from forkyard_llm.engines.drafts import PromptLookup

__all__ = ["LlamaDraftModel", "LlamaPromptLookupDecoding"]


class LlamaDraftModel(abc.ABC):
    """What guesses tokens."""

    @abc.abstractmethod
    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """Tokens that may follow ``input_ids``."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Guesses that what followed the last few tokens before follows them again; ``Llama`` does it by itself.

    Args:
        max_ngram_size: how many of the last tokens are looked for.
        num_pred_tokens: how many are guessed at a time.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    @staticmethod
    def find_candidate_pred_tokens(
        input_ids: npt.NDArray[np.intc], max_ngram_size: int, num_pred_tokens: int
    ) -> npt.NDArray[np.intc]:
        """What followed the last tokens of ``input_ids`` before; nothing if they are new."""
        guesses = PromptLookup(max_ngram_size, 1).propose(input_ids.tolist(), num_pred_tokens)
        return np.array(guesses, dtype=np.intc)

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """See :class:`LlamaDraftModel`."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)
