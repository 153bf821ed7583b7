"""The messages of a chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forkyard_llm.conversation import Conversation
from forkyard_llm.errors import UsageError


def talk(turns: int, system: str | None = "S") -> Conversation:
    conversation = Conversation(system)
    for number in range(turns):
        conversation.ask(f"q{number}")
        conversation.answer(f"a{number}")
    return conversation


def contents(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages]


def test_messages_begin_with_the_system_s() -> None:
    assert talk(1).messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "q0"},
        {"role": "assistant", "content": "a0"},
    ]
    assert contents(talk(1, None)) == ["q0", "a0"]
    assert len(talk(1)) == 2


def test_the_older_half_is_forgotten_and_never_the_last_turn() -> None:
    conversation = talk(4)
    conversation.ask("last")
    assert [conversation.forget_oldest() for _ in range(4)] == [2, 1, 1, 0]
    assert contents(conversation) == ["S", "last"]
    conversation = talk(5)
    assert conversation.forget_oldest() == 2
    assert contents(conversation)[1] == "q2"
    assert Conversation().forget_oldest() == 0


def test_taking_back() -> None:
    conversation = talk(2)
    assert conversation.unanswer()
    assert contents(conversation) == ["S", "q0", "a0", "q1"]
    assert conversation.unanswer()  # it has no answer any more
    conversation.take_back()
    assert contents(conversation) == ["S", "q0", "a0"]
    conversation.take_back()
    conversation.take_back()
    assert not conversation.unanswer()
    assert contents(conversation) == ["S"]


@pytest.mark.parametrize("system", ["é\n\u2028", None])
def test_what_is_saved_is_loaded(tmp_path: Path, system: str | None) -> None:
    talk(2, system).save(tmp_path / "chat.json")
    other = talk(5)
    other.load(tmp_path / "chat.json")
    assert other.messages == talk(2, system).messages
    assert json.loads((tmp_path / "chat.json").read_bytes()) == {"messages": other.messages}


def test_a_question_without_an_answer_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "c").write_text('{"messages": [{"role": "user", "content": "q"}]}')
    conversation = Conversation()
    conversation.load(tmp_path / "c")
    assert conversation.messages == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff", "it is no JSON"),
        (b"{", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[]", "is no saved chat"),
        (b'{"messages": 3}', "is no saved chat"),
        (b'{"messages": [3]}', "is no saved chat"),
        (b'{"messages": [{"role": "user", "content": ["x"]}]}', "is no saved chat"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "message 0 must be the user's, not 'assistant'"),
        (b'{"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}', "message 1 must be"),
        (None, "No such file"),
    ],
)
def test_a_file_that_holds_none_changes_nothing(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "c").write_bytes(content)
    conversation = talk(1)
    with pytest.raises(UsageError, match=why):
        conversation.load(tmp_path / "c")
    assert contents(conversation) == ["S", "q0", "a0"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        talk(1).save(tmp_path)
    conversation = Conversation()
    conversation.ask("\ud800")
    with pytest.raises(UsageError, match="cannot write"):
        conversation.save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
