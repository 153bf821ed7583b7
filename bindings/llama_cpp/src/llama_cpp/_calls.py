"""Calls of functions: what a request names, and answers in OpenAI's new and old form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["arguments_format", "as_call", "named_function", "with_function_calls"]


def with_function_calls(answer: Any) -> Any:
    """An answer, or its chunks, with the first tool call also in OpenAI's old form, ``function_call``."""
    if isinstance(answer, Mapping):
        return _with_function_call(answer, "message")
    return (_with_function_call(chunk, "delta") for chunk in answer)


def _with_function_call(answer: Mapping[str, Any], word: str) -> dict[str, Any]:
    choices = []
    for choice in answer["choices"]:
        calls = [call for call in choice[word].get("tool_calls") or () if call.get("index", 0) == 0]
        if calls:
            choice = {**choice, word: {**choice[word], "function_call": calls[0]["function"]}}
        if choice["finish_reason"] == "tool_calls":
            choice = {**choice, "finish_reason": "function_call"}
        choices.append(choice)
    return {**answer, "choices": choices}


def named_function(asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The function that ``tool_choice``, or ``function_call``, of a request names."""
    if asked.get("functions") is not None:
        choice, functions = asked.get("function_call"), asked["functions"]
    else:
        choice = asked.get("tool_choice")
        choice = choice.get("function") if isinstance(choice, Mapping) else None
        functions = [tool["function"] for tool in asked.get("tools") or () if "function" in tool]
    if not isinstance(choice, Mapping):
        return None
    return next((one for one in functions if one.get("name") == choice.get("name")), None)


def arguments_format(function: Mapping[str, Any]) -> dict[str, Any]:
    """The response_format of a function's arguments."""
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def as_call(answer: Any, name: str) -> Any:
    """An answer, or its chunks, whose text is the arguments of a call of ``name``, with that call."""
    if isinstance(answer, Mapping):
        return _as_call(answer, "message", name, begins=True)
    return _called_chunks(answer, name)


def _called_chunks(chunks: Iterator[Mapping[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    begins = True
    for chunk in chunks:
        made = _as_call(chunk, "delta", name, begins=begins)
        begins = begins and not any("tool_calls" in choice["delta"] for choice in made["choices"])
        yield made


def _as_call(answer: Mapping[str, Any], word: str, name: str, *, begins: bool) -> dict[str, Any]:
    choices = []
    for choice in answer["choices"]:
        said = dict(choice[word])
        text = said.pop("content", None)
        if text is not None:
            call: dict[str, Any] = {"index": 0} if word == "delta" else {}
            if begins:
                call |= {"id": f"call_{answer['id']}", "type": "function"}
            call["function"] = {"name": name, "arguments": text} if begins else {"arguments": text}
            said["tool_calls"] = [call]
        if word == "message":
            said["content"] = None
        reason = "tool_calls" if choice["finish_reason"] == "stop" else choice["finish_reason"]
        choices.append({**choice, word: said, "finish_reason": reason})
    return {**answer, "choices": choices}
