"""How a download's progress is shown on a terminal and where there is none."""

from __future__ import annotations

import io

import pytest
from forkyard_llm import fetching
from forkyard_llm.fetching import shown_progress
from rich.console import Console


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.0)
    out = io.StringIO()
    with shown_progress(Console(file=out, force_terminal=False)) as report:
        for done in range(101):
            report("downloading", done * 1_000_000, 100_000_000)
        report("waiting for another process", 0, 0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "downloading 0 of 100 MB"
    assert 9 <= len([line for line in lines if line.startswith("downloading")]) <= 11
    assert lines[-1] == "waiting for another process"


def test_what_goes_quickly_is_one_line() -> None:
    out = io.StringIO()
    with shown_progress(Console(file=out, force_terminal=False)) as report:
        for done in range(101):
            report("unpacking", done, 100)
    assert len(out.getvalue().splitlines()) == 1


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    with shown_progress(Console(file=out, force_terminal=True, width=100)) as report:
        report("downloading", 0, 100)
        report("downloading", 100, 100)
        report("waiting", 0, 0)
    assert "downloading" in out.getvalue()


def test_nothing_is_shown_when_nothing_is_done() -> None:
    out = io.StringIO()
    with shown_progress(Console(file=out, force_terminal=False)):
        pass
    assert out.getvalue() == ""
