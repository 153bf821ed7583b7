from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from forkyard.commands import editing

COMMANDS: dict[str, click.Command] = {
    command.name or "": command
    for command in (editing.new, editing.edit, editing.refresh, editing.export, editing.import_)
}


def command_lines(text: str) -> list[list[str]]:
    """Every ``forkyard stack`` line of a document, continued lines joined, comments off."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"^ +forkyard stack (.*)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def test_every_command_of_the_guide_is_one(repository: Path) -> None:
    lines = command_lines((repository / "docs" / "stacks.md").read_text())
    assert {words[0] for words in lines} == set(COMMANDS)
    for name, *words in lines:
        with COMMANDS[name].make_context(name, list(words)) as context:
            assert context.params["name"]


def test_every_option_of_the_guide_is_one(repository: Path) -> None:
    known = {option for command in COMMANDS.values() for one in command.params for option in one.opts}
    of_git = {"--keep-non-patch"}
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", (repository / "docs" / "stacks.md").read_text()):
        assert option in known | of_git, option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = CliRunner().invoke(COMMANDS[name], ["--help"])
    assert done.exit_code == 0
    for option in ("--json", "--quiet"):
        assert option in done.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("new", ["x", "--engine", "llama.cpp", "--title", "t"]),
        ("new", ["x", "--engine", "other", "--title", "t", "--intent", "i"]),
        ("edit", ["x"]),
        ("export", ["x", "--engine", "llama.cpp", "--check", "--to", "somewhere"]),
        ("import", ["x", "--engine", "llama.cpp", "a.patch", "--into", "clone"]),
    ],
)
def test_what_cannot_mean_anything_is_a_usage_error(name: str, words: list[str]) -> None:
    assert CliRunner().invoke(COMMANDS[name], words).exit_code == 2
