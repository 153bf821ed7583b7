from __future__ import annotations

import inspect
from typing import Any, ForwardRef

import pytest
from forkyard_llm import Llama
from forkyard_llm.arguments import ChatOptions, CompletionOptions
from forkyard_llm.sampling import SamplingOptions


def named(options: Any) -> dict[str, object]:
    return {
        name: kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind
        for name, kind in options.__annotations__.items()
    }


@pytest.mark.parametrize(
    ("method", "options"),
    [(Llama.create_completion, CompletionOptions), (Llama.create_chat_completion, ChatOptions)],
)
def test_the_types_of_arguments_are_those_of_the_method(method: Any, options: Any):
    parameters = inspect.signature(method).parameters.values()
    own = {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "stream"}
    assert own == {name: kind for name, kind in named(options).items() if name not in named(SamplingOptions)}
    assert named(SamplingOptions).items() <= named(options).items()
