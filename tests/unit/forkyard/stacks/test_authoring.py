from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.errors import RecipeError, UsageError
from forkyard.journal import commit_changes
from forkyard.recipes import load_recipe
from forkyard.stacks.authoring import NewStack, check_name, new_stack, with_stack
from forkyard.stacks.model import StackFile, load_stack, stack_names


def make(root: Path, name: str = "thing", to_recipe: bool = False, **facts: Any) -> list[str]:
    values = {"engines": ("llama.cpp",), "title": "A thing", "intent": "Why not."} | facts
    return commit_changes(root, new_stack(root, NewStack(name, **values), to_recipe=to_recipe, since="2026-01-02"))


def test_a_new_stack_is_valid_and_says_what_is_to_finish(project_root: Path) -> None:
    assert make(project_root, engines=("llama.cpp", "ik_llama.cpp"), order=7, answers=("https://x.example/1",)) == [
        "patches/.gitattributes",
        "patches/thing/ik_llama.cpp/series",
        "patches/thing/llama.cpp/series",
        "patches/thing/stack.toml",
    ]
    stack = load_stack(project_root, "thing")
    about = stack.about
    assert (about.title, about.intent.strip(), about.order) == ("A thing", "Why not.", 7)
    assert (about.since, about.answers) == ("2026-01-02", ("https://x.example/1",))
    assert stack.series("llama.cpp").patches == stack.series("ik_llama.cpp").patches == ()
    assert (stack.folder / "stack.toml").read_text().count("# To finish:") == 6


def test_git_converts_no_patch_of_a_stack_in_a_foreign_project(project_root: Path) -> None:
    """Whatever the person's configuration and the project's own attributes say."""
    make(project_root)

    def git(folder: Path, *words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=true", "-c", "core.safecrlf=false")
        subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, timeout=1800)

    patch = project_root / "patches" / "thing" / "llama.cpp" / "x.patch"
    patch.write_bytes(b"one\ntwo\n")
    (project_root / ".gitattributes").write_text("* text=auto eol=crlf\n")
    (project_root / "other.txt").write_bytes(b"one\ntwo\n")
    git(project_root, "init", "--quiet")
    git(project_root, "add", "--all")
    git(project_root, "commit", "--quiet", "--message", "all")
    git(project_root.parent, "clone", "--quiet", str(project_root), "clone")
    clone = project_root.parent / "clone"
    assert (clone / patch.relative_to(project_root)).read_bytes() == b"one\ntwo\n"
    assert b"\r\n" in (clone / "other.txt").read_bytes(), "the rest stays the project's own to say"


def test_attributes_that_are_there_are_left_alone(project_root: Path) -> None:
    (project_root / "patches").mkdir(exist_ok=True)
    (project_root / "patches" / ".gitattributes").write_text("* -text diff\n")
    assert "patches/.gitattributes" not in make(project_root)
    (project_root / "patches" / ".gitattributes").unlink()
    (project_root / ".gitattributes").write_text("* -text\n")
    assert "patches/.gitattributes" not in make(project_root, name="other")


lines = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=30)
paragraphs = st.text(st.sampled_from('ab"\\\n\t\u00fc\u6f22 {}#='), min_size=1, max_size=40).filter(str.strip)


@given(lines, paragraphs)
def test_any_title_and_intent_come_back(title: str, intent: str) -> None:
    text = NewStack("thing", ("llama.cpp",), title, intent).render("2026-01-02")
    about = StackFile.model_validate(tomllib.loads(text))
    assert about.title == title
    assert about.intent.strip() == intent.strip()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "a_b",
        "a.b",
        "-a",
        "a-",
        "a--b",
        "1a",
        "a/b",
        "..",
        "none",
        "all",
        "latest",
        "worktree",
        "a" * 41,
        "a,b",
        "\u00fc",
    ],
)
def test_names_that_mean_something_else_are_refused(project_root: Path, name: str) -> None:
    with pytest.raises(UsageError):
        make(project_root, name)
    assert stack_names(project_root) == []


@pytest.mark.parametrize("name", ["a", "numa-mirror", "x2", "a" * 40])
def test_names_that_are_fine(name: str) -> None:
    check_name(name)


def test_a_taken_name_is_refused(project_root: Path, add_stack: Callable[..., Path]) -> None:
    add_stack(project_root, "thing")
    (project_root / "patches" / "notes").mkdir()
    for name in ("thing", "notes"):
        with pytest.raises(UsageError):
            make(project_root, name)


@pytest.mark.parametrize(
    "facts", [{"title": "two\nlines"}, {"title": ""}, {"requires": ("nosuch",)}, {"answers": ("a\nb",)}]
)
def test_what_a_stack_cannot_say_is_refused(project_root: Path, facts: Any) -> None:
    with pytest.raises(UsageError):
        make(project_root, **facts)
    assert list((project_root / "patches").iterdir()) == []


def test_a_required_stack_has_to_be_there_and_in_the_recipe(project_root: Path, add_stack: Callable[..., Path]) -> None:
    add_stack(project_root, "first")
    with pytest.raises(RecipeError, match="has no stack 'first'"):
        make(project_root, requires=("first",), to_recipe=True)
    make(project_root, requires=("first",))
    assert load_stack(project_root, "thing").about.requires == ("first",)


def test_it_is_put_into_the_recipe_and_nothing_else_changes(project_root: Path) -> None:
    path = project_root / "recipes" / "mine.toml"
    before = path.read_text()
    assert "recipes/mine.toml" in make(project_root, to_recipe=True)
    assert path.read_text() == before.replace("stacks = []", 'stacks = ["thing"]')
    assert load_recipe("mine", project_root).stacks == ("thing",)
    with pytest.raises(RecipeError, match="no recipe is for"):
        make(project_root, "other", engines=("ik_llama.cpp",), to_recipe=True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("stacks = []", 'stacks = ["new"]'),
        ("stacks = [ ]", 'stacks = ["new" ]'),
        ('stacks = ["a"]  # why', 'stacks = ["a", "new"]  # why'),
        ('stacks = ["a", "b",]', 'stacks = ["a", "b", "new",]'),
        ('stacks = [\n    "a",\n    "b",\n]', 'stacks = [\n    "a",\n    "b",\n    "new",\n]'),
        ('stacks = [\n    "a",\n    "b"\n]', 'stacks = [\n    "a",\n    "b",\n    "new"\n]'),
        (
            'stacks = [\n  # first\n  "a", # for a\n  "b", # for b\n  # end\n]',
            'stacks = [\n  # first\n  "a", # for a\n  "b", # for b\n  "new",\n  # end\n]',
        ),
        ('stacks = [\n  "a" # for a\n]', 'stacks = [\n  "a", # for a\n  "new"\n]'),
        ("x = 1\n'stacks' = ['a']\n[t]\nstacks = []", "x = 1\n'stacks' = ['a', \"new\"]\n[t]\nstacks = []"),
    ],
)
def test_a_recipe_is_added_to_as_it_is_written(before: str, after: str) -> None:
    assert with_stack(before, "new", "here") == after


@pytest.mark.parametrize("text", ["", "x = 1\n", "[t]\nstacks = []\n"])
def test_a_recipe_without_stacks_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="has no `stacks`"):
        with_stack(text, "new", "here")
