"""The keyword arguments of requests as types, for editors and checkers; ``stream`` says what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .sampling import SamplingOptions

if TYPE_CHECKING:
    from .engines.adapters import ControlVector, Lora
    from .engines.request import LogitsProcessor, Progress
    from .media import FetchUrl

__all__ = ["ChatOptions", "CompletionOptions"]


class _RequestOptions(SamplingOptions, total=False):
    max_tokens: int | None
    stop: str | Sequence[str] | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    stopping_criteria: Callable[[Sequence[int]], bool] | None
    progress: Progress | None
    adapters: Mapping[Lora | ControlVector, float] | None


class CompletionOptions(_RequestOptions, total=False):
    """Those of :meth:`forkyard_llm.Llama.create_completion`."""

    echo: bool
    suffix: str | None
    logprobs: int | None
    json_schema: Mapping[str, Any] | str | None


class ChatOptions(_RequestOptions, total=False):
    """Those of :meth:`forkyard_llm.Llama.create_chat_completion`."""

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    response_format: Mapping[str, Any] | None
    logprobs: bool
    top_logprobs: int | None
    reasoning_format: str
    enable_thinking: bool
    chat_template: str
    chat_template_kwargs: Mapping[str, Any] | None
    prefill: bool | None
    fetch_url: FetchUrl | None
