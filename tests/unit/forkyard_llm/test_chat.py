from __future__ import annotations

import pytest
from forkyard_llm.chat import chat_body, chat_chunks, read_messages
from forkyard_llm.completion import Completion, Delta
from forkyard_llm.engines.session import ChatMessage
from forkyard_llm.errors import UnsupportedOption, UsageError


def test_text_and_text_parts_are_read():
    assert read_messages(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]
    ) == [ChatMessage("system", "be brief"), ChatMessage("user", "ab")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([{"content": "x"}], "message 0 has no role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "message 1 has no content"),
        ([{"role": "user", "content": "a\0b"}], "NUL"),
    ],
)
def test_messages_that_make_no_sense_are_refused(messages, message: str):
    with pytest.raises(UsageError, match=message):
        read_messages(messages)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": ["bare"]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "", "tool_calls": [{}]},
    ],
)
def test_what_is_not_text_is_refused(message):
    with pytest.raises(UnsupportedOption):
        read_messages([message])


def test_a_whole_answer_and_its_chunks():
    request = Completion("chatcmpl-1", 5, "m.gguf")
    body = chat_body(request, "hi", "stop", {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    assert body["usage"]["total_tokens"] == 3
    chunks = list(chat_chunks(request, iter([Delta("h"), Delta("i", "stop", 2)])))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant"},
        {"content": "h"},
        {"content": "i"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
