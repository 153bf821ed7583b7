"""Documents and messages name only what is there: sessions, commands, options, files, links and versions."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import forkyard_llm
import nox.registry
import pytest
from forkyard_llm.cli import cli as bindings_cli
from forkyard_llm.payloads import ENGINES

from forkyard.cli import main as forkyard_cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("bindings/**/README.md"),
        ROOT / "wheels" / "README.md.j2",
    ]
)
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("bindings/**/*.py"), *ROOT.glob("patches/*/stack.toml")])
COMMANDS: dict[str, click.Command] = {"forkyard": forkyard_cli, "forkyard-llm": bindings_cli}
FENCE = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (.+)$", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
# What stands for something of the reader's, as in NAME, <variant>, ...; it is no word of ours to check.
PLACEHOLDER = re.compile(r"[A-Z0-9_]+|<.*>|\.\.\.|\[.*|.*\]|\{.*")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def command_lines(text: str, document: bool) -> Iterator[list[str]]:
    """The commands that a text shows, as words; comments, prompts and what a shell does around them are gone."""
    pieces = [match[1] for match in SPAN.finditer(text)]
    if document:
        pieces += [line for match in FENCE.finditer(text) for line in match[1].replace("\\\n", " ").splitlines()]
        pieces += INDENTED.findall(text)
    for piece in pieces:
        for part in re.split(r"&&|\|\||\||;", piece.replace("\n", " ")):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            while words and re.fullmatch(r"[A-Z_]+=\S*|\$|sudo|exec", words[0]):
                words.pop(0)
            if words:
                yield [words[0].rsplit("/", 1)[-1], *words[1:]]


def shown(name: str) -> list[tuple[str, list[str]]]:
    """Every command line of a program that a document or a message shows, with the file it stands in."""
    found = []
    for path in (*DOCUMENTS, *SOURCES):
        for words in command_lines(path.read_text(encoding="utf-8"), path in DOCUMENTS):
            if words[0] == name and len(words) > 1:
                found.append((relative(path), words[1:]))
    return found


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    """The names of the sessions of our noxfile."""
    spec = importlib.util.spec_from_file_location("our_noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return set(nox.registry.get())


def test_sessions_are_there(sessions: set[str]) -> None:
    lines = shown("nox")
    assert len(lines) > 20
    wrong = []
    for where, words in lines:
        if "-s" not in words:
            continue
        for name in words[words.index("-s") + 1 :]:
            if name.startswith("-"):
                break
            if name not in sessions and not re.search(r"[<A-Z.]", name) and name != "build-":
                wrong.append(f"{where}: nox -s {name}")
    assert not wrong


def problems(command: click.Command, words: list[str]) -> str | None:
    """Why a command line cannot be meant; ``None`` if its commands and options are there."""
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if PLACEHOLDER.fullmatch(words[0]):
            return None
        sub = command.get_command(context, words[0])
        if sub is None:
            return f"there is no command {words[0]!r}"
        command, context, words = sub, click.Context(sub, parent=context), words[1:]
    if isinstance(command, click.Group) and words and words[0] not in ("-h", "--help"):
        # One that runs a command of its own where none is named.
        command = command.commands.get(getattr(command, "default", ""), command)
    options = {name for item in command.get_params(context) for name in (*item.opts, *item.secondary_opts)}
    for word in words:
        if word == "--":
            break
        name = word.partition("=")[0].rstrip(",.)")
        if name.startswith("-") and not re.fullmatch(r"-\d.*|-", name) and name not in options:
            return f"there is no option {name!r}"
    return None


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_and_options_are_there(name: str) -> None:
    lines = shown(name)
    assert len(lines) > 20
    wrong = [
        f"{where}: {name} {' '.join(words)}: {why}"
        for where, words in lines
        if (why := problems(COMMANDS[name], words))
    ]
    assert not wrong


def test_this_test_finds_what_is_wrong() -> None:
    text = "Run `forkyard bulid avx2` or\n\n```sh\nA=b .nox/forkyard/bin/forkyard build avx2 --fast  # now\n```\n"
    found = [problems(forkyard_cli, words[1:]) for words in command_lines(text, document=True)]
    assert found == ["there is no command 'bulid'", "there is no option '--fast'"]


def test_tests_that_are_named_are_there() -> None:
    named = [
        (relative(path), word)
        for path in DOCUMENTS
        for word in re.findall(r"\btests/[\w./-]+\w", path.read_text(encoding="utf-8"))
    ]
    assert named
    assert not [f"{where}: {word}" for where, word in named if not (ROOT / word).exists()]


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings make, as code forges do."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            place, _, anchor = target.partition("#")
            page = (path.parent / place).resolve() if place else path
            if "://" in target or "{{" in target:
                continue
            if not page.exists() or (anchor and anchor not in anchors(page)):
                broken.append(f"{relative(path)}: {target}")
    assert not broken


def test_every_page_can_be_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for path in ROOT.glob("docs/**/*.md") if (name := relative(path)) not in text]


def test_versions_are_of_the_form_they_have() -> None:
    wrong = []
    for path in DOCUMENTS:
        for name, version in re.findall(
            r'\b(forkyard-[a-z][\w-]*)(?: |", "version": ")(\d[\w.+]*)', path.read_text(encoding="utf-8")
        ):
            # A payload's is its pin's date, commit and build key.
            form = (
                re.escape(forkyard_llm.__version__)
                if name == "forkyard-llm"
                else r"\d{4}\.\d+\.\d+\+g[0-9a-f]{9}\.k[0-9a-f]{12}"
            )
            if not re.fullmatch(form, version.rstrip(",.")):
                wrong.append(f"{relative(path)}: {name} {version}")
    assert not wrong


def test_no_document_counts_what_grows() -> None:
    # How many patches, stacks or tests there are today is wrong tomorrow.
    text = {relative(path): path.read_text(encoding="utf-8") for path in DOCUMENTS}
    counts = re.compile(r"today's \w+|\b(?:all|the) (?:\d+|two|three|\w+een|eight|nine|ten) (?:patches|stacks|tests)\b")
    assert not [f"{where}: {match[0]}" for where, page in text.items() for match in counts.finditer(page)]


def test_the_readme_lists_every_fix_and_every_stack_with_its_state() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \**`([\w-]+)`\**.*?\|.*\| (.*) \|$", text, re.MULTILINE))
    engines = dict(re.findall(r"^\| \**`([\w-]+)`\**.*?\|.*?\| ([\w.]+) \|.*\|$", text, re.MULTILINE))
    expected = {
        "Pending": "pending",
        "Submitted": "submitted",
        "Accepted": "accepted",
        "Inappropriate": "not for upstream",
    }
    wanted = {}
    for patch in sorted(ROOT.glob("patches/*/*/*.patch")):
        stack, engine = patch.parts[-3:-1]
        if engine not in ENGINES:
            continue  # For another pin of an engine, where what is offered upstream is no longer needed.
        state = re.findall(r"^Upstream-Status: (\w+)", patch.read_text(encoding="utf-8"), re.MULTILINE)[0]
        # Of a feature the stack is named, of the faults each patch.
        name = patch.stem if stack == "fixes" else stack
        both = name in wanted and wanted[name][0] != engine
        wanted[name] = ("both" if both or (name in wanted and wanted[name][0] == "both") else engine, expected[state])
    assert {name: (engines[name], rows[name][: len(state)]) for name, (_, state) in wanted.items()} == wanted
    assert set(rows) == set(wanted)
