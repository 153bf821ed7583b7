from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from forkyard import console as module
from forkyard.console import Console, Silent
from forkyard.errors import SourceError


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)


def test_results_are_for_people_or_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    Console().result({"b": 1, "a": [2]}, "text\n\n")
    assert capsys.readouterr() == ("text\n", "")
    Console(as_json=True).result({"b": 1, "a": [2]}, "text")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"b": 1, "a": [2]}
    assert out.index('"a"') < out.index('"b"')
    assert err == ""
    Console().result({}, "")
    assert capsys.readouterr() == ("", "")


def test_failures_go_where_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    error = SourceError("wrong [bold]thing[/bold]", where="/a/[x]", why="y " * 100, next_step="go")
    Console(quiet=True).failure(error)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {error.describe()}\n", "no markup, no wrapping"
    Console(as_json=True).failure(error)
    out, err = capsys.readouterr()
    assert json.loads(out) == error.as_json()
    assert err == ""


def test_progress_and_notes_never_reach_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=True)
    console.note("a [note]")
    console.warn("a warning")
    with console.step("work", "files") as step:
        step.update(1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == ["a [note]", "warning: a warning", "work ..."]
    assert lines[-1].startswith("work: done in ")


def test_quiet_keeps_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.note("note")
    with console.step("work") as step:
        step.update(1, 2)
    console.warn("look")
    assert capsys.readouterr() == ("", "warning: look\n")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_plain_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Console().step("compiling", "steps") as step:
        for done in range(1, 61):
            clock.now += 1
            step.update(done, 120)
        clock.now += 30
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "compiling ...",
        "  compiling: 15/120 steps in 15.0 s, about 1 min 45 s left",
        "  compiling: 30/120 steps in 30.0 s, about 1 min 30 s left",
        "  compiling: 45/120 steps in 45.0 s, about 1 min 15 s left",
        "  compiling: 60/120 steps in 1 min 00 s, about 1 min 00 s left",
        "compiling: done in 1 min 30 s",
    ]


def test_plain_progress_of_bytes_without_a_total(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Console().step("downloading", "bytes") as step:
        clock.now += 20
        step.update(5_000_000)
        clock.now += 20
        step.update(0, 10_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "  downloading: 5.0 MB/? in 20.0 s"
    assert lines[2] == "  downloading: 0 bytes/10.0 MB in 40.0 s"


def test_work_that_failed_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), Console().step("work"):
        raise ValueError
    assert "done" not in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("unit", ["bytes", "steps", ""])
def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    console = Console()
    with console.step("a title", unit) as step:
        step.update(0)
        step.update(5, 10, "detail [x]")
    assert "a title" in screen.getvalue()
    assert "a title: done in " in screen.getvalue()


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    quiet: Any = Silent()
    with quiet.step("x", "y") as step:
        step.update(1, 2, "z")
    quiet.note("x")
    quiet.warn("x")
    assert capsys.readouterr() == ("", "")


STRANGE = "a \udcff name \u00e9 \U0001f600"


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1", "utf-8:strict", "utf-16"])
@pytest.mark.parametrize("as_json", [True, False])
def test_no_name_is_too_strange_to_be_printed(encoding: str, as_json: bool) -> None:
    code = (
        "from forkyard.console import Console\nfrom forkyard.errors import SourceError\n"
        f"console = Console(as_json={as_json})\ntext = {STRANGE!r}\n"
        "console.note(text)\nconsole.warn(text)\nconsole.result({'name': text}, text)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    if as_json:
        assert json.loads(done.stdout.decode("utf-8")) == {"name": STRANGE}
    else:
        assert "name" in done.stdout.decode(encoding.partition(":")[0])


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_traceback(closed: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = ["sh", "-c", f'"$0" -m forkyard schema --json {closed}', sys.executable]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=1800, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for arguments in (["schema", "--json"], ["variants"]):
        command = [sys.executable, "-m", "forkyard", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            process.wait(timeout=1800)
            assert process.stderr.read() == b""
