"""Chat: messages to a prompt by the engine's own template function, and the OpenAI-shaped dictionaries back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .completion import Completion, Delta
from .engines.session import ChatMessage, Session
from .errors import UnsupportedOption, UsageError
from .text import to_engine

__all__ = ["chat_body", "chat_chunks", "chat_prompt", "read_messages"]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """OpenAI-shaped messages as the engines take them: role and text.

    Raises:
        UsageError: a message without role or content, or no message at all.
        UnsupportedOption: content other than text (images, audio, tool calls).
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        msg = f"messages must be a list of messages, each with a role and a content; got {type(messages).__name__}"
        raise UsageError(msg)
    if not messages:
        msg = "create_chat_completion needs at least one message"
        raise UsageError(msg)
    return [_read_message(index, message) for index, message in enumerate(messages)]


def _read_message(index: int, message: Mapping[str, Any]) -> ChatMessage:
    if not isinstance(message, Mapping):
        msg = f"message {index} must have a role and a content; got {type(message).__name__}"
        raise UsageError(msg)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        msg = f"message {index} has no role"
        raise UsageError(msg)
    if message.get("tool_calls") or role == "tool":
        msg = f"message {index} is about tool calls, which the C API's templates cannot express; use forkyard-llm serve"
        raise UnsupportedOption(msg)
    if isinstance(content, str):
        text = content
    elif isinstance(content, Sequence):
        text = "".join(_read_part(index, part) for part in content)
    else:
        msg = f"message {index} has no content (a text, or a list of text parts)"
        raise UsageError(msg)
    to_engine(role + text, f"message {index}", nul=False)
    return ChatMessage(role, text)


def _read_part(index: int, part: object) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        msg = f"message {index} has a part of type {kind!r}; only text parts are supported here"
        raise UnsupportedOption(msg)
    return str(part["text"])


def chat_prompt(session: Session, messages: Sequence[ChatMessage], model: str) -> str:
    """The prompt that the model's own template makes of ``messages``; ``model`` is its name for the error.

    Raises:
        UnsupportedOption: it has no template the engine's C API knows.
    """
    template = session.chat_template()
    prompt = None if template is None else session.apply_chat_template(template, messages)
    if prompt is None:
        what = "has no chat template" if template is None else "has a chat template the engine's C API does not know"
        msg = f"{model} {what}; write the prompt yourself and use create_completion, or forkyard-llm serve"
        raise UnsupportedOption(msg)
    return prompt


def chat_body(request: Completion, text: str, finish_reason: str, usage: Mapping[str, int]) -> dict[str, Any]:
    """The dictionary of a whole chat completion."""
    message = {"role": "assistant", "content": text}
    return {
        "id": request.id,
        "object": "chat.completion",
        "created": request.created,
        "model": request.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": dict(usage),
    }


def chat_chunks(request: Completion, deltas: Iterator[Delta]) -> Iterator[dict[str, Any]]:
    """A streamed chat completion: the role first, then the text, then an empty delta with the finish reason."""

    def chunk(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        return {
            "id": request.id,
            "object": "chat.completion.chunk",
            "created": request.created,
            "model": request.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }

    yield chunk({"role": "assistant"}, None)
    for delta in deltas:
        if delta.text:
            yield chunk({"content": delta.text}, None)
        if delta.finish_reason:
            yield chunk({}, delta.finish_reason)
