"""Chat: OpenAI-shaped requests to what the engine's own templates take, and its parsed answers back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .checks import flag, shown
from .completion import Completion, Delta, Shown
from .engines.common import AnswerParser
from .engines.request import Token
from .errors import UnsupportedOption, UsageError
from .media import MEDIA_PARTS, Media
from .text import to_engine

__all__ = ["answer_body", "answer_chunks", "chat_logprobs", "chat_request", "schema_of"]

REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")
_ROLES_WITHOUT_CONTENT = ("assistant",)


def chat_request(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    parallel_tool_calls: bool | None = None,
    response_format: Mapping[str, Any] | None = None,
    grammar: str = "",
    reasoning_format: str = "auto",
    enable_thinking: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
    prefill: bool | None = None,
    stream: bool = False,
    media: Media | None = None,
) -> dict[str, Any]:
    """A conversation as the engines' templates take it.

    Args:
        media: takes its images and sounds; None for a model that has no projector.
        prefill: whether the last message is the beginning of the answer; None if it is the assistant's.

    Raises:
        UsageError: something in it makes no sense.
        UnsupportedOption: content that the model does not take.
    """
    read = _messages(messages, media or Media(None))
    given, choice = _tools(tools, tool_choice)
    schema = schema_of(response_format)
    if grammar and (schema is not None or (given and choice != "none")):
        msg = "a grammar goes neither with tools nor with a response_format: both make one of their own"
        raise UsageError(msg)
    if reasoning_format not in REASONING_FORMATS:
        msg = f"reasoning_format must be one of {', '.join(REASONING_FORMATS)}; got {shown(reasoning_format)}"
        raise UsageError(msg)
    last = read[-1].get("role") == "assistant" and not read[-1].get("tool_calls")
    request: dict[str, Any] = {
        "messages": read,
        "tool_choice": choice,
        "reasoning_format": reasoning_format,
        "enable_thinking": flag("enable_thinking", enable_thinking),
        "prefill": last if prefill is None else flag("prefill", prefill),
        "stream": stream,
        "now": int(time.time()),
    }
    if given:
        request["tools"] = given
        if parallel_tool_calls is not None:
            request["parallel_tool_calls"] = flag("parallel_tool_calls", parallel_tool_calls)
    if schema is not None:
        request["json_schema"] = schema
    if grammar:
        request["grammar"] = grammar
    if template_kwargs:
        request["template_kwargs"] = dict(template_kwargs)
    return request


def _messages(messages: Sequence[Mapping[str, Any]], media: Media) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        msg = f"messages must be a list of messages, each with a role and a content; got {type(messages).__name__}"
        raise UsageError(msg)
    if not messages:
        msg = "create_chat_completion needs at least one message"
        raise UsageError(msg)
    return [_message(index, message, media) for index, message in enumerate(messages)]


def _message(index: int, message: Mapping[str, Any], media: Media) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        msg = f"message {index} must have a role and a content; got {type(message).__name__}"
        raise UsageError(msg)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        msg = f"message {index} has no role"
        raise UsageError(msg)
    to_engine(role, f"the role of message {index}", nul=False)
    read = dict(message)
    if isinstance(content, str):
        to_engine(content, f"message {index}", nul=False)
    elif isinstance(content, Sequence):
        read["content"] = [_part(index, part, media) for part in content]
    elif content is None and role in _ROLES_WITHOUT_CONTENT and message.get("tool_calls"):
        read["content"] = None
    else:
        msg = f"message {index} has no content (a text, or a list of parts)"
        raise UsageError(msg)
    return read


def _part(index: int, part: object, media: Media) -> dict[str, str]:
    if isinstance(part, Mapping) and part.get("type") in MEDIA_PARTS:
        return media.part(f"message {index}", part)
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        there = " and ".join(MEDIA_PARTS)
        msg = f"message {index} has a part of type {kind!r}; parts are texts (type 'text', with a text), {there}"
        raise UnsupportedOption(msg)
    to_engine(part["text"], f"message {index}", nul=False)
    return {"type": "text", "text": str(part["text"])}


def _tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]], str]:
    """The tools that may be called, and one of ``auto``, ``required`` and ``none``."""
    given = [_tool(index, tool) for index, tool in enumerate(tools or ())]
    if choice is None or (isinstance(choice, str) and choice in ("auto", "required", "none")):
        return given, str(choice or "auto")
    name = None
    if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        name = choice["function"].get("name")
    chosen = [tool for tool in given if tool["function"]["name"] == name]
    if not chosen:
        msg = (
            "tool_choice must be 'auto', 'required', 'none' or {'type': 'function', 'function': {'name': one of the"
            f" tools}}}}; got {shown(choice)}"
        )
        raise UsageError(msg)
    return chosen, "required"


def _tool(index: int, tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        form = "{'type': 'function', 'function': {'name': ..., 'parameters': ...}}"
        msg = f"tool {index} must be {form}; got {shown(tool)}"
        raise UsageError(msg)
    return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, **function}}


def schema_of(response_format: Mapping[str, Any] | None) -> Any:
    """The JSON schema that OpenAI's ``response_format`` asks for; None for text.

    Raises:
        UsageError: it is none of OpenAI's forms.
    """
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    schema: Any = None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema") or {"type": "object"}
    elif kind == "json_schema":
        wrapper = response_format.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
    if not isinstance(schema, (Mapping, bool)):
        msg = (
            "response_format must be {'type': 'text'}, {'type': 'json_object'} or {'type': 'json_schema',"
            f" 'json_schema': {{'schema': ...}}}}; got {shown(response_format)}"
        )
        raise UsageError(msg)
    return schema


def chat_logprobs(spell: Shown, tokens: Sequence[Token]) -> dict[str, Any] | None:
    """OpenAI's ``logprobs`` of a chat completion; None if no token has any."""

    def one(token: int, value: float) -> dict[str, Any]:
        raw = spell(token)
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": value}

    known = [token.logprobs for token in tokens if token.logprobs]
    if not known:
        return None
    content = [{**one(*values[0]), "top_logprobs": [one(*other) for other in values[1:]]} for values in known]
    return {"content": content, "refusal": None}


def answer_body(
    request: Completion,
    message: Mapping[str, Any],
    finish_reason: str,
    usage: Mapping[str, int],
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The dictionary of a whole chat completion."""
    calls = message.get("tool_calls")
    told = dict(message)
    if calls and not told.get("content"):
        told["content"] = None
    return {
        "id": request.id,
        "object": "chat.completion",
        "created": request.created,
        "model": request.model,
        "choices": [
            {
                "index": 0,
                "message": told,
                "logprobs": logprobs,
                "finish_reason": "tool_calls" if calls and finish_reason == "stop" else finish_reason,
            }
        ],
        "usage": dict(usage),
    }


def answer_chunks(
    request: Completion, deltas: Iterator[Delta], read: Callable[[], AnswerParser], spell: Shown
) -> Iterator[dict[str, Any]]:
    """A streamed chat completion: the role first, then what each text adds, then the finish reason.

    ``read`` makes the parser of the answer.
    """

    def chunk(delta: Mapping[str, Any], finish_reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        return {
            "id": request.id,
            "object": "chat.completion.chunk",
            "created": request.created,
            "model": request.model,
            "choices": [{"index": 0, "delta": dict(delta), "logprobs": logprobs, "finish_reason": finish_reason}],
        }

    calls = False
    parser = read()
    try:
        yield chunk({"role": "assistant"}, None)
        for delta in deltas:
            parsed = parser.add(delta.text, delta.finish_reason)
            logprobs = chat_logprobs(spell, delta.tokens)
            for added in parsed["deltas"]:
                calls = calls or "tool_calls" in added
                yield chunk(added, None, logprobs)
                logprobs = None
            if logprobs is not None:
                yield chunk({}, None, logprobs)
            if delta.finish_reason:
                reason = "tool_calls" if calls and delta.finish_reason == "stop" else delta.finish_reason
                yield chunk({}, reason)
    finally:
        parser.close()
