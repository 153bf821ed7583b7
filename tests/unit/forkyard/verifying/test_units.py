from __future__ import annotations

from typing import Any

import pytest

from forkyard.errors import RecipeError, UsageError
from forkyard.recipes import load_variants
from forkyard.verifying.units import base_unit, default_variant


def names(planned: Any) -> list[list[str]]:
    return [[str(role) for role in unit.roles] for unit in planned.units]


def test_one_stack_is_its_own_combination(project: Any) -> None:
    project.stack("a", 3)
    assert names(project.plan()) == [["a 1/3 a-1"], ["a 2/3 a-2"], ["a 3/3 a-3", "alone a", "combination"]]


def test_every_beginning_every_stack_every_pair_and_all(project: Any) -> None:
    project.stack("a", 2)
    project.stack("b", 1)
    project.stack("c", 2)
    assert names(project.plan()) == [
        ["a 1/2 a-1"],
        ["a 2/2 a-2", "alone a"],
        ["b 1/1 b-1", "pair a+b"],
        ["c 1/2 c-1"],
        ["c 2/2 c-2", "combination"],
        ["alone b"],
        ["alone c"],
        ["pair a+c"],
        ["pair b+c"],
    ]


def test_a_unit_with_several_roles_keeps_what_its_series_stands_on(project: Any) -> None:
    project.stack("a")
    project.stack("b")
    unit = project.plan().units[1]
    assert [role.kind for role in unit.roles] == ["prefix", "pair", "combination"]
    assert unit.home == ("a",)


def test_what_is_applied(project: Any) -> None:
    project.stack("a", 2)
    project.stack("b", 2)
    units = {unit.name: unit for unit in project.plan().units}

    def applied(name: str) -> list[str]:
        stacks = units[name].plan.stacks
        return [patch.name for stack in stacks for patch in stack.series("llama.cpp").patches]

    assert applied("b 1/2 b-1") == ["a-1.patch", "a-2.patch", "b-1.patch"]
    assert applied("alone b") == ["b-1.patch", "b-2.patch"]
    assert not units["b 1/2 b-1"].complete
    assert units["b 2/2 b-2"].complete
    assert units["b 1/2 b-1"].home == ("a",)
    assert len({unit.plan.key for unit in units.values()}) == len(units)


def test_tests_that_differ_make_a_unit_of_their_own(project: Any) -> None:
    project.stack("a", test=["tests/a.py"])
    project.stack("b", test=["tests/b.py", "tests/both.py"])
    units = {unit.name: unit for unit in project.plan().units}
    assert units["b 1/1 b-1"].selection.files == ("tests/b.py", "tests/both.py")
    assert units["pair a+b"].selection.files == ("tests/a.py", "tests/b.py", "tests/both.py")
    assert [str(role) for role in units["pair a+b"].roles] == ["pair a+b", "combination"]
    assert units["pair a+b"].plan.key == units["b 1/1 b-1"].plan.key
    assert units["b 1/1 b-1"].selection.patches == ("a-1", "b-1")


def test_a_beginning_runs_only_tests_about_what_it_has(project: Any) -> None:
    project.stack("a", 2, test=["tests/a.py"])
    first, second = project.plan().units
    assert (first.selection.patches, first.selection.complete) == (("a-1",), False)
    assert (second.selection.patches, second.selection.complete) == (("a-1", "a-2"), True)


def test_stacks_outside_the_recipe(project: Any) -> None:
    project.stack("a")
    project.stack("b")
    project.stack("x", 2, in_recipe=False, requires=["b"])
    project.stack("y", in_recipe=False, conflicts=["b"])
    planned = project.plan()
    found = names(planned)
    assert ["x 1/2 x-1"] in found
    assert ["x 2/2 x-2", "alone x", "pair b+x"] in found
    assert ["pair a+x"] in found
    assert ["b 1/1 b-1", "pair a+b", "combination"] in found
    assert [pair for pair, _ in planned.left_out] == [("b", "y"), ("x", "y")]
    assert planned.left_out[0][1] == "y says that it conflicts with b"


def test_only_what_has_to_do_with_a_named_stack(project: Any) -> None:
    project.stack("a", 2)
    project.stack("b", 2)
    project.stack("x", in_recipe=False)
    assert names(project.plan(["x"])) == [["x 1/1 x-1", "alone x"], ["pair a+x"], ["pair b+x"]]
    assert ["a 1/2 a-1"] not in names(project.plan(["b"]))
    with pytest.raises(RecipeError, match="no stack"):
        project.plan(["nowhere"])
    project.stack("other", in_recipe=False, engines=["ik_llama.cpp"])
    with pytest.raises(UsageError, match="has nothing for llama"):
        project.plan(["other"])
    assert names(project.plan(["x"])) == [["x 1/1 x-1", "alone x"], ["pair a+x"], ["pair b+x"]]


def test_a_stack_is_not_tried_without_what_is_essential(project: Any) -> None:
    project.stack("a", 2)
    project.stack("b")
    project.stack("c")
    recipe = project.root / "recipes" / "mine.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("stacks = ", 'essential = ["a"]\nstacks = ', 1))
    assert names(project.plan()) == [
        ["a 1/2 a-1"],
        ["a 2/2 a-2", "alone a"],
        ["b 1/1 b-1", "alone b", "pair a+b"],
        ["c 1/1 c-1", "pair b+c", "combination"],
        ["alone c", "pair a+c"],
    ]
    recipe.write_text(text.replace("stacks = ", 'essential = ["x"]\nstacks = ', 1))
    with pytest.raises(RecipeError, match="`essential` names 'x', which is not in `stacks`"):
        project.plan()


def test_a_recipe_without_stacks_has_nothing_to_verify(project: Any) -> None:
    assert names(project.plan()) == []


def test_a_stack_without_patches_yet(project: Any) -> None:
    project.stack("a", 0)
    (unit,) = project.plan().units
    assert [str(role) for role in unit.roles] == ["alone a", "combination"]


def test_a_later_patchs_file_does_not_touch_a_beginning(project: Any) -> None:
    folder = project.stack("a", 3, adds={2: "two.c"})
    before = {unit.name: unit.plan.key for unit in project.plan().units}
    (folder / "src" / "two.c").write_bytes(b"changed")
    after = {unit.name: unit.plan.key for unit in project.plan().units}
    assert [name for name in before if before[name] != after[name]] == ["a 2/3 a-2", "a 3/3 a-3"]


def test_the_ground_of_a_series(project: Any) -> None:
    project.stack("a", 2)
    project.stack("b", 2, test=["tests/b.py"])
    units = {unit.name: unit for unit in project.plan().units}
    assert base_unit(units["a 1/2 a-1"], project.root, project.variants) is None
    base = base_unit(units["b 1/2 b-1"], project.root, project.variants)
    assert base is not None
    assert (base.name, base.selection.files) == ("base a", ())
    assert base.plan.key == units["a 2/2 a-2"].plan.key


@pytest.mark.parametrize(
    ("host", "expected"),
    [(["avx512"], "avx512"), (["avx2"], "avx2"), (["sse42"], "sse42"), ([], None)],
)
def test_the_usual_variant(
    project: Any, monkeypatch: pytest.MonkeyPatch, host: list[str], expected: str | None
) -> None:
    variants = load_variants(project.root)
    features = tuple(feature for name in host for feature in variants.features_of(name))
    monkeypatch.setattr("forkyard.verifying.units.native_features", lambda _: features)
    if expected is None:
        with pytest.raises(UsageError, match="none of the usual variants"):
            default_variant(variants, "llama.cpp", project.toolchain)
    else:
        assert default_variant(variants, "llama.cpp", project.toolchain) == expected


def test_the_variant_that_a_stacks_tests_need(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkyard.verifying.units.native_features", lambda _: project.variants.features_of("avx2"))
    project.stack("a")
    project.stack("b", **{'test-variants."llama.cpp"': "sse42"})
    built = {unit.name: unit.plan.variant.name for unit in project.plan(variant=None).units}
    assert built == {
        "a 1/1 a-1": "avx2",
        "b 1/1 b-1": "sse42",
        "alone b": "sse42",
        "combination": "avx2",
    }
    # Who names one gets it.
    assert {unit.plan.variant.name for unit in project.plan().units} == {"avx2"}
