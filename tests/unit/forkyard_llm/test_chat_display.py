"""What is shown of an answer while it is made."""

from __future__ import annotations

import io
import re

import pytest
from forkyard_llm.chat_display import PlainDisplay, TerminalDisplay, finished_blocks
from rich.console import Console

LIST = "Some **words**.\n\n- one\n  more\n\n  deeper\n- two\n\n```py\na = 1\n\nb = 2\n```\n\nEnd."


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", ""),
        ("one", ""),
        ("one\n", ""),
        ("one\n\n", ""),
        ("one\n\n ", ""),
        ("one\n\ntw", "one\n\n"),
        ("one\n\ntwo\n\nthree", "one\n\ntwo\n\n"),
        ("- item\n\n  of the item", ""),
        ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("````\n```\n\nb\n```\n\nc", ""),
        ("```py\n~~~\n\nb", ""),
        ("```py\n```py\n\nb", ""),
        ("a\u2028b\n\nc", "a\u2028b\n\n"),
    ],
)
def test_blocks_that_do_not_change_any_more(text: str, done: str) -> None:
    assert text[: finished_blocks(text)] == done


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=60, height=20, color_system="standard")


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_markdown_is_rendered_however_it_comes(console: Console) -> None:
    with TerminalDisplay(console) as display:
        for letter in LIST:
            display.content(letter)
    shown = said(console)
    assert "\x1b[1mwords\x1b[0m" in shown
    assert "**" not in shown[shown.rindex("words") :]
    assert "•" in shown
    assert "```" not in shown[shown.rindex("End") - 20 :]
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is there again


def test_one_empty_line_between_blocks_whatever_they_are(console: Console) -> None:
    with TerminalDisplay(console) as display:
        for piece in ("# A\n\n", "```\nx\n```\n\n", "1. b\n\n", "2. c\n\n", "| d |\n|-|\n| e |\n\n", "f"):
            display.content(piece)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", said(console)).splitlines()
    lines = [line.strip() for line in shown]
    # Those of the code's own background are its padding.
    assert lines[lines.index("1 b") :][:3] == ["1 b", "", "2 c"]
    assert "f" in lines


def test_reasoning_is_dim_and_before_the_answer(console: Console) -> None:
    with TerminalDisplay(console) as display:
        display.reasoning("hmm [b]")
        display.reasoning(" yes")
        display.content("\n\nanswer")
    shown = said(console)
    assert "\x1b[2mhmm [b]\x1b[0m\x1b[2m yes\x1b[0m" in shown
    assert shown.index("yes") < shown.index("answer")


def test_a_terminal_gets_no_controls_of_the_model_s(console: Console) -> None:
    with TerminalDisplay(console) as display:
        display.reasoning("a\x1b]0;title\x07")
        display.content("b\x1b[2J\x9b31m\rc\td")
    shown = said(console)
    for bad in ("\x1b]0", "\x1b[2J", "\x9b", "\rc", "\x07"):
        assert bad not in shown


def test_nothing_is_shown_of_nothing(console: Console) -> None:
    with TerminalDisplay(console):
        pass
    assert "answer" not in said(console)


def test_elsewhere_it_is_the_text_alone() -> None:
    pieces: list[str] = []
    with PlainDisplay(pieces.append) as display:
        display.reasoning("thought")
        display.content("**a**")
        display.content("\x1bb")
    assert pieces == ["**a**", "\x1bb", "\n"]
