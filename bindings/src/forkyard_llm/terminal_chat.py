"""Run the command `chat`: read what somebody types, answer it, and obey the commands that begin with a slash."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.console import Console

from . import gguf_check
from .cache import cache_dir, expanded
from .chat_display import Display, PlainDisplay, TerminalDisplay
from .conversation import Conversation
from .errors import ForkyardLlmError, PromptTooLong, UsageError
from .line_input import line_editing, typed
from .llama import Llama
from .text import write_now

__all__ = ["Chat", "ChatOptions", "chat"]

CONTEXT: Final = 4096
HELP: Final = """\
/help           show this
/reset          forget the conversation, keep the system message
/system [TEXT]  another system message, or none; forget the conversation
/regenerate     answer the last question again
/save FILE      write the conversation as JSON
/load FILE      go on with one that was saved
/quit           leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one. // at the beginning is text with one /."""


@dataclass(frozen=True)
class ChatOptions:
    """A model to talk with; `context` None for 4096 tokens, or the model's own if that is smaller."""

    model: Path
    system: str | None = None
    max_tokens: int | None = None
    engine: str = "auto"
    variant: str | None = None
    context: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


def chat(options: ChatOptions, notes: Console) -> None:
    """Talk until the input ends or somebody leaves; `notes` is where all goes that is no answer.

    Raises any ForkyardLlmError when the model is opened, and where standard input is no terminal, later ones, too.
    """
    interactive = sys.stdin.isatty()
    with _waiting(notes, f"loading {options.model.name} ..."):
        llm = Llama(
            options.model,
            engine=options.engine,
            variant=options.variant,
            n_ctx=_context(options),
            prompt_reuse=True,
            **options.arguments,
        )
    with llm:
        run = Chat(llm, options, Console(highlight=False), notes)
        if not interactive:
            for raw in sys.stdin.buffer:
                if not run.take(_decoded(raw)):
                    break
            return
        where = f"{options.model.name} on {llm.payload.distribution}, {llm.n_ctx()} tokens of context"
        notes.print(f"{where}\n/help shows the commands, Ctrl-D leaves", style="dim", markup=False, soft_wrap=True)
        with line_editing(cache_dir() / "chat-history"):
            _talk(run, notes)


def _talk(run: Chat, notes: Console) -> None:
    style = "\033[1;32m" if notes.color_system else ""
    while True:
        try:
            if not run.take(typed("> ", "  ", style), stoppable=True):
                return
        except EOFError:
            notes.print()
            return
        except KeyboardInterrupt:  # while a line is typed, or for the second time in an answer
            notes.print("\nCtrl-D leaves", style="dim")
        except ForkyardLlmError as error:
            notes.print("[red]error:[/red]", end=" ")
            notes.print(str(error), markup=False, soft_wrap=True)


class Chat:
    """A conversation with a model, and what the lines that somebody types do to it."""

    def __init__(self, model: Llama, options: ChatOptions, answers: Console, notes: Console) -> None:
        self.conversation = Conversation(options.system)
        self._model = model
        self._options = options
        self._answers = answers
        self._notes = notes

    def take(self, text: str, *, stoppable: bool = False) -> bool:
        """Do what a line says; whether to go on. `stoppable`: Ctrl-C ends an answer and nothing else.

        Raises any ForkyardLlmError; the question whose answer failed is then forgotten.
        """
        if not text.strip():
            return True
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text.partition(" ")
            return self._command(name, rest.strip(), stoppable)
        self.conversation.ask(text[1:] if text.startswith("//") else text)
        self._answer(stoppable)
        return True

    def _command(self, name: str, rest: str, stoppable: bool) -> bool:
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            self._note(HELP)
        elif name == "/reset":
            self.conversation.clear()
        elif name == "/system":
            self.conversation = Conversation(rest or None)
        elif name == "/regenerate":
            if not self.conversation.unanswer():
                msg = "there is nothing to answer again: ask something first"
                raise UsageError(msg)
            self._answer(stoppable)
        elif name in ("/save", "/load"):
            if not rest:
                msg = f"{name} needs the name of a file: {name} chat.json"
                raise UsageError(msg)
            path = expanded(rest)
            if name == "/save":
                self.conversation.save(path)
            else:
                self.conversation.load(path)
            self._note(f"{'saved' if name == '/save' else 'loaded'} {path}, {len(self.conversation)} messages")
        else:
            msg = f"there is no command {name}: /help lists them; // at the beginning is text that begins with /"
            raise UsageError(msg)
        return True

    def _answer(self, stoppable: bool) -> None:
        pieces: list[str] = []
        finished = None
        try:
            with _stopping(stoppable) as stopped:
                chunks = self._chunks(stopped)
                with contextlib.closing(chunks), self._display() as display:
                    for chunk in chunks:
                        choice = chunk["choices"][0]
                        if thought := choice["delta"].get("reasoning_content"):
                            display.reasoning(thought)
                        if text := choice["delta"].get("content"):
                            pieces.append(text)
                            display.content(text)
                        finished = choice["finish_reason"]
                        if stopped():
                            break
        except _Stopped:
            pass
        except BaseException:
            self.conversation.take_back()
            raise
        full = finished == "length" and self._options.max_tokens is None
        if full:
            self._note(f"the context of {self._model.n_ctx()} tokens is full: the answer ends here")
        if not pieces:
            self.conversation.take_back()
            self._note("there is no answer; the question is forgotten")
            return
        self.conversation.answer("".join(pieces))
        if full:
            self._forget()

    def _chunks(self, stopped: Callable[[], bool]) -> Any:
        """The answer's chunks, of as much of the conversation as the context holds."""

        def progress(done: int, total: int) -> None:
            if stopped():
                raise _Stopped

        while True:
            try:
                return self._model.create_chat_completion(
                    self.conversation.messages,
                    stream=True,
                    max_tokens=self._options.max_tokens,
                    progress=progress,
                    **self._options.sampling,
                )
            except PromptTooLong as error:
                if not self._forget():
                    msg = f"this alone is longer than the context: {error}"
                    raise UsageError(msg) from error

    def _forget(self) -> bool:
        dropped = self.conversation.forget_oldest()
        if dropped:
            turns = "turn is" if dropped == 1 else f"{dropped} turns are"
            self._note(f"to make room in the context of {self._model.n_ctx()} tokens, the oldest {turns} forgotten")
        return dropped > 0

    def _display(self) -> Display:
        if self._answers.is_terminal and not self._answers.is_dumb_terminal:
            return TerminalDisplay(self._answers)
        return PlainDisplay(write_now)

    def _note(self, text: str) -> None:
        self._notes.print(text, style="dim", markup=False, highlight=False, soft_wrap=not self._notes.is_terminal)


class _Stopped(BaseException):
    """Ctrl-C while the prompt is computed."""


@contextlib.contextmanager
def _stopping(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed meanwhile, instead of an exception anywhere; a second one is that."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if not wanted:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _waiting(notes: Console, what: str) -> Iterator[None]:
    if not notes.is_terminal:
        yield
        return
    with notes.status(what):
        yield


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        msg = f"a line on standard input is not UTF-8: {error}"
        raise UsageError(msg) from error


def _context(options: ChatOptions) -> int:
    if options.context is not None:
        return options.context
    summary = gguf_check.check(options.model, purposes={gguf_check.TEXT})
    trained = summary.values.get(f"{summary.architecture}.context_length")
    return min(CONTEXT, int(trained.numbers[0])) if trained is not None and trained.numbers else CONTEXT
