"""Pins that can be had without their upstream repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from forkyard.errors import RecipeError
from forkyard.recipes import load_known_pins, load_recipe

PIN = """
[[pins]]
commit = "{commit}"
tree = "{tree}"
date = "{date}"
note = "why"

[pins.source]
kind = "registry"
project = "package"
version = "{version}"
sha256 = "{digest}"
store = "there.git"
"""


def pin(letter: str, date: str) -> str:
    return PIN.format(
        commit=letter * 40, tree=letter * 40, date=date, version=f"1.{ord(letter)}", digest=letter.lower() * 64
    )


def write(root: Path, *pins: str, head: str = "schema = 1\n") -> None:
    (root / "recipes" / "llama.cpp.pins.toml").write_text(head + "".join(pins))


def test_no_file(project_root: Path) -> None:
    assert load_known_pins(project_root, "llama.cpp") == ()


def test_newest_first(project_root: Path) -> None:
    write(project_root, pin("b", "2026-02-02"), pin("a", "2026-01-01"))
    found = load_known_pins(project_root, "llama.cpp")
    assert [one.commit for one in found] == ["b" * 40, "a" * 40]
    assert found[0].source.store == "there.git"
    assert load_known_pins(project_root, "ik_llama.cpp") == ()


@pytest.mark.parametrize(
    ("pins", "why"),
    [
        ((pin("a", "2026-01-01"), pin("b", "2026-02-02")), "newest first"),
        ((pin("a", "2026-01-01"), pin("a", "2026-01-01")), "listed twice"),
        ((pin("a", "yesterday"),), "pins"),
        ((pin("a", "2026-01-01").replace('note = "why"\n', ""),), "note"),
        ((pin("a", "2026-01-01").replace("[pins.source]", "[pins.sauce]"),), "sauce"),
        ((pin("a", "2026-01-01").replace('kind = "registry"', 'kind = "git"'),), "kind"),
        ((pin("A", "2026-01-01"),), "commit"),
    ],
)
def test_refused(project_root: Path, pins: tuple[str, ...], why: str) -> None:
    write(project_root, *pins)
    with pytest.raises(RecipeError) as error:
        load_known_pins(project_root, "llama.cpp")
    assert why in str(error.value)
    assert "llama.cpp.pins.toml" in str(error.value.where)


@pytest.mark.parametrize("head", ["", "schema = 2\n", "schema = 1\nextra = 1\n", "schema = \n"])
def test_another_head(project_root: Path, head: str) -> None:
    write(project_root, pin("a", "2026-01-01"), head=head)
    with pytest.raises(RecipeError):
        load_known_pins(project_root, "llama.cpp")


def test_the_projects_own(repository: Path) -> None:
    """The recipe's pin is among them, with the source the recipe has: so a rebase can come back to it."""
    recipe, found = load_recipe("llama.cpp", repository), load_known_pins(repository, "llama.cpp")
    (own,) = (one for one in found if one.commit == recipe.pin.commit)
    assert (own.tree, own.date) == (recipe.pin.tree, recipe.pin.date)
    assert own.source in recipe.sources
    assert len(found) >= 3
