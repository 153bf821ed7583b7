"""Commands that people are told to paste: quoted, complete, and each of them one that forkyard takes."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import forkyard_llm.cli
import pytest

from forkyard.cli import main
from forkyard.nextsteps import command, source_word, trying


def test_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = command(
        "stack", "x", "a b", Path("c d"), add_to=True, dry_run=False, base=None, out=Path("o"), stack=("1", "2")
    )
    assert shlex.split(line) == [
        "forkyard", "stack", "x", "a b", f"{tmp_path}/c d", "--add-to", "--out", f"{tmp_path}/o", "--stack", "1",
        "--stack", "2",
    ]  # fmt: skip


def test_a_source_is_the_same_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "git").mkdir()
    (tmp_path / "clone").mkdir()
    assert source_word(None) is None
    assert source_word("git") == "git"
    assert source_word("clone") == f"{tmp_path}/clone"
    assert source_word("https://example.org/x.git") == "https://example.org/x.git"
    assert "secret" not in str(source_word("https://me:secret@example.org/x.git"))


def test_what_was_built_can_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, and where a folder's name has a space: the shell still finds the wheels."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "my $wheels"
    out.mkdir()
    for name in ("forkyard_llm-1.whl", "forkyard_x-1.whl", "forkyard_y-1.whl"):
        (out / name).touch()
    install, run = trying(Path("my $wheels"), ["forkyard_x"], "llama.cpp")
    seen = subprocess.run(
        ["bash", "-c", install.replace("pip install", "printf '%s\\n'")],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.splitlines() == [f"{out}/forkyard_llm-1.whl", f"{out}/forkyard_x-1.whl"]
    program, *words = shlex.split(run)
    assert program == "forkyard-llm"
    verb, *options = words
    asked = forkyard_llm.cli.cli.commands[verb].make_context(verb, options).params
    assert (asked["engine"], asked["model"]) == ("llama.cpp", "smollm2-135m")


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings of a module, values that are filled in written as ``<n>``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [
                str(one.value)
                if isinstance(one, ast.Constant)
                else f"<{one.value.id if isinstance(one.value, ast.Name) else number}>"
                for number, one in enumerate(node.values)
                if isinstance(one, ast.Constant | ast.FormattedValue)
            ]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def _messages(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for path in sorted(folder.rglob("*.py")):
        for line, text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            for found in re.findall(r"`forkyard ([^`]+)`", text):
                yield f"{path.relative_to(folder)}:{line}", found.split()


def _filled(words: list[str], command_: click.Command) -> list[str]:
    """Words with something in place of what is filled in, or stands in capitals."""
    choices = {
        name: one.type.choices[0] for one in command_.params if isinstance(one.type, click.Choice) for name in one.opts
    }
    found: list[str] = []
    for word in words:
        value = choices.get(found[-1], "word") if found else "word"
        found.append(str(value) if re.search(r"<\w+>|[A-Z]{3,}", word) else word)
    return found


def test_every_command_in_a_message_is_one(repository: Path) -> None:
    """A command named with any word of its own must be complete: the reader pastes it."""
    checked = 0
    for where, words in _messages(repository / "src" / "forkyard"):
        found: click.Command | None = main
        rest = list(words)
        with click.Context(main) as context:
            while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
                found = found.get_command(context, rest.pop(0))
        assert found is not None, f"{where}: `forkyard {' '.join(words)}`"
        if not rest or isinstance(found, click.Group) or "|" in rest:
            # Only named, or several of them.
            continue
        try:
            found.make_context(found.name, _filled(rest, found))
        except click.UsageError as error:
            pytest.fail(f"{where}: `forkyard {' '.join(words)}`: {error.message}")
        checked += 1
    assert checked > 5


# Single files that a message is about may be put back; whole folders hold what the message knows nothing of.
_SWEEPING = r"git (checkout|restore) (-f|--force|(-- )?(?!-|\{|[A-Z])[\w./]+( |`|\")|\.)|git (reset|clean)|rm -rf"


def test_no_message_takes_away_more_than_forkyard_made(repository: Path) -> None:
    assert re.search(_SWEEPING, "`git checkout -- patches recipes` undoes it")
    assert not re.search(_SWEEPING, "rm {files} && git checkout -- {files}")
    for folder, kinds in (("src/forkyard", ("*.py", "*.j2")), ("docs", ("*.md",)), ("bindings/src", ("*.py",))):
        for kind in kinds:
            for path in (repository / folder).rglob(kind):
                found = re.search(_SWEEPING, path.read_text(encoding="utf-8"))
                assert found is None, f"{path}: {found[0]}"


def test_pasted_reads_like_a_shell(pasted: Callable[..., Any]) -> None:
    cd, verify = pasted(["cd 'a b' && forkyard stack verify --recipe x  # why", "# for the person"])
    assert (cd.program, cd.words) == ("cd", ["a b"])
    assert verify.values["ref"] == "x"
    with pytest.raises(AssertionError, match="cannot be pasted"):
        pasted(["the same without --dry-run"])
