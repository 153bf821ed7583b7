from __future__ import annotations

from typing import Any

import pytest
from forkyard_llm.chat import answer_body, answer_chunks, chat_logprobs, chat_request
from forkyard_llm.completion import Completion, Delta
from forkyard_llm.engines.request import Token
from forkyard_llm.errors import UnsupportedOption, UsageError

HI = [{"role": "user", "content": "Hi"}]
WEATHER = {"type": "function", "function": {"name": "weather"}}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}


class Parser:
    """An answer parser that takes text for content, and "!" for a tool call."""

    def __init__(self) -> None:
        self.closed = False

    def add(self, text: str, _finish_reason: str | None = None) -> dict[str, Any]:
        return {"deltas": [{"tool_calls": [{"index": 0}]}] if "!" in text else [{"content": text}] if text else []}

    def close(self) -> None:
        self.closed = True


def test_text_and_text_parts_are_read():
    parts = [{"type": "text", "text": "a", "cache_control": 1}, {"type": "text", "text": "b"}]
    request = chat_request([{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}])
    assert request["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert not request["prefill"]
    assert "tools" not in request


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ("Hi", "must be a list of messages"),
        ([{"content": "x"}], "message 0 has no role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "message 1 has no content"),
        ([{"role": "assistant", "content": None}], "message 0 has no content"),
        ([{"role": "user", "content": "a\0b"}], "NUL"),
        (["x"], "message 0 must have a role"),
    ],
)
def test_messages_that_make_no_sense_are_refused(messages: Any, message: str):
    with pytest.raises(UsageError, match=message):
        chat_request(messages)


@pytest.mark.parametrize("part", [{"type": "video_url", "video_url": {"url": "x"}}, "bare", {"type": "text"}])
def test_what_is_no_part_is_refused(part: Any):
    with pytest.raises(UnsupportedOption, match="parts are texts .* image_url and input_audio"):
        chat_request([{"role": "user", "content": [part]}])


def test_a_call_needs_no_content_and_the_tool_s_answer_goes_on():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    request = chat_request([*HI, call, {"role": "tool", "tool_call_id": "1", "content": "42"}])
    assert request["messages"][1]["content"] is None
    assert not request["prefill"]


@pytest.mark.parametrize(("given", "expected"), [(None, True), (True, True), (False, False)])
def test_an_assistant_s_last_message_is_the_beginning_of_the_answer(given: bool | None, expected: bool):
    assert chat_request([*HI, {"role": "assistant", "content": "Hel"}], prefill=given)["prefill"] is expected


@pytest.mark.parametrize(
    ("choice", "names", "expected"),
    [
        (None, ["weather", "time"], "auto"),
        ("required", ["weather", "time"], "required"),
        ("none", ["weather", "time"], "none"),
        ({"type": "function", "function": {"name": "time"}}, ["time"], "required"),
    ],
)
def test_tools_and_which_of_them(choice: Any, names: list[str], expected: str):
    request = chat_request(HI, tools=[WEATHER, TIME], tool_choice=choice)
    assert [tool["function"]["name"] for tool in request["tools"]] == names
    assert all("parameters" in tool["function"] for tool in request["tools"])
    assert request["tool_choice"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tools": [WEATHER], "tool_choice": "weather"}, "tool_choice must be"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "other"}}}, "tool_choice must be"),
        ({"tools": [{"function": {"name": "x"}}]}, "tool 0 must be"),
        ({"tools": [{"type": "function", "function": {}}]}, "tool 0 must be"),
        ({"grammar": "root ::= x", "tools": [WEATHER]}, "goes neither with tools"),
        ({"grammar": "root ::= x", "response_format": {"type": "json_object"}}, "goes neither with tools"),
        ({"response_format": {"type": "xml"}}, "response_format must be"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format must be"),
        ({"response_format": "json"}, "response_format must be"),
        ({"reasoning_format": "loud"}, "reasoning_format must be one of"),
        ({"enable_thinking": 1}, "enable_thinking must be True or False"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        chat_request(HI, **arguments)


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": {"type": "array"}}, {"type": "array"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}, {"type": "null"}),
    ],
)
def test_a_response_format_is_a_schema(form: Any, schema: Any):
    assert chat_request(HI, response_format=form).get("json_schema") == schema


def test_a_whole_answer():
    request = Completion("chatcmpl-1", 5, "m.gguf")
    counts = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    body = answer_body(request, {"role": "assistant", "content": "hi"}, "stop", counts)
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 3


@pytest.mark.parametrize(("reason", "expected"), [("stop", "tool_calls"), ("length", "length")])
def test_an_answer_that_calls_says_so_unless_it_was_cut(reason: str, expected: str):
    request = Completion("chatcmpl-1", 5, "m.gguf")
    body = answer_body(request, {"role": "assistant", "content": "", "tool_calls": [{}]}, reason, {})
    assert body["choices"][0]["message"]["content"] is None
    assert body["choices"][0]["finish_reason"] == expected


def test_chunks_of_an_answer():
    parser = Parser()
    deltas = iter([Delta("h"), Delta("i", "stop", 2)])
    chunks = list(answer_chunks(Completion("chatcmpl-1", 5, "m.gguf"), deltas, lambda: parser, bytes))  # type: ignore[arg-type,return-value]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant"},
        {"content": "h"},
        {"content": "i"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert parser.closed


def test_chunks_of_a_call_end_with_its_reason_and_a_stream_left_frees_the_parser():
    request = Completion("chatcmpl-1", 5, "m.gguf")
    chunks = list(answer_chunks(request, iter([Delta("!"), Delta("", "stop", 1)]), Parser, bytes))  # type: ignore[arg-type]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    parser = Parser()
    stream = answer_chunks(request, iter([Delta("a")]), lambda: parser, bytes)  # type: ignore[arg-type,return-value]
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert parser.closed


def test_logprobs_have_openai_s_shape():
    def spell(token: int) -> bytes:
        return "é".encode() if token else b"a"

    assert chat_logprobs(spell, [Token(0)]) is None
    assert chat_logprobs(spell, [Token(1, [(1, -1.0), (0, -0.5)])]) == {
        "content": [
            {
                "token": "é",
                "bytes": [195, 169],
                "logprob": -1.0,
                "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -0.5}],
            }
        ],
        "refusal": None,
    }
