"""A small project with stacks, planned but never built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from forkyard.recipes import load_recipe, load_variants
from forkyard.toolchain import Toolchain
from forkyard.verifying.units import Planned, plan_units

PATCH = "Subject: {name}\n\nWhy.\n\nUpstream-Status: Pending\n{adds}\ndiff --git a/x b/x\n"


class Project:
    """Writes stacks and plans what to verify of them."""

    def __init__(self, root: Path, add_stack: Callable[..., Path], toolchain: Toolchain) -> None:
        self.root, self._add, self.toolchain = root, add_stack, toolchain
        self.variants = load_variants(root)
        self._order = 0

    def stack(self, name: str, count: int = 1, *, in_recipe: bool = True, adds: Any = None, **about: Any) -> Path:
        """A stack of ``count`` patches ``<name>-1`` ...; ``adds`` maps numbers to whole files."""
        self._order += 1
        facts = {"title": name, "intent": "x", "engines": ["llama.cpp"], "since": "2026-01-01", "order": self._order}
        text = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in (facts | about).items())
        patches = {
            f"{name}-{number}.patch": PATCH.format(
                name=number, adds=f"Adds-Files: {adds[number]}\n" if number in (adds or {}) else ""
            ).encode()
            for number in range(1, count + 1)
        }
        files = dict.fromkeys((adds or {}).values(), b"x")
        folder = self._add(self.root, name, patches=patches, files=files, about=text)
        if in_recipe:
            recipe = self.root / "recipes" / "mine.toml"
            (line,) = (line for line in recipe.read_text().splitlines() if line.startswith("stacks = "))
            names = [word.strip('" ') for word in line.removeprefix("stacks = ").strip("[]").split(",") if word]
            new = ", ".join(f'"{word}"' for word in [*names, name])
            recipe.write_text(recipe.read_text().replace(line, f"stacks = [{new}]"))
        return folder

    def plan(self, names: Sequence[str] = (), variant: str | None = "avx2") -> Planned:
        """What there is to verify."""
        recipe = load_recipe("mine", self.root)
        return plan_units(recipe, self.variants, variant, self.root, self.toolchain, names=names)


@pytest.fixture
def project(project_root: Path, add_stack: Callable[..., Path], toolchain: Toolchain) -> Project:
    return Project(project_root, add_stack, toolchain)
