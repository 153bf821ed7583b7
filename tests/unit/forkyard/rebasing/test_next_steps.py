"""What is to be typed after a rebase works when it is pasted."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from forkyard.cli import main
from forkyard.console import Console
from forkyard.errors import UsageError
from forkyard.rebasing.report import next_steps
from forkyard.rebasing.session import Session
from forkyard.recipes import load_recipe

from .lab import Lab, git, numbered


@pytest.fixture
def spaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A project with a space in its path, and a recipe of somebody's own elsewhere."""
    lab.root = lab.root.rename(lab.root.with_name("my project"))
    monkeypatch.setenv("FORKYARD_ROOT", str(lab.root))
    monkeypatch.setenv("FORKYARD_CACHE", str(lab.cache.root))
    return lab


def own(lab: Lab) -> Path:
    folder = lab.root.with_name("my recipes")
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(lab.recipe, folder / "mine.toml"))


def run(words: list[str]) -> Any:
    return CliRunner().invoke(main, words, catch_exceptions=False)


def test_a_dry_run_with_another_source_is_repeated_with_it(
    spaced: Lab, pasted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spaced.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    spaced.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    recipe = own(spaced)
    monkeypatch.chdir(recipe.parent)
    session = Session(spaced.root, "mine.toml", spaced.cache, Console(quiet=True))
    done = session.start(made[1], source="../upstream.git", offline=True, retire=True, dry_run=True)
    (again,) = pasted(next_steps(done))
    assert Path(again.values["source"]).is_absolute()
    assert spaced.upstream.path.samefile(again.values["source"])
    assert (again.values["offline"], again.values["retire"], again.values["dry_run"]) == (True, True, False)
    monkeypatch.chdir("/")
    assert run([*again.words, "--quiet"]).exit_code == 0
    assert load_recipe(recipe, spaced.root).pin.commit == made[1]
    assert load_recipe("mine", spaced.root).pin.commit == made[0]


def test_of_some_stacks_to_a_folder(spaced: Lab, pasted: Callable[..., Any], tmp_path: Path) -> None:
    made = spaced.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    spaced.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    done = spaced.session().start(made[1], out=tmp_path / "the patches", dry_run=True)
    (again,) = pasted(next_steps(done))
    assert again.values["out"] == tmp_path / "the patches"
    assert run([*again.words, "--quiet"]).exit_code == 0
    assert (tmp_path / "the patches" / "part" / "llama.cpp" / "one.patch").is_file()


def test_a_recipe_by_its_path_is_named_by_it(spaced: Lab, pasted: Callable[..., Any]) -> None:
    made = spaced.history({"a.c": numbered()}, {"a.c": numbered(l5="theirs")})
    spaced.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    recipe = own(spaced)
    session = Session(spaced.root, str(recipe), spaced.cache, Console(quiet=True))
    with pytest.raises(UsageError) as caught:
        session.abort()
    assert f"'{recipe}'" in str(caught.value.next_step)
    done = session.start(made[1])
    cd, resume = pasted(next_steps(done))
    assert Path(cd.words[0]).is_dir()
    assert resume.values["recipe"] == str(recipe)
    with pytest.raises(UsageError) as caught:
        session.start(made[1])
    assert f"`forkyard rebase '{recipe}' --continue`" in str(caught.value.next_step)


def test_after_the_end(spaced: Lab, pasted: Callable[..., Any]) -> None:
    made = spaced.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    spaced.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    done = spaced.session().start(made[1])
    assert [one.program for one in pasted(next_steps(done))] == ["forkyard"], "there is no git to ask"
    subprocess.run(["git", "init", "--quiet", str(spaced.root)], check=True)
    diff, verify = pasted(next_steps(done))
    assert subprocess.run(["git", *diff.words], cwd="/", check=False, capture_output=True).returncode == 0
    assert verify.values["ref"] == "mine"


def test_an_edit_of_a_recipe_given_by_its_path(
    spaced: Lab, pasted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stack edit`, `refresh` and `lock` name the recipe and the folder that were named, from wherever one is."""
    made = spaced.history({"a.c": numbered()})
    spaced.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    recipe = own(spaced)
    monkeypatch.chdir(recipe.parent)
    words = ["part", "--engine", "llama.cpp", "--recipe", "mine.toml", "--json"]
    assert run(["lock", "mine.toml", "--offline"]).exit_code == 0
    answer = json.loads(run(["stack", "edit", *words, "--path", "my edit"]).stdout)
    monkeypatch.chdir("/")
    cd, refresh = pasted(answer["next"])
    place = recipe.parent / "my edit"
    assert cd.words == [str(place)]
    assert (refresh.values["path"], refresh.values["recipe"]) == (place, str(recipe))
    (place / "a.c").write_bytes(numbered(l5="mine", l9="more"))
    git(place, "commit", "--quiet", "--all", "--amend", "--no-edit")
    done = json.loads(run([*refresh.words, "--json"]).stdout)
    (lock,) = pasted(done["next"])
    assert lock.values["recipes"] == (str(recipe),)
    assert run([*lock.words, "--check"]).exit_code == 3
    assert run(lock.words).exit_code == 0
    assert run([*lock.words, "--check"]).exit_code == 0
