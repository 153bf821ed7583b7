from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import PatchError, RecipeError
from forkyard.gitstore import Author, Store
from forkyard.locking import check, lock_recipe, make_lock, refuse_changed, warn_changed
from forkyard.recipes import load_recipe, read_lock
from forkyard.sources import obtain
from forkyard.stacks import load_stacks
from forkyard.trees import patch

FILES = {"include/llama.h": b"int x;\n", "a.c": b"1\n2\n3\n"}


class Warned(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def root(project_root: Path, forge_of: Any, add_stack: Callable[..., Path]) -> Path:
    """A project whose recipe pins a clone beside it, with one stack."""
    clone = Store(project_root / "recipes" / "clone")
    clone.ensure()
    clone.allow_any_fetch()
    forge = forge_of(clone)
    tree = forge.tree(FILES)
    commit = clone.commit(tree, None, Author("a", "a@b", "2026-01-05T00:00:00Z"), b"pin\n")
    text = (project_root / "recipes" / "mine.toml").read_text()
    text = text.replace("1" * 40, commit).replace("2" * 40, tree).replace("stacks = []", 'stacks = ["part"]')
    (project_root / "recipes" / "mine.toml").write_text(text)
    message = b"part : two\n\nUpstream-Status: Pending\nAdds-Files: ours.c\n"
    first = forge.patch(FILES, {**FILES, "a.c": b"1\ntwo\n3\n"}, message)
    add_stack(project_root, "part", patches={"a.patch": first}, files={"ours.c": b"int ours;\n"})
    return project_root


def lock(root: Path, cache: Cache, *, check_only: bool = False) -> bool:
    return lock_recipe(load_recipe("mine", root), root, cache, Silent(), check_only=check_only)


def compare(root: Path, cache: Cache, *, strict: bool, names: list[str] | None = None) -> list[str]:
    recipe = load_recipe("mine", root)
    warned = Warned()
    obtained = obtain(recipe, cache, warned)
    stacks = tuple(load_stacks(root, recipe.stacks if names is None else names, recipe.family))
    check(recipe, obtained, stacks, patch(recipe, obtained, stacks, cache), warned, strict=strict)
    return warned.warnings


def test_a_lock_is_written_once(root: Path, cache: Cache) -> None:
    assert lock(root, cache)
    before = (root / "recipes" / "mine.lock.toml").read_bytes()
    assert not lock(root, cache)
    assert (root / "recipes" / "mine.lock.toml").read_bytes() == before
    assert not lock(root, cache, check_only=True)


def test_what_a_lock_holds(root: Path, cache: Cache) -> None:
    lock(root, cache)
    found = read_lock(root / "recipes" / "mine.lock.toml")
    recipe = load_recipe("mine", root)
    assert (found.recipe, found.base_commit, found.base_tree) == ("mine", recipe.pin.commit, recipe.pin.tree)
    assert found.patched_tree != found.base_tree
    assert [file.path for file in found.stacks[0].patches] == ["llama.cpp/a.patch"]
    assert [file.path for file in found.stacks[0].files] == ["src/ours.c"]
    assert found.sources == (), "a path of this machine is no fact about the recipe"


def test_a_lock_is_the_same_from_another_cache(root: Path, cache: Cache, tmp_path: Path) -> None:
    lock(root, cache)
    before = (root / "recipes" / "mine.lock.toml").read_bytes()
    (root / "recipes" / "mine.lock.toml").unlink()
    other = Cache(tmp_path / "other")
    assert lock(root, other)
    assert (root / "recipes" / "mine.lock.toml").read_bytes() == before


def test_checking_without_a_lock(root: Path, cache: Cache) -> None:
    with pytest.raises(RecipeError, match="has no lock"):
        lock(root, cache, check_only=True)
    assert compare(root, cache, strict=False) == []


def test_a_changed_whole_file_is_named(root: Path, cache: Cache) -> None:
    lock(root, cache)
    (root / "patches" / "part" / "src" / "ours.c").write_text("int other;\n")
    (warning,) = compare(root, cache, strict=False)
    assert "src/ours.c" in warning
    assert "forkyard lock mine" in warning
    with pytest.raises(RecipeError, match="not as it was locked") as caught:
        compare(root, cache, strict=True)
    assert "src/ours.c" in str(caught.value.why)
    with pytest.raises(RecipeError):
        lock(root, cache, check_only=True)
    assert lock(root, cache)
    assert compare(root, cache, strict=True) == []


def test_other_stacks_than_the_recipes_have_no_lock_to_differ_from(root: Path, cache: Cache) -> None:
    lock(root, cache)
    assert compare(root, cache, strict=True, names=[]) == []


@pytest.mark.parametrize("strict", [False, True])
def test_another_result_from_the_same_inputs_is_always_an_error(root: Path, cache: Cache, strict: bool) -> None:
    lock(root, cache)
    path = root / "recipes" / "mine.lock.toml"
    path.write_text(path.read_text().replace(read_lock(path).patched_commit, "f" * 40))
    with pytest.raises(PatchError, match="same inputs"):
        compare(root, cache, strict=strict)


def test_make_lock_describes_every_stack_in_order(root: Path, cache: Cache, add_stack: Any) -> None:
    add_stack(root, "empty")
    recipe = load_recipe("mine", root)
    obtained = obtain(recipe, cache, Silent())
    stacks = load_stacks(root, ["part", "empty"], recipe.family)
    found = make_lock(recipe, obtained, stacks, patch(recipe, obtained, stacks, cache))
    assert [stack.name for stack in found.stacks] == ["empty", "part"]


def test_a_patch_that_is_not_the_locks_is_named_before_anything_is_made_of_it(root: Path, cache: Cache) -> None:
    recipe = load_recipe("mine", root)
    refuse_changed(recipe, root)
    lock(root, cache)
    warned = Warned()
    warn_changed([recipe], root, warned)
    refuse_changed(recipe, root)
    assert warned.warnings == []
    path = root / "patches" / "part" / "llama.cpp" / "a.patch"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"+two", b"+TWO"))
    with pytest.raises(
        RecipeError, match=r"patches/part/llama.cpp/a.patch is not what the lock of mine says"
    ) as caught:
        refuse_changed(recipe, root)
    assert "forkyard lock mine" in str(caught.value.next_step)
    warn_changed([recipe], root, warned)
    assert "patches/part/llama.cpp/a.patch" in warned.warnings[0]
    # One more, and a file that only git converted.
    path.write_bytes(whole.replace(b"\n", b"\r\n"))
    (root / "patches" / "part" / "src" / "ours.c").write_text("int other;\n")
    with pytest.raises(RecipeError, match="and 1 more are") as caught:
        refuse_changed(recipe, root)
    assert "line ends" in str(caught.value.why)
    assert "git checkout -- patches/part/llama.cpp/a.patch patches/part/src/ours.c" in str(caught.value.next_step)


def test_the_patch_that_was_cut_is_to_blame_and_not_the_one_that_fails(
    root: Path, cache: Cache, forge_of: Any, add_stack: Any
) -> None:
    forge = forge_of(Store(root / "recipes" / "clone"))
    message = b"part : x\n\nUpstream-Status: Pending\n"
    between = {**FILES, "a.c": b"1\ntwo\n3\n", "include/llama.h": b"int y;\n"}
    first = forge.patch(FILES, between, message)
    second = forge.patch(between, {**between, "include/llama.h": b"int z;\n"}, message)
    shutil.rmtree(root / "patches" / "part")
    folder = add_stack(root, "part", patches={"a.patch": first, "b.patch": second})
    lock(root, cache)
    (folder / "llama.cpp" / "a.patch").write_bytes(first[: first.rindex(b"diff --git")])
    with pytest.raises(PatchError, match="b.patch does not apply") as caught:
        lock(root, cache)
    assert "a.patch is not what the lock says" in str(caught.value.why).splitlines()[0]
    assert "git checkout" in str(caught.value.next_step)
