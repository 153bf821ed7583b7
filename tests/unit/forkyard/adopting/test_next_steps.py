"""What is to be typed after from-branch works when it is pasted, whatever folders are called and wherever one is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from forkyard.adopting.report import document
from forkyard.cli import main
from forkyard.recipes import load_recipe

Edit = Callable[..., str]


@pytest.fixture
def spaced(world: Any, edited: Edit, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One patch, and folders with spaces in their names."""
    world.root = world.root.rename(world.root.with_name("my project"))
    world.fork.path = world.fork.path.rename(world.fork.path.with_name("my fork"))
    world.fork.commit("own : a", a_c=edited(n2="mine"))
    monkeypatch.setenv("FORKYARD_ROOT", str(world.root))
    monkeypatch.setenv("FORKYARD_CACHE", str(world.cache.root))
    return world


@pytest.fixture
def own_recipe(spaced: Any) -> Path:
    """A recipe outside of the project, called as the project's own is."""
    folder = spaced.root.with_name("my recipes")
    folder.mkdir()
    path = folder / "mine.toml"
    shutil.copy(spaced.root / "recipes" / "llama.cpp.toml", path)
    return path


def run(words: list[str]) -> Any:
    return CliRunner().invoke(main, words, catch_exceptions=False)


def test_after_a_dry_run(
    spaced: Any, own_recipe: Path, pasted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(spaced.fork.path.parent)
    done = spaced.adopt(
        repository="my fork", recipe="my recipes/mine.toml", dry_run=True, add_to_recipe=True, squash=True
    )
    (again,) = pasted(document(done)["next"])
    monkeypatch.chdir("/")
    assert run(again.words).exit_code == 0
    assert (spaced.root / "patches" / "mine" / "stack.toml").is_file()
    for name, value in {"squash": True, "add_to_recipe": True, "offline": True, "recipe": str(own_recipe)}.items():
        assert again.values[name] == value


def test_the_recipe_that_was_named_gets_the_stack(
    spaced: Any, own_recipe: Path, pasted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    projects = (spaced.root / "recipes" / "llama.cpp.toml").read_bytes()
    done = spaced.adopt(recipe=str(own_recipe), add_to_recipe=True)
    assert (spaced.root / "recipes" / "llama.cpp.toml").read_bytes() == projects
    assert load_recipe(own_recipe, spaced.root).stacks == ("mine",)
    assert str(own_recipe) in done.written
    edit, lint, lock = pasted(document(done)["next"])
    assert edit.values["recipe"] == str(own_recipe)
    assert lock.values["recipes"] == (str(own_recipe),)
    monkeypatch.chdir("/")
    for one in (edit, lint, lock):
        assert run([*one.words, *([] if one is lint else ["--offline"])]).exit_code in (0, 12)
    assert own_recipe.with_suffix(".lock.toml").is_file()
    assert (spaced.root / "work" / "mine-llama.cpp").is_dir()


def test_only_one_of_several_recipes_gets_the_stack(spaced: Any) -> None:
    """The others may have other stacks: the patches need not fit there."""
    other = spaced.root / "recipes" / "other.toml"
    text = (spaced.root / "recipes" / "llama.cpp.toml").read_text()
    other.write_text(text.replace('name = "llama.cpp"', 'name = "other"'))
    spaced.adopt(add_to_recipe=True)
    assert load_recipe("llama.cpp", spaced.root).stacks == ("mine",)
    assert load_recipe("other", spaced.root).stacks == ()
    spaced.adopt(name="two", recipe="other", add_to_recipe=True)
    assert load_recipe("llama.cpp", spaced.root).stacks == ("mine",)
    assert load_recipe("other", spaced.root).stacks == ("two",)


def test_a_recipe_that_is_a_link(spaced: Any, own_recipe: Path) -> None:
    link = spaced.root.with_name("link.toml")
    link.symlink_to(own_recipe)
    spaced.adopt(recipe=str(link), add_to_recipe=True)
    assert link.is_symlink()
    assert load_recipe(own_recipe, spaced.root).stacks == ("mine",)


@pytest.mark.parametrize("partial", [False, True])
def test_with_conflicts(spaced: Any, edited: Edit, own_recipe: Path, pasted: Callable[..., Any], partial: bool) -> None:
    pin = spaced.upstream.commit("upstream : line nine", a_c=edited(n9="theirs"))
    spaced.fork.commit("own : more", a_c=edited(n2="mine", n9="mine"))
    spaced.write_recipe(pin)
    spaced.pull(pin)
    spaced.fork.git("update-ref", "refs/remotes/up/master", pin)
    shutil.copy(spaced.root / "recipes" / "llama.cpp.toml", own_recipe)
    done = spaced.adopt(upstream="up/master", recipe=str(own_recipe), partial=partial)
    steps = pasted(document(done)["next"])
    place = spaced.root / "work" / "from-branch-mine" / "repo"
    if partial:
        edit, cd, fetch, _, refresh = steps
        assert run([*edit.words, "--offline"]).exit_code == 0
        assert Path(cd.words[0]).is_dir()
        assert fetch.words[1] == str(place)
        assert edit.values["recipe"] == refresh.values["recipe"] == str(own_recipe)
    else:
        cd, _, again = steps
        assert cd.words == [str(place)]
        assert again.values["repository"] == str(place)
        assert again.values["recipe"] == str(own_recipe)
        assert again.values["offline"]
