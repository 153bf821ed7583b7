"""Functions that look at tokens and logits while a text is made: numpy arrays there, ctypes arrays in forkyard_llm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "hooks",
]

LogitsProcessor = Callable[[npt.NDArray[np.intc], npt.NDArray[np.single]], npt.NDArray[np.single]]
StoppingCriteria = Callable[[npt.NDArray[np.intc], npt.NDArray[np.single]], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Functions that are each given the logits of the one before."""

    def __call__(self, input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        """The logits that all of them make."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Functions of which one is enough to end a text."""

    def __call__(self, input_ids: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> bool:
        """Whether one of them ends it; all are asked."""
        answers = [criterion(input_ids, logits) for criterion in self]
        return any(answers)


class MinTokensLogitsProcessor:
    """Forbids the end of a text before it has so many tokens."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        """The logits, without the end where it is too early."""
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


def hooks(
    processor: LogitsProcessor | Sequence[LogitsProcessor] | None,
    criterion: StoppingCriteria | Sequence[StoppingCriteria] | None,
) -> tuple[list[Callable[[Sequence[int], Any], None]], Callable[[Sequence[int]], bool] | None]:
    """Both as forkyard_llm takes them: functions that change logits, and one that ends a text."""
    processors: list[Callable[[Sequence[int], Any], None]] = []
    if processor:
        processors.append(_changing(processor if callable(processor) else LogitsProcessorList(processor)))
    if not criterion:
        return processors, None
    asked = criterion if callable(criterion) else StoppingCriteriaList(criterion)
    last: list[npt.NDArray[np.single]] = []

    def keep(tokens: Sequence[int], row: Any) -> None:
        last[:] = [np.array(row, dtype=np.single)]

    def ends(tokens: Sequence[int]) -> bool:
        return bool(asked(np.array(tokens, dtype=np.intc), last[0]))

    return [*processors, keep], ends


def _changing(process: LogitsProcessor) -> Callable[[Sequence[int], Any], None]:
    def changed(tokens: Sequence[int], row: Any) -> None:
        logits = np.ctypeslib.as_array(row)
        made = process(np.array(tokens, dtype=np.intc), logits)
        if made is not logits:
            logits[:] = made

    return changed
