from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.errors import PatchError, RecipeError
from forkyard.stacks.model import load_stack, load_stacks, stack_names

ABOUT = """\
title = "{name}"
intent = "to be tested"
engines = ["llama.cpp"]
since = "2026-01-01"
"""
Add = Callable[..., Path]


@pytest.fixture
def root(project_root: Path) -> Path:
    return project_root


def add_plain(add_stack: Add, root: Path, name: str, extra: str = "") -> Path:
    return add_stack(root, name, about=ABOUT.format(name=name) + extra)


def test_the_names_are_the_folders_with_a_stack_file(root: Path, add_stack: Add) -> None:
    assert stack_names(root) == []
    add_plain(add_stack, root, "b")
    add_plain(add_stack, root, "a")
    (root / "patches" / "notes").mkdir()
    assert stack_names(root) == ["a", "b"]


def test_what_a_stack_says(root: Path, add_stack: Add) -> None:
    add_plain(add_stack, root, "a", 'capability = "numa"\norder = 5\nrequires = ["b"]\n')
    about = load_stack(root, "a").about
    assert (about.title, about.capability, about.order, about.requires, about.since) == (
        "a",
        "numa",
        5,
        ("b",),
        "2026-01-01",
    )


def test_an_unknown_stack_is_named_with_the_nearest(root: Path, add_stack: Add) -> None:
    add_plain(add_stack, root, "numa-mirror")
    with pytest.raises(RecipeError) as caught:
        load_stack(root, "numa-miror")
    assert "'numa-mirror'" in str(caught.value.next_step)
    assert "numa-mirror" in str(caught.value.why)


def test_an_unknown_stack_in_an_empty_project(root: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_stack(root, "x")
    assert caught.value.why == "known stacks: none"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (ABOUT.format(name="a") + "surprise = 1\n", 5),
        (ABOUT.format(name="a").replace('"2026-01-01"', '"2026-02-30"'), 4),
        (ABOUT.format(name="a").replace("llama.cpp", "lama.cpp"), 3),
        (ABOUT.format(name="a") + 'order = "first"\n', 5),
        (ABOUT.format(name="a") + 'requires = ["x\\ny"]\n', 5),
    ],
)
def test_a_mistake_is_named_with_its_line(root: Path, add_stack: Add, text: str, line: int) -> None:
    folder = add_stack(root, "a", about=text)
    with pytest.raises(RecipeError) as caught:
        load_stack(root, "a")
    assert caught.value.where == f"{folder / 'stack.toml'}:{line}"


def test_a_missing_key_and_broken_toml(root: Path, add_stack: Add) -> None:
    add_stack(root, "a", about='title = "a"\n')
    add_stack(root, "b", about="title = \n")
    with pytest.raises(RecipeError, match=r"intent|engines|since"):
        load_stack(root, "a")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_stack(root, "b")


def test_stacks_apply_by_order_then_name_whatever_the_request(root: Path, add_stack: Add) -> None:
    add_plain(add_stack, root, "c", "order = 1\n")
    add_plain(add_stack, root, "b")
    add_plain(add_stack, root, "a")
    for names in (["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a", "b"]):
        assert [stack.name for stack in load_stacks(root, names, "llama.cpp")] == ["c", "a", "b"]


def test_a_requirement_that_is_not_chosen(root: Path, add_stack: Add) -> None:
    folder = add_plain(add_stack, root, "a", 'requires = ["b"]\n')
    add_plain(add_stack, root, "b")
    with pytest.raises(RecipeError, match="needs stack 'b'") as caught:
        load_stacks(root, ["a"], "llama.cpp")
    assert caught.value.where == str(folder / "stack.toml")
    assert len(load_stacks(root, ["a", "b"], "llama.cpp")) == 2


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a"]])
def test_stacks_that_conflict(root: Path, add_stack: Add, names: list[str]) -> None:
    add_plain(add_stack, root, "a")
    add_plain(add_stack, root, "b", 'conflicts = ["a"]\n')
    with pytest.raises(RecipeError, match="cannot be built together"):
        load_stacks(root, names, "llama.cpp")


def test_a_stack_for_another_engine(root: Path, add_stack: Add) -> None:
    add_plain(add_stack, root, "a")
    with pytest.raises(RecipeError, match=r"nothing for ik_llama\.cpp"):
        load_stacks(root, ["a"], "ik_llama.cpp")
    assert load_stack(root, "a").series("ik_llama.cpp").patches == ()


# -- series --------------------------------------------------------------------------------------------


def test_a_series_keeps_its_order_and_may_hold_comments(root: Path, add_stack: Add) -> None:
    series = "# first\nz.patch   # why\n\n  a.patch\n"
    add_stack(root, "s", patches={"a.patch": b"A", "z.patch": b"Z"}, series=series)
    patches = load_stack(root, "s").series("llama.cpp").patches
    assert [(patch.name, patch.data) for patch in patches] == [("z.patch", b"Z"), ("a.patch", b"A")]
    assert patches[1].sha256 == hashlib.sha256(b"A").hexdigest()


def test_a_missing_patch_is_named_with_its_line_and_the_nearest(root: Path, add_stack: Add) -> None:
    folder = add_stack(root, "s", patches={"first.patch": b""}, series="#\nfrist.patch\n")
    with pytest.raises(PatchError) as caught:
        load_stack(root, "s").series("llama.cpp")
    assert caught.value.where == f"{folder / 'llama.cpp' / 'series'}:2"
    assert caught.value.next_step == "did you mean first.patch?"


def test_a_patch_from_elsewhere_is_refused(root: Path, add_stack: Add) -> None:
    add_stack(root, "s", patches={"a.patch": b""}, series="../llama.cpp/a.patch\n")
    with pytest.raises(PatchError, match="not there"):
        load_stack(root, "s").series("llama.cpp")


def test_an_unlisted_patch_is_refused(root: Path, add_stack: Add) -> None:
    add_stack(root, "s", patches={"a.patch": b"", "b.patch": b""}, series="a.patch\n")
    with pytest.raises(PatchError, match=r"b\.patch is in no series"):
        load_stack(root, "s").series("llama.cpp")


def test_a_missing_series(root: Path, add_stack: Add) -> None:
    folder = add_stack(root, "s")
    (folder / "llama.cpp" / "series").unlink()
    with pytest.raises(PatchError, match="no series"):
        load_stack(root, "s").series("llama.cpp")


def test_a_patch_listed_twice_is_refused(root: Path, add_stack: Add) -> None:
    add_stack(root, "s", patches={"a.patch": b""}, series="a.patch\na.patch\n")
    with pytest.raises(PatchError, match="twice"):
        load_stack(root, "s").series("llama.cpp")


def test_whole_files(root: Path, add_stack: Add) -> None:
    add_stack(root, "s", files={"d/x.c": b"int x;"})
    stack = load_stack(root, "s")
    assert stack.whole_file("d/x.c") == b"int x;"
    with pytest.raises(PatchError, match=r"no file d/y\.c"):
        stack.whole_file("d/y.c")
