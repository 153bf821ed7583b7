"""The chat: what each line does, with a model that says what it is told to."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import gguf_check, terminal_chat
from forkyard_llm.errors import EngineError, PromptTooLong, UsageError
from forkyard_llm.terminal_chat import Chat, ChatOptions
from rich.console import Console


class Model:
    """Answers with the pieces of `says`; no prompt may have more messages than `room`."""

    def __init__(self) -> None:
        self.says: list[Any] = ["A", "B"]
        self.finish = "stop"
        self.room = 100
        self.asked: list[tuple[list[str], dict[str, Any]]] = []

    def n_ctx(self) -> int:
        return 77

    def create_chat_completion(self, messages: list[dict[str, str]], **named: Any) -> Iterator[dict[str, Any]]:
        if len(messages) > self.room:
            msg = "too long"
            raise PromptTooLong(msg)
        self.asked.append(([message["content"] for message in messages], named))
        return self._chunks(named["progress"])

    def _chunks(self, progress: Any) -> Iterator[dict[str, Any]]:
        for piece in self.says:
            if isinstance(piece, BaseException):
                raise piece
            if callable(piece):
                piece()
                progress(1, 2)
                continue
            delta = {"reasoning_content": piece[1:]} if piece.startswith("?") else {"content": piece}
            yield {"choices": [{"delta": delta, "finish_reason": None}]}
        yield {"choices": [{"delta": {}, "finish_reason": self.finish}]}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def notes() -> Console:
    return Console(file=io.StringIO(), width=200)


def make(model: Model, notes: Console, **options: Any) -> Chat:
    answers = Console(file=io.StringIO())
    return Chat(model, ChatOptions(Path("m.gguf"), **options), answers, notes)  # type: ignore[arg-type]


def noted(notes: Console) -> str:
    assert isinstance(notes.file, io.StringIO)
    return notes.file.getvalue()


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.conversation.messages]


def test_a_conversation_grows(model: Model, notes: Console, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    chat = make(model, notes, system="S", max_tokens=9, sampling={"seed": 3})
    assert chat.take("one")
    assert chat.take("//two")
    assert chat.take("  ")
    assert contents(chat) == ["S", "one", "AB", "/two", "AB"]
    asked, named = model.asked[1]
    assert asked == ["S", "one", "AB", "/two"]
    assert (named["stream"], named["max_tokens"], named["seed"]) == (True, 9, 3)
    assert capfdbinary.readouterr().out == b"AB\nAB\n"
    assert noted(notes) == ""


def test_reasoning_is_no_part_of_the_answer(
    model: Model, notes: Console, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    model.says = ["?hm", "A"]
    chat = make(model, notes)
    chat.take("one")
    assert contents(chat) == ["one", "A"]
    assert capfdbinary.readouterr().out == b"A\n"


def test_commands(model: Model, notes: Console, tmp_path: Path) -> None:
    chat = make(model, notes, system="S")
    chat.take("one")
    model.says = ["C"]
    assert chat.take("/regenerate")
    assert contents(chat) == ["S", "one", "C"]
    assert chat.take(f"/save {tmp_path}/c.json")
    assert chat.take("/reset")
    assert contents(chat) == ["S"]
    assert chat.take("/system other words")
    assert contents(chat) == ["other words"]
    assert chat.take("/system")
    assert contents(chat) == []
    assert chat.take(f"/load {tmp_path}/c.json")
    assert contents(chat) == ["S", "one", "C"]
    assert chat.take("/help")
    for name in ("/help", "/reset", "/system", "/regenerate", "/save", "/load", "/quit"):
        assert f"\n{name} " in "\n" + noted(notes)
    assert not chat.take("/quit")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/nonsense", "there is no command /nonsense"),
        ("/", "there is no command /"),
        ("/save", "needs the name of a file"),
        ("/load", "needs the name of a file"),
        ("/load /nowhere/x", "cannot read"),
        ("/regenerate", "nothing to answer again"),
    ],
)
def test_commands_that_make_no_sense(model: Model, notes: Console, line: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make(model, notes).take(line)
    assert model.asked == []


@pytest.mark.parametrize("error", [EngineError("broken"), UsageError("the template refuses it"), KeyboardInterrupt()])
def test_a_question_whose_answer_fails_is_forgotten(model: Model, notes: Console, error: BaseException) -> None:
    chat = make(model, notes)
    chat.take("one")
    model.says = ["A", error]
    with pytest.raises(type(error)):
        chat.take("two")
    assert contents(chat) == ["one", "AB"]


def test_the_oldest_turns_make_room(model: Model, notes: Console) -> None:
    chat = make(model, notes, system="S")
    for number in range(4):
        chat.take(str(number))
    model.room = 4
    chat.take("4")
    assert model.asked[-1][0] == ["S", "3", "AB", "4"]
    assert "the oldest 2 turns are forgotten" in noted(notes)
    assert "the oldest turn is forgotten" in noted(notes)
    model.room = 1
    with pytest.raises(UsageError, match="this alone is longer than the context: too long"):
        chat.take("5")
    assert contents(chat) == ["S"]


def test_an_answer_that_fills_the_context(model: Model, notes: Console) -> None:
    chat = make(model, notes)
    chat.take("0")
    model.finish = "length"
    chat.take("1")
    assert contents(chat) == ["1", "AB"]
    assert "the context of 77 tokens is full: the answer ends here" in noted(notes)
    model.says = []
    chat.take("2")
    assert contents(chat) == ["1", "AB"]
    assert "there is no answer" in noted(notes)


def test_a_limit_of_tokens_is_no_full_context(model: Model, notes: Console) -> None:
    model.finish = "length"
    chat = make(model, notes, max_tokens=2)
    chat.take("0")
    chat.take("1")
    assert len(chat.conversation) == 4
    assert noted(notes) == ""


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_what_was_said(model: Model, notes: Console) -> None:
    handler = signal.getsignal(signal.SIGINT)
    model.says = ["A", interrupt, "B", "C"]
    chat = make(model, notes)
    assert chat.take("one", stoppable=True)
    assert contents(chat) == ["one", "A"]
    model.says = [interrupt, "A"]
    assert chat.take("two", stoppable=True)
    assert contents(chat) == ["one", "A"]
    assert "the question is forgotten" in noted(notes)
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_in_a_script_ends_it(model: Model, notes: Console) -> None:
    model.says = ["A", interrupt, "B"]
    with pytest.raises(KeyboardInterrupt):
        make(model, notes).take("one")


@pytest.mark.parametrize(
    ("trained", "wanted", "context"), [(2048, None, 2048), (131072, None, 4096), (None, None, 4096), (2048, 0, 0)]
)
def test_the_context(monkeypatch: pytest.MonkeyPatch, trained: int | None, wanted: int | None, context: int) -> None:
    class Value:
        numbers = (trained,)

    class Summary:
        architecture = "llama"
        values = {} if trained is None else {"llama.context_length": Value}

    monkeypatch.setattr(gguf_check, "check", lambda path, purposes: Summary)
    assert terminal_chat._context(ChatOptions(Path("m"), context=wanted)) == context
