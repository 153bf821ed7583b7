"""The pin in a recipe's file moves, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from forkyard.errors import RecipeError
from forkyard.rebasing.recipefile import moved_recipe
from forkyard.rebasing.replaying import Base
from forkyard.recipes import KnownPin, Recipe, load_recipe
from forkyard.sources.targets import with_pin

NEW = Base("3" * 40, "4" * 40, "2026-02-02")
KNOWN = KnownPin.model_validate(
    {
        "commit": NEW.commit,
        "tree": NEW.tree,
        "date": NEW.date,
        "note": "newer",
        "source": {"kind": "registry", "project": "package", "version": "2", "sha256": "5" * 64, "store": "there.git"},
    }
)
REGISTRY = """
# A package as well.
[[sources]]
kind = "registry"
project = "package"  # ours
version = "1"
sha256 = "{digest}"
store = "here.git"

# How it is built.
[build]"""


def recipe_of(root: Path, old: str = "", new: str = "", *, ends: str = "\n") -> Recipe:
    path = root / "recipes" / "mine.toml"
    text = path.read_text()
    assert old in text
    text = text.replace(old, new, 1).replace("[build]", REGISTRY.format(digest="6" * 64).strip(), 1)
    path.write_bytes(text.replace("\n", ends).encode())
    return load_recipe("mine", root)


def differing(old: bytes, new: bytes) -> list[tuple[bytes, bytes]]:
    pairs = zip(old.split(b"\n"), new.split(b"\n"), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_only_values_change(project_root: Path, ends: str) -> None:
    recipe = recipe_of(project_root, 'commit = "1', '# The pin.\ncommit = "1', ends=ends)
    before = recipe.path.read_bytes()
    after, notes = moved_recipe(recipe, with_pin(recipe, NEW.commit, [KNOWN]), NEW)
    lines = [new.strip().decode() for _, new in differing(before, after)]
    assert lines == [
        f'commit = "{NEW.commit}"',
        f'tree = "{NEW.tree}"',
        'date = "2026-02-02"',
        "build-number = 0",
        'version = "2"',
        f'sha256 = "{"5" * 64}"',
        'store = "there.git"',
    ]
    assert notes == ["build-number was set to 0: upstream's count at the new pin is not known here"]
    recipe.path.write_bytes(after)
    moved = load_recipe("mine", project_root)
    assert (moved.pin.commit, moved.pin.tree, moved.pin.date) == (NEW.commit, NEW.tree, NEW.date)


def test_there_and_back_is_the_same_file(project_root: Path) -> None:
    recipe = recipe_of(project_root, "build-number = 7", "build-number = 0")
    before, here = recipe.path.read_bytes(), Base(recipe.pin.commit, str(recipe.pin.tree), str(recipe.pin.date))
    own = KNOWN.model_copy(update={"commit": here.commit, "source": recipe.sources[-1]})
    known = [KNOWN, own]
    recipe.path.write_bytes(moved_recipe(recipe, with_pin(recipe, NEW.commit, known), NEW)[0])
    recipe = load_recipe("mine", project_root)
    recipe.path.write_bytes(moved_recipe(recipe, with_pin(recipe, here.commit, known), here)[0])
    assert recipe.path.read_bytes() == before


def test_a_registry_source_of_another_commit_goes(project_root: Path) -> None:
    recipe = recipe_of(project_root)
    after, notes = moved_recipe(recipe, with_pin(recipe, NEW.commit, []), NEW)
    # Its comment goes with it; the one of what follows stays.
    assert b"A package as well" not in after
    assert b'path = "clone"\n\n# How it is built.\n[build]\n' in after
    recipe.path.write_bytes(after)
    moved = load_recipe("mine", project_root)
    assert [source.kind for source in moved.sources] == ["local"]
    assert "its registry source package 1 has another commit and went" in notes


def test_a_source_between_others_goes_with_its_comment(project_root: Path) -> None:
    other = '\n# A clone.\n# It is large.\n[[sources]]\nkind = "local"\npath = "other"\n\n# How it is built.\n[build]'
    recipe = recipe_of(project_root)
    recipe.path.write_text(recipe.path.read_text().replace("\n# How it is built.\n[build]", other, 1))
    recipe = load_recipe("mine", project_root)
    after, _ = moved_recipe(recipe, with_pin(recipe, NEW.commit, []), NEW)
    assert b"A package as well" not in after
    assert b'path = "clone"\n\n# A clone.\n# It is large.\n[[sources]]\nkind = "local"\npath = "other"\n' in after


def test_a_recipe_without_a_registry_source_gets_none(project_root: Path) -> None:
    recipe = load_recipe("mine", project_root)
    after, notes = moved_recipe(recipe, with_pin(recipe, NEW.commit, [KNOWN]), NEW)
    assert b"registry" not in after
    assert any("package 2, which the recipe does not name" in note for note in notes)


def test_the_last_source_may_go(project_root: Path) -> None:
    recipe = recipe_of(project_root, '[[sources]]\nkind = "local"\npath = "clone"\n', "")
    after, notes = moved_recipe(recipe, with_pin(recipe, NEW.commit, []), NEW)
    assert b"[[sources]]" not in after
    assert "no source is left in the recipe: add one that has the new commit" in notes


def test_inline_tables(project_root: Path) -> None:
    path = project_root / "recipes" / "mine.toml"
    text = path.read_text()
    start, end = text.index("[pin]"), text.index("[build]")
    digest = "6" * 64
    package = f'{{ kind = "registry", project = "package", version = "1", sha256 = "{digest}", store = "here.git" }}'
    inline = f'pin = {{ commit = "{"1" * 40}" }} # here\nsources = [{{ kind = "local", path = "c" }}, {package}]\n'
    path.write_text(text[:start] + inline + text[end:])
    recipe = load_recipe("mine", project_root)
    after, _ = moved_recipe(recipe, with_pin(recipe, NEW.commit, [KNOWN]), NEW)
    recipe.path.write_bytes(after)
    moved = load_recipe("mine", project_root)
    # A tree that was not there is not added.
    assert (moved.pin.commit, moved.pin.tree, moved.sources[1]) == (NEW.commit, None, KNOWN.source)
    assert b"# here" in after


def test_no_pin_to_change(project_root: Path) -> None:
    recipe = load_recipe("mine", project_root)
    recipe.path.write_text('pin = "elsewhere"\n')
    with pytest.raises(RecipeError, match="cannot be changed by a program"):
        moved_recipe(recipe, recipe, NEW)
