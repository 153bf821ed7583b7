"""Other commits than the pin: which is meant, where it comes from, and how one leads to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.errors import ForkyardError, NetworkError, RecipeError
from forkyard.gitstore import Store
from forkyard.recipes import Recipe, RegistrySource, load_recipe
from forkyard.sources import obtain
from forkyard.sources.targets import connect_history, obtain_target, target_recipe, with_pin

from ..rebasing.lab import Lab, make_lab, text
from ..recipes.test_known import pin, write

QUIET = Console(quiet=True)


@pytest.fixture
def lab(tmp_path: Path, project_root: Path, cache: Cache) -> Lab:
    return make_lab(tmp_path, project_root, cache)


@pytest.fixture
def made(lab: Lab) -> list[str]:
    """Three commits of upstream, the first of which is pinned."""
    commits = lab.history(*({"a": text(number)} for number in range(3)))
    lab.pin(commits[0])
    return commits


def target(lab: Lab, to: str, **options: Any) -> Recipe:
    return target_recipe(load_recipe("mine", lab.root), to, lab.root, lab.cache, QUIET, **options)


def ref(lab: Lab, name: str, commit: str) -> None:
    lab.upstream._git("update-ref", name, commit)


def test_all_digits(lab: Lab, made: list[str]) -> None:
    found = target(lab, made[2])
    assert (found.pin.commit, found.pin.tree, found.pin.date) == (made[2], None, None)
    got = obtain_target(found, lab.cache, QUIET)
    assert (got.commit, got.tree) == (made[2], lab.upstream.tree_of(made[2]))


def test_the_pin_itself_is_the_recipe_itself(lab: Lab, made: list[str]) -> None:
    recipe = load_recipe("mine", lab.root)
    assert with_pin(recipe, made[0], ()) is recipe
    assert target(lab, made[0][:9]).pin == recipe.pin


def test_the_beginning_of_a_known_pin(lab: Lab, made: list[str]) -> None:
    write(lab.root, pin("b", "2026-02-02"), pin("a", "2026-01-01"))
    found = target(lab, "bbbbbbb")
    assert (found.pin.commit, found.pin.date) == ("b" * 40, "2026-02-02")
    assert isinstance(found.sources[-1], RegistrySource)
    assert found.sources[-1].version == f"1.{ord('b')}"


def test_an_ambiguous_beginning(lab: Lab, made: list[str]) -> None:
    one, other = pin("b", "2026-02-02"), pin("b", "2026-02-02").replace("b" * 40, "b" * 39 + "a")
    write(lab.root, one, other)
    with pytest.raises(RecipeError, match="the beginning of several commits") as error:
        target(lab, "bbbbbbb")
    assert "b" * 40 in str(error.value.why)


def test_a_name_is_that_ref_exactly(lab: Lab, made: list[str]) -> None:
    """`git ls-remote` also answers with refs that only end alike, and those come first."""
    ref(lab, "refs/heads/a/side", made[1])
    ref(lab, "refs/heads/side", made[2])
    assert target(lab, "side").pin.commit == made[2]
    assert target(lab, "a/side").pin.commit == made[1]
    lab.upstream._git("update-ref", "-d", "refs/heads/side")
    with pytest.raises(RecipeError, match="'side' names no commit"):
        target(lab, "side")


def test_a_tag_is_the_commit_it_stands_for(lab: Lab, made: list[str]) -> None:
    env = {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}
    lab.upstream._git("tag", "--annotate", "--message", "two", "b2", made[1], env=env)
    lab.upstream._git("update-ref", "refs/tags/b1", made[0])
    assert target(lab, "b2").pin.commit == made[1]
    assert target(lab, "b1").pin.commit == made[0]


@pytest.mark.parametrize(
    "to", ["garbage", "", "-x", "--upload-pack=touch", "abcdef0", "*", "main~9", "a b", "HEAD^{tree}"]
)
def test_no_commit(lab: Lab, made: list[str], to: str) -> None:
    write(lab.root, pin("b", "2026-02-02"))
    with pytest.raises(RecipeError, match="names no commit of mine") as error:
        target(lab, to)
    assert "bbbbbbbbbbbb (2026-02-02)" in str(error.value.why)


def test_latest_is_the_head(lab: Lab, made: list[str]) -> None:
    assert target(lab, "latest").pin.commit == made[2]
    other = Store(lab.root.parent / "other.git")
    other.ensure()
    other.fetch(str(lab.upstream.path), made[1], history=None)
    other._git("update-ref", "refs/heads/main", made[1])
    other._git("symbolic-ref", "HEAD", "refs/heads/main")
    assert target(lab, "latest", source=str(other.path)).pin.commit == made[1]


def unreachable(lab: Lab, commit: str) -> None:
    lab.pin(commit)
    text_of = lab.recipe.read_text()
    lab.recipe.write_text(text_of.replace(str(lab.upstream.path), str(lab.root / "nowhere")))


def test_latest_without_upstream_is_the_newest_known(lab: Lab, made: list[str]) -> None:
    unreachable(lab, made[0])
    write(lab.root, pin("b", "2026-02-02"), pin("a", "2026-01-01"))
    assert target(lab, "latest").pin.commit == "b" * 40
    # Never back: nobody who asks for the newest wants an older one than they have.
    write(lab.root, pin("a", "2025-01-01"))
    assert target(lab, "latest").pin.commit == made[0]


def test_latest_of_a_source_that_is_not_there(lab: Lab, made: list[str], tmp_path: Path) -> None:
    write(lab.root, pin("b", "2026-02-02"))
    with pytest.raises(NetworkError, match="the newest commit of mine cannot be told"):
        target(lab, "latest", source="file:///nowhere/at/all")


def test_offline_asks_nobody_far_away(lab: Lab, made: list[str]) -> None:
    text_of = lab.recipe.read_text()
    far = text_of.replace('kind = "local"', 'kind = "git"').replace("path = ", "url = ")
    lab.recipe.write_text(far.replace(str(lab.upstream.path), "https://example.invalid/repository"))
    write(lab.root, pin("b", "2026-02-02"))
    assert target(lab, "latest", offline=True).pin.commit == "b" * 40
    with pytest.raises(RecipeError, match="names no commit"):
        target(lab, "main", offline=True)


def test_nobody_is_known_to_have_it(lab: Lab, made: list[str]) -> None:
    recipe = load_recipe("mine", lab.root).model_copy(update={"sources": ()})
    with pytest.raises(RecipeError, match="no source is known to have"):
        obtain_target(with_pin(recipe, "9" * 40, ()), lab.cache, QUIET)


def connected(lab: Lab, one: str, other: str, **options: Any) -> bool:
    recipe = load_recipe("mine", lab.root)
    old, new = with_pin(recipe, one, ()), with_pin(recipe, other, ())
    for side in (old, new):
        obtain(side, lab.cache, QUIET)
    return connect_history(old, new, lab.cache, QUIET, **options)


def test_history_between_two_commits(lab: Lab, made: list[str]) -> None:
    assert connected(lab, made[0], made[2])
    assert Store(lab.cache.store("llama.cpp")).has(made[1], "commit")


def test_history_going_back(lab: Lab, made: list[str]) -> None:
    assert connected(lab, made[2], made[0])


def test_commits_that_have_nothing_to_do_with_each_other(lab: Lab, made: list[str]) -> None:
    assert not connected(lab, made[0], lab.commit({"b": b"another root"}))


def test_no_history_is_no_error(lab: Lab, made: list[str]) -> None:
    recipe = load_recipe("mine", lab.root)
    for commit in (made[0], made[2]):
        obtain(with_pin(recipe, commit, ()), lab.cache, QUIET)
    unreachable(lab, made[0])
    recipe = load_recipe("mine", lab.root)
    assert not connect_history(recipe, with_pin(recipe, made[2], ()), lab.cache, QUIET)
    # And one that is known already needs nobody.
    Store(lab.cache.store("llama.cpp")).fetch(str(lab.upstream.path), made[2], history=None)


def test_what_the_source_lacks(lab: Lab, made: list[str]) -> None:
    with pytest.raises(ForkyardError, match="no source delivered mine"):
        obtain_target(target(lab, "9" * 40), lab.cache, QUIET)


@pytest.mark.parametrize(
    ("to", "number"),
    [
        ("main~1", 1),
        ("main^", 1),
        ("main~2", 0),
        ("@~1", 1),
        ("latest~1", 1),
        ("main^{commit}", 2),
        ("v1^{}", 1),
        ("v1~", 0),
    ],
)
def test_steps_from_a_name(lab: Lab, made: list[str], to: str, number: int) -> None:
    env = {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}
    lab.upstream._git("tag", "--annotate", "--message", "one", "v1", made[1], env=env)
    found = target(lab, to, offline=True)
    assert found.pin.commit == made[number]
    if number:
        assert obtain_target(found, lab.cache, QUIET).commit == made[number]


def test_the_beginning_of_an_id_that_no_ref_is_at(lab: Lab, made: list[str]) -> None:
    for digits in (4, 8, 39):
        assert target(lab, made[1][:digits]).pin.commit == made[1]
    assert target(lab, f"{made[1][:8]}~1").pin.commit == made[0]
    # On a branch that HEAD does not know.
    aside = lab.commit({"a": text("aside")}, "aside", made[0])
    ref(lab, "refs/heads/aside", aside)
    ref(lab, "refs/heads/main", made[2])
    assert target(lab, aside[:10]).pin.commit == aside


def test_a_beginning_that_several_commits_have(lab: Lab, made: list[str]) -> None:
    tip, seen = made[2], dict[str, str]()
    for number in range(3000):
        tip = lab.upstream._git(
            "commit-tree", lab.upstream.tree_of(made[0]), "-p", tip,
            env={f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
                 (("NAME", "x"), ("EMAIL", "x@example.org"), ("DATE", f"{1_700_000_000 + number} +0000"))},
            stdin=f"number {number}\n".encode(),
        ).decode().strip()  # fmt: skip
        if tip[:4] in seen:
            break
        seen[tip[:4]] = tip
    ref(lab, "refs/heads/main", tip)
    with pytest.raises(RecipeError, match="the beginning of several commits") as error:
        target(lab, tip[:4])
    assert tip in str(error.value.why)
    assert seen[tip[:4]] in str(error.value.why)
    assert f"number {number}" in str(error.value.why)


def test_what_was_looked_for_and_where(lab: Lab, made: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="names no commit of mine") as error:
        target(lab, "0000000")
    assert str(lab.upstream.path) in str(error.value.why)
    with pytest.raises(RecipeError, match="names no commit of mine") as error:
        target(lab, "main~1", source=str(tmp_path))
    assert str(tmp_path) in str(error.value.why)
