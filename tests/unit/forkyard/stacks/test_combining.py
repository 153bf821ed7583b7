from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import PatchError, RecipeError
from forkyard.gitstore import Store
from forkyard.stacks import Stack, load_stacks
from forkyard.stacks.applying import PatchedTree, apply_stacks
from forkyard.stacks.combining import at_home, combine_stacks, home_of, missing_homes

PIN = "1" * 40
DATE = "2026-01-05"
LINES = [b"line %d\n" % number for number in range(40)]
ABOUT = """\
title = "{name}"
intent = "to be tested"
engines = ["llama.cpp"]
since = "2026-01-01"
order = {order}
requires = {requires}
"""


def text(**changes: bytes) -> bytes:
    lines = list(LINES)
    for name, line in changes.items():
        lines[int(name.removeprefix("n"))] = line
    return b"".join(lines)


class Bench:
    """Stacks made on top of each other, as a recipe has them."""

    def __init__(self, root: Path, store: Store, forge: Any, add_stack: Callable[..., Path]) -> None:
        self.root, self.store, self._forge, self._add = root, store, forge, add_stack
        self.base: dict[str, Any] = {"a.c": text(), "z.txt": b"z\n"}
        self.tree = forge.tree(self.base)
        self._order = 0

    def stack(
        self, name: str, *states: dict[str, Any], on: dict[str, Any] | None = None, requires: Sequence[str] = ()
    ) -> None:
        """A stack whose patches lead from ``on`` through ``states``."""
        self._order += 1
        patches, before = {}, on or self.base
        for number, state in enumerate(states):
            message = f"{name} : part {number}\n\nUpstream-Status: Pending\n".encode()
            patches[f"{name}-{number}.patch"] = self._forge.patch(before, state, message)
            before = state
        about = ABOUT.format(name=name, order=self._order, requires=str(list(requires)).replace("'", '"'))
        self._add(self.root, name, patches=patches, about=about)

    def load(self, *names: str) -> list[Stack]:
        return load_stacks(self.root, names, "llama.cpp")

    def combine(self, usual: Sequence[Stack], chosen: Sequence[Stack]) -> PatchedTree:
        return combine_stacks(self.store, "llama.cpp", PIN, DATE, self.tree, usual, chosen)

    def strict(self, stacks: Sequence[Stack]) -> PatchedTree:
        return apply_stacks(self.store, "llama.cpp", PIN, DATE, self.tree, stacks)

    def read(self, done: PatchedTree, path: str = "a.c") -> bytes | None:
        return self.store.read_file(done.tree, path)


@pytest.fixture
def bench(project_root: Path, store: Store, forge: Any, add_stack: Callable[..., Path]) -> Bench:
    return Bench(project_root, store, forge, add_stack)


@pytest.fixture
def three(bench: Bench) -> Bench:
    """``a``, ``b`` and ``c``, each on the ones before, in places of one file that are far apart."""
    a1 = {**bench.base, "a.c": text(n2=b"two\n")}
    a2 = {**bench.base, "a.c": text(n2=b"two\n", n6=b"six\n")}
    b = {**a2, "a.c": text(n2=b"two\n", n6=b"six\n", n20=b"twenty\nmore\n")}
    c = {**b, "a.c": text(n2=b"two\n", n6=b"six\n", n20=b"twenty\nmore\n", n35=b"end\n")}
    bench.stack("a", a1, a2)
    bench.stack("b", b, on=a2)
    bench.stack("c", c, on=b)
    return bench


def test_the_recipes_own_stacks_are_applied_as_ever(three: Bench) -> None:
    usual = three.load("a", "b", "c")
    assert three.combine(usual, usual) == three.strict(usual)


@pytest.mark.parametrize("count", [1, 2])
def test_the_beginning_of_a_series_at_home_is_exact(three: Bench, count: int) -> None:
    usual = three.load("a", "b", "c")
    (a,) = three.load("a")
    whole = three.strict(usual)
    part = three.combine(usual, [a.first(count)])
    assert part.commit == whole.patches[count - 1].commit
    assert [patch.name for patch in part.patches] == ["a-0.patch", "a-1.patch"][:count]


def test_a_stack_is_carried_over_the_absence_of_another(three: Bench) -> None:
    usual, chosen = three.load("a", "b", "c"), three.load("a", "c")
    with pytest.raises(PatchError):
        three.strict(chosen)
    done = three.combine(usual, chosen)
    assert three.read(done) == text(n2=b"two\n", n6=b"six\n", n35=b"end\n")
    assert [(patch.stack, patch.name) for patch in done.patches] == [
        ("a", "a-0.patch"), ("a", "a-1.patch"), ("c", "c-0.patch"),
    ]  # fmt: skip
    assert done.patches[-1].commit == done.commit
    assert done.patches[-1].tree == done.tree
    assert done.patches[1].commit == three.strict(usual).patches[1].commit
    assert three.combine(usual, chosen) == done


def test_patches_that_change_the_same_line_one_after_the_other(bench: Bench) -> None:
    b = {**bench.base, "a.c": text(n20=b"twenty\nmore\n")}
    c1 = {**b, "a.c": text(n20=b"twenty\nmore\n", n30=b"once\n")}
    bench.stack("b", b)
    bench.stack("c", c1, {**c1, "a.c": text(n20=b"twenty\nmore\n", n30=b"twice\n")}, on=b)
    done = bench.combine(bench.load("b", "c"), bench.load("c"))
    assert bench.read(done) == text(n30=b"twice\n")
    assert bench.store.read_file(done.patches[0].tree, "a.c") == text(n30=b"once\n")


def test_a_stack_alone(three: Bench) -> None:
    done = three.combine(three.load("a", "b", "c"), three.load("c"))
    assert three.read(done) == text(n35=b"end\n")


def test_one_that_needs_what_is_missing_names_it(bench: Bench) -> None:
    b = {**bench.base, "a.c": text(n20=b"twenty\n")}
    bench.stack("b", b)
    bench.stack("c", {**b, "a.c": text(n20=b"twenty and one\n")}, on=b)
    with pytest.raises(PatchError, match=r"c/c-0\.patch does not apply without b") as caught:
        bench.combine(bench.load("b", "c"), bench.load("c"))
    assert caught.value.where == "a.c"
    assert "`requires`" in str(caught.value.next_step)


def test_two_outside_the_recipe_that_meet_name_each_other(bench: Bench) -> None:
    bench.stack("x", {**bench.base, "a.c": text(n20=b"mine\n")})
    bench.stack("y", {**bench.base, "a.c": text(n20=b"yours\n")})
    with pytest.raises(PatchError, match=r"y/y-0\.patch does not apply together with x"):
        bench.combine([], bench.load("x", "y"))


def test_a_stack_outside_the_recipe_stands_on_what_it_requires(three: Bench) -> None:
    """Its home is ``a`` and ``c`` without the ``b`` that usually lies between them."""
    home = {**three.base, "a.c": text(n2=b"two\n", n6=b"six\n", n35=b"end\n")}
    three.stack("x", {**home, "z.txt": b"zz\n"}, on=home, requires=["c", "a"])
    usual, chosen = three.load("a", "b", "c"), three.load("a", "c", "x")
    assert [stack.name for stack in home_of(chosen[-1], usual, chosen)] == ["a", "c"]
    done = three.combine(usual, chosen)
    assert three.read(done, "z.txt") == b"zz\n"
    every = three.combine(usual, three.load("a", "b", "c", "x"))
    assert three.read(every) == three.read(three.strict(usual))
    assert three.read(every, "z.txt") == b"zz\n"


def test_stacks_that_require_each_other(bench: Bench) -> None:
    bench.stack("x", {**bench.base, "z.txt": b"x\n"}, requires=["y"])
    bench.stack("y", {**bench.base, "a.c": text(n1=b"y\n")}, requires=["x"])
    with pytest.raises(RecipeError, match="require each other"):
        bench.combine([], bench.load("x", "y"))


def test_a_patch_that_is_not_exact_at_home_is_refused_anywhere(three: Bench) -> None:
    folder = three.root / "patches" / "c" / "llama.cpp"
    (folder / "c-0.patch").write_bytes((folder / "c-0.patch").read_bytes().replace(b"-line 35", b"-line  35"))
    with pytest.raises(PatchError, match="does not apply"):
        three.combine(three.load("a", "b", "c"), three.load("a", "c"))


def test_whole_files_come_along(bench: Bench, forge: Any, add_stack: Callable[..., Path]) -> None:
    b = {**bench.base, "a.c": text(n20=b"twenty\n")}
    bench.stack("b", b)
    message = b"c : bring a file\n\nUpstream-Status: Pending\nAdds-Files: new.c -> src/new.c\n"
    patch = forge.patch(b, {**b, "a.c": text(n20=b"twenty\n", n30=b"#include\n")}, message)
    about = ABOUT.format(name="c", order=9, requires="[]")
    add_stack(bench.root, "c", patches={"c-0.patch": patch}, files={"new.c": b"int c;\n"}, about=about)
    done = bench.combine(bench.load("b", "c"), bench.load("c"))
    assert bench.read(done, "src/new.c") == b"int c;\n"
    assert [file.path for file in done.files["c"]] == ["src/new.c"]


def test_who_is_at_home(three: Bench) -> None:
    usual = three.load("a", "b", "c")
    a, b, c = usual
    assert at_home(usual, usual)
    assert at_home(usual, [a, b.first(1)])
    assert at_home(usual, [])
    assert not at_home(usual, [a, c])
    assert not at_home(usual, [b])
    assert missing_homes(usual, [a, c]) == [b]
    assert missing_homes(usual, [c]) == [a, b]
    assert missing_homes(usual, [a]) == []
