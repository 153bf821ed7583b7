from __future__ import annotations

from collections.abc import Generator

import pytest
from forkyard_llm.completion import (
    Completion,
    Delta,
    completion_body,
    completion_chunks,
    completion_logprobs,
    run,
)
from forkyard_llm.engines.request import Token

END = 99


class Letters:
    """A model whose token n is the letter a + n, and whose token 99 ends the text."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        letter = bytes([ord("a") + token])
        return letter.upper() if special else letter

    def bytes_of(self, token: int, *, special: bool = False) -> bytes | None:
        return None if token == END else self.piece(token, special=special)


def collect(tokens: list[int], max_tokens: int | None = None, stops: tuple[str, ...] = ()) -> tuple[str, Delta]:
    deltas = list(run(Letters(), (Token(token) for token in tokens), max_tokens, stops))
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    return "".join(delta.text for delta in deltas), deltas[-1]


def test_an_end_token_stops_and_is_not_counted():
    text, last = collect([0, 1, END, 2])
    assert (text, last.finish_reason, last.completion_tokens) == ("ab", "stop", 2)


def test_max_tokens_gives_length_and_takes_no_token_too_many():
    numbers = iter([0, 1, 2])
    deltas = list(run(Letters(), (Token(number) for number in numbers), 2, ()))
    assert deltas[-1] == Delta("", "length", 2)
    assert next(numbers) == 2


def test_a_full_context_gives_length():
    assert collect([0, 1])[1] == Delta("", "length", 2)


def test_a_stop_string_stops():
    text, last = collect([0, 1, 2, 3, 4], None, ("cd",))
    assert (text, last.finish_reason, last.completion_tokens) == ("ab", "stop", 4)


def test_a_stop_string_completed_only_at_the_end_is_a_stop_too():
    text, last = collect([0, 1], 2, ("b",))
    assert (text, last.finish_reason) == ("a", "stop")


def test_half_a_stop_string_before_the_end_is_text():
    assert collect([0, 1, 2, END], None, ("cd",))[0] == "abc"


def test_chunks_have_the_shape_clients_know():
    request = Completion("cmpl-1", 5, "m.gguf")
    chunks = list(
        completion_chunks(request, iter([Delta("a"), Delta(""), Delta("", "length", 1)]), "prompt ", Letters().piece)
    )
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["prompt ", "a", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert chunks[1] == completion_body(request, "a", None)
    assert {key: chunks[0][key] for key in ("id", "object", "created", "model")} == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 5,
        "model": "m.gguf",
    }


def test_requests_have_ids_of_their_own():
    first, second = Completion.new("cmpl", "m"), Completion.new("cmpl", "m")
    assert first.id.startswith("cmpl-")
    assert first.id != second.id


def test_tokens_go_with_the_text_they_made_sure():
    tokens = [Token(0), Token(1), Token(2), Token(END)]
    deltas = list(run(Letters(), (token for token in tokens), None, ("bx",)))
    assert [(delta.text, [token.id for token in delta.tokens]) for delta in deltas] == [
        ("a", [0]),
        ("bc", [1, 2]),
        ("", []),
    ]


def test_control_tokens_of_the_text_are_spelled_out():
    deltas = list(run(Letters(), (Token(token) for token in [0, 1, 2]), None, (), spelled={1}))
    assert "".join(delta.text for delta in deltas) == "aBc"


def test_a_criterion_ends_the_text_after_its_token():
    deltas = list(
        run(Letters(), (Token(token) for token in [0, 1, 2]), None, (), criterion=lambda token: token.id == 1)
    )
    assert "".join(delta.text for delta in deltas) == "ab"
    assert deltas[-1].finish_reason == "stop"


def test_logprobs_have_openai_s_shape():
    tokens = [Token(0), Token(1, [(1, -0.5), (2, -0.25), (1, -0.5)])]
    assert completion_logprobs(Letters().piece, tokens[:1], 0) is None
    assert completion_logprobs(Letters().piece, tokens, 3) == {
        "tokens": ["a", "b"],
        "text_offset": [3, 4],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"c": -0.25, "b": -0.5}],
    }


def test_an_error_of_a_criterion_ends_the_generation_at_once():
    ended = []

    def tokens() -> Generator[Token, None, None]:
        try:
            while True:
                yield Token(0)
        finally:
            ended.append(True)

    with pytest.raises(ZeroDivisionError) as caught:
        list(run(Letters(), tokens(), None, (), criterion=lambda token: token.id // 0 > 0))
    assert ended
    del caught
