"""Every command finishes a change that was cut off before it reads anything, so that none can forget to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from forkyard import journal
from forkyard.cli import main
from forkyard.journal import STATE, Changes, commit_changes, project_lock

ALONE = {("doctor",), ("clean",), ("schema",), ("numa-model",)}
"""What reads no patches and no recipes, or is there to say what is wrong: works beside a change that cannot end."""
NOTE = "recipes/note.txt"


def every_command(
    group: click.Group = main, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from every_command(command, (*above, name))
            else:
                yield (*above, name), command


COMMANDS = dict(every_command())


def words_for(command: click.Command, folder: Path) -> list[str]:
    """A value for everything it asks for: none that means anything, so that it gives up early."""
    file = folder / "x"
    file.write_text("x")
    found: list[str] = []
    for one in command.params:
        value = one.type.choices[0] if isinstance(one.type, click.Choice) else str(file)
        if isinstance(one, click.Argument):
            # Those that may be missing as well: without a name a command would take all there is.
            found.append(str(value) if isinstance(one.type, click.Choice | click.Path) else "no-such-thing")
        elif one.required:
            found += [one.opts[0], str(value)]
    return found


@pytest.fixture
def project(project_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project in which somebody was killed right after the rename."""
    monkeypatch.setenv("FORKYARD_ROOT", str(project_root))
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["forkyard", "stack", "refresh", "part"])
    (project_root / NOTE).write_text("old")
    changes = Changes()
    changes.write(NOTE, b"new")
    with monkeypatch.context() as cut, project_lock(project_root):
        cut.setattr(journal, "finish_changes", lambda root: None)
        commit_changes(project_root, changes)
    assert (project_root / STATE / "journal").is_dir()
    return project_root


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Result]:
    def run(name: tuple[str, ...], *more: str) -> Result:
        return CliRunner().invoke(main, [*name, *words_for(COMMANDS[name], tmp_path), *more], catch_exceptions=False)

    return run


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - ALONE), ids=" ".join)
def test_it_recovers_first(name: tuple[str, ...], project: Path, call: Callable[..., Result]) -> None:
    done = call(name)
    assert (project / NOTE).read_text() == "new", done.output
    assert not (project / STATE / "journal").exists()
    assert "`forkyard stack refresh part` was cut off" in done.stderr
    assert f"finished now: {NOTE}" in done.stderr


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - ALONE), ids=" ".join)
def test_it_stops_where_that_is_impossible(name: tuple[str, ...], project: Path, call: Callable[..., Result]) -> None:
    (project / STATE / "journal" / "list.json").write_text("{")
    done = call(name)
    assert done.exit_code == 10, done.output
    assert "the record of an unfinished change is damaged" in done.stderr


@pytest.mark.parametrize("name", sorted(ALONE), ids=" ".join)
def test_what_needs_no_project_goes_on(name: tuple[str, ...], project: Path, call: Callable[..., Result]) -> None:
    (project / STATE / "journal" / "list.json").write_text("{")
    assert call(name).exit_code != 10
    assert (project / NOTE).read_text() == "old"


def test_an_edit_in_between_is_left_alone(project: Path) -> None:
    (project / NOTE).write_text("mine")
    done = CliRunner().invoke(main, ["variants"])
    assert done.exit_code == 0
    assert (project / NOTE).read_text() == "mine"
    assert f"left alone, somebody has changed it since: {NOTE}" in done.stderr


def test_the_doctor_says_what_waits_and_touches_nothing(project: Path) -> None:
    said = CliRunner().invoke(main, ["doctor"]).output
    assert "advice   project" in said
    assert "`forkyard stack refresh part` was cut off" in said
    assert "forkyard status" in said
    (project / NOTE).write_text("mine")
    assert NOTE in CliRunner().invoke(main, ["doctor"]).output
    assert (project / STATE / "journal").is_dir()
    (project / STATE / "journal" / "list.json").write_text("{")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 7
    assert "missing  project" in done.output
    assert str(project / STATE / "journal") in done.output
    shutil.rmtree(project / STATE)
    assert "ok       project" in CliRunner().invoke(main, ["doctor"]).output
