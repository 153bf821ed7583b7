"""``forkyard stack verify`` on the toy: every beginning, every pair; the first bad patch is named, and only run once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ..toy import VARIANT, Answer, Toy, finish, git

VERIFY = ("stack", "verify", "--variant", VARIANT, "--no-ccache")
TEST = "tests/toy/test_parts.py"
# Loads the engine under test and asks its parts what they make of 4.
PARTS = """\
import ctypes, json, os, pathlib, zipfile
import pytest

@pytest.fixture
def part(tmp_path):
    with zipfile.ZipFile(os.environ["FORKYARD_PAYLOAD_LLAMA_CPP"]) as wheel:
        wheel.extractall(tmp_path)
    (package,) = tmp_path.glob("forkyard_toy_*[!o]")
    library = json.loads((package / "manifest.json").read_text())["libraries"]["llama"]
    assert os.environ["FORKYARD_TEST_VARIANT"] == "sse42"
    return lambda number: ctypes.CDLL(str(package / library))[f"_Z10toy_part_{number}i"](4)

"""


def test_of(*cases: tuple[str | None, int, int]) -> str:
    """A test file: (patch it is marked with, part, what it must make of 4)."""
    text = PARTS
    for number, (patch, which, value) in enumerate(cases):
        mark = "" if patch is None else f"@pytest.mark.patch({patch!r})\n" if patch else "@pytest.mark.patch()\n"
        text += f"{mark}def test_{number}(part):\n    assert part({which}) == {value}\n\n"
    return text


test_of.__test__ = False  # type: ignore[attr-defined]


def verify(toy: Toy, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Verify the toy; the facts of its one recipe."""
    answer = toy.run(*VERIFY, *arguments)
    assert answer.status == status, f"exit {answer.status}\n{answer.stdout}\n{answer.stderr}"
    (recipe,) = answer.json["recipes"]
    assert recipe["ok"] == (status == 0)
    assert isinstance(recipe, dict)
    return recipe


def states(recipe: dict[str, Any]) -> dict[str, str]:
    """State of each unit, by all its names; a ``*`` for those taken from the cache."""
    found = {}
    for unit in recipe["units"]:
        for role in unit["roles"]:
            name = "+".join(role["stacks"]) + (f" {role['number']}" if role["kind"] == "prefix" else "")
            found["all" if role["kind"] == "combination" else name] = unit["state"] + "*" * unit["cached"]
    return found


def unit_of(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """The unit whose first name it is."""
    (found,) = (unit for unit in recipe["units"] if unit["name"].startswith(name))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def three(toy: Toy) -> Toy:
    """Stacks a, b and c on each other; b and c change neighbouring lines, so that c is not exact without b."""
    toy.stack(
        "a",
        {
            "a-one": [("src/part3.cpp", "value + 3", "value + 13")],
            "a-two": [("src/part4.cpp", "value + 4", "value + 14")],
        },
        order=1,
        test=[TEST],
    )
    toy.stack("b", {"b-one": [("src/part1.cpp", "+ 1;", "+ 11;")]}, on="a", order=2)
    toy.stack(
        "c", {"c-one": [("src/part1.cpp", '#include "parts.h"', '#include "parts.h"\n// c\n\n')]}, on="b", order=3
    )
    toy.write_test(TEST, test_of(("a-one", 3, 17), ("a-two", 4, 18), (None, 4, 18)))
    return toy


def test_all_is_well_and_then_nothing_is_done(three: Toy) -> None:
    recipe = verify(three)
    assert states(recipe) == {
        "a 1": "good", "a 2": "good", "b 1": "no_test", "c 1": "no_test",
        "a": "good", "b": "no_test", "c": "no_test",
        "a+b": "good", "a+c": "good", "b+c": "no_test", "all": "good",
    }  # fmt: skip
    assert recipe["first_bad"] == recipe["blocked"] == []
    first, second = recipe["units"][:2]
    assert (first["result"]["tests"]["passed"], first["result"]["tests"]["deselected"]) == (1, 2)
    assert (second["result"]["tests"]["passed"], second["result"]["tests"]["deselected"]) == (3, 0)
    # The stack alone is what its series ends with; it is verified once.
    assert [role["kind"] for role in second["roles"]] == ["prefix", "alone"]
    assert list((three.cache / "scratch").iterdir()) == []

    before = {path: path.stat().st_mtime_ns for path in three.cache.rglob("*") if path.is_file()}
    again = verify(three)
    assert set(states(again).values()) == {"good*", "no_test*"}
    assert [unit["key"] for unit in again["units"]] == [unit["key"] for unit in recipe["units"]]
    assert {path: path.stat().st_mtime_ns for path in three.cache.rglob("*") if path.is_file()} == before


def test_a_build_with_stacks_that_are_not_neighbours(three: Toy) -> None:
    """`build --stacks a,c`: c's patch is carried over the absence of b, whose change is not in the engine."""
    built = three.build("--stacks", "a,c").built
    tree = three.cache / "trees" / "toy" / "src"
    assert tree.joinpath("part1.cpp").read_text().startswith('#include "parts.h"\n// c\n')
    assert "+ 1;" in tree.joinpath("part1.cpp").read_text()
    assert "+ 13;" in tree.joinpath("part3.cpp").read_text()
    again = three.build("--stacks", "c,a").built
    assert (again["fresh"], again["sha256"]) == (False, built["sha256"])
    whole = three.build().built
    assert whole["key"] != built["key"]
    assert "+ 11;" in tree.joinpath("part1.cpp").read_text()
    # The same bytes in a cache of its own: what was built between leaves no trace.
    three.cache = three.cache.with_name("cache2")
    assert three.build("--stacks", "a,c").built["sha256"] == built["sha256"]


@pytest.mark.deep
def test_a_middle_patch_that_does_not_build(three: Toy) -> None:
    """It is named with the compiler's words; what comes after is not called good, other series go on."""
    three.stack(
        "a",
        {
            "a-one": [("src/part3.cpp", "value + 3", "value + 13")],
            "a-bad": [("src/part4.cpp", "value + 4", "valeu + 4")],
            "a-more": [("src/part3.cpp", "value + 13", "value + 23")],
            "a-mend": [("src/part4.cpp", "valeu + 4", "value + 14")],
        },
        order=1,
        test=[TEST],
    )
    for name in ("b", "c"):
        three.stack(name, {f"{name}-one": [(f"src/part{2 if name == 'b' else 1}.cpp", ";", f"; // {name}")]},
                    on="a" if name == "b" else "b", order=2)  # fmt: skip
    three.write_test(TEST, test_of(("a-one", 3, 17), ("a-more", 3, 27), (None, 4, 18)).replace("== 17", "in (17, 27)"))
    recipe = verify(three, status=12)
    found = states(recipe)
    assert {name: found[name] for name in ("a 1", "a 2", "a 3", "a 4", "b 1", "c 1", "all")} == {
        "a 1": "good", "a 2": "bad", "a 3": "not_run", "a 4": "good", "b 1": "no_test", "c 1": "no_test", "all": "good",
    }  # fmt: skip
    (bad,) = recipe["first_bad"]
    assert (bad["stack"], bad["patch"], bad["number"], bad["of"], bad["stage"]) == ("a", "a-bad.patch", 2, 4, "build")
    assert "valeu" in bad["why"]
    assert "a-bad" in unit_of(recipe, "a 3")["reason"]

    # Failures are run again, unless they are believed; what was good is not.
    again = states(verify(three, "--cached-failures", status=12))
    assert (again["a 1"], again["a 2"], again["a 3"], again["a 4"]) == ("good*", "bad*", "not_run", "good*")
    assert states(verify(three, status=12))["a 2"] == "bad"
    stopped = verify(three, "--first", status=12)
    assert {unit["state"] for unit in stopped["units"][2:]} == {"not_run"}


def test_a_patch_that_breaks_a_test(three: Toy) -> None:
    three.write_test(TEST, test_of(("a-one", 3, 17), ("", 1, 13), ("a-two", 4, 19)))
    recipe = verify(three, "a", status=12)
    (bad,) = recipe["first_bad"]
    assert (bad["patch"], bad["stage"], bad["what"]) == ("a-two.patch", "test", "1 of its 3 tests fail")
    assert f"{TEST}::test_2" in bad["why"]
    assert "assert 18 == 19" in bad["why"]
    (failure,) = unit_of(recipe, "a 2")["result"]["tests"]["failures"]
    assert failure["id"] == f"{TEST}::test_2"
    assert states(recipe)["a 1"] == "good"
    # Only what has to do with the stack that was named.
    assert set(states(recipe)) == {"a 1", "a 2", "a", "a+b", "a+c", "all"}

    three.write_test(TEST, test_of(("a-one", 3, 17), ("", 1, 13), ("a-two", 4, 18)))
    mended = verify(three, "a", status=12)
    # part 1 is b's to change, which the test that holds on any engine finds out.
    assert states(mended)["a 2"] == "good"
    assert states(mended)["a+b"] == "bad"
    assert mended["first_bad"] == []


@pytest.mark.deep
def test_tests_that_do_not_run_are_no_pass(three: Toy) -> None:
    three.write_test(TEST, test_of(("a-two", 4, 18)).replace("def test_0", "@pytest.mark.skip\ndef test_0"))
    recipe = verify(three, "a", status=12)
    one, two = unit_of(recipe, "a 1"), unit_of(recipe, "a 2")
    assert (one["state"], one["error"], one["result"]["tests"]["deselected"]) == ("no_test", False, 1)
    assert (two["state"], two["error"], two["result"]["tests"]["skipped"]) == ("no_test", True, 1)
    assert recipe["first_bad"] == []

    three.write_test(TEST, test_of(("a-tow", 4, 18)))
    assert "which is no patch of any stack" in unit_of(verify(three, "a", status=12), "a 2")["result"]["problem"]["why"]
    (three.root / TEST).unlink()
    assert "not found" in unit_of(verify(three, "a", status=12), "a 2")["result"]["problem"]["why"]


@pytest.mark.deep
def test_pairs_that_conflict_and_pairs_that_only_build_apart(toy: Toy) -> None:
    use = [
        ("src/part1.cpp", "int toy_part_1", "int toy_part_3(int);\nint toy_part_1"),
        ("src/part1.cpp", "+ 1;", "+ toy_part_3(1);"),
    ]
    toy.stack("base", {"base-one": [("src/part2.cpp", "+ 2;", "+ 12;")]}, order=1)
    toy.stack("calls", {"calls-one": use}, on="base", order=2)
    toy.stack(
        "gone", {"gone-one": [("src/part3.cpp", "int toy_part_3", "static int toy_part_3")]}, order=3, in_recipe=False
    )
    toy.stack("meets", {"meets-one": [("src/part1.cpp", "+ 1;", "+ 111;")]}, order=4, in_recipe=False)
    toy.stack(
        "refuses", {"refuses-one": [("src/part4.cpp", "4;", "44;")]}, order=5, conflicts=["gone"], in_recipe=False
    )
    recipe = verify(toy, status=12)
    found = states(recipe)
    assert {name for name, state in found.items() if state == "bad"} == {"calls+gone", "calls+meets"}
    apart, conflict = unit_of(recipe, "pair calls+gone"), unit_of(recipe, "pair calls+meets")
    assert apart["result"]["stage"] == "build"
    assert "toy_part_3" in apart["result"]["problem"]["why"]
    assert conflict["result"]["stage"] == "apply"
    assert conflict["result"]["problem"]["what"] == "meets/meets-one.patch does not apply together with calls"
    assert conflict["result"]["problem"]["where"] == "src/part1.cpp"
    assert recipe["left_out"] == [{"stacks": ["gone", "refuses"], "why": "refuses says that it conflicts with gone"}]
    assert recipe["first_bad"] == []
    only = verify(toy, "--no-build", status=12)
    assert {name for name, state in states(only).items() if state == "bad"} == {"calls+meets"}


def test_a_series_on_a_bad_one_is_not_blamed(toy: Toy) -> None:
    toy.stack("a", {"a-one": [("src/part3.cpp", "value + 3", "valeu + 3")]}, order=1)
    toy.stack(
        "b", {f"b-{word}": [("src/part4.cpp", ";", f"; // {word}")] for word in ("one", "two", "six")}, on="a", order=2
    )
    recipe = verify(toy, status=12)
    assert [bad["patch"] for bad in recipe["first_bad"]] == ["a-one.patch"]
    assert [one["stack"] for one in recipe["blocked"]] == ["b"]
    found = states(recipe)
    assert (found["b 1"], found["b 2"], found["all"], found["b"]) == ("not_run", "not_run", "bad", "no_test")
    # Asked about b alone, its ground is looked into.
    toy.stack("b", {"b-one": [("src/part4.cpp", ";", "; // one")]}, on="a", order=2)
    shutil.rmtree(toy.cache / "verified")
    recipe = verify(toy, "b", status=12)
    assert recipe["first_bad"] == []
    assert recipe["blocked"] == [{"stack": "b", "by": "base a"}]
    # Mended, b is b's again.
    toy.stack("a", {"a-one": [("src/part3.cpp", "value + 3", "value + 33")]}, order=1)
    toy.stack("b", {"b-one": [("src/part4.cpp", "value + 4", "valeu + 4")]}, on="a", order=2)
    assert [bad["patch"] for bad in verify(toy, "b", status=12)["first_bad"]] == ["b-one.patch"]


def test_trees_that_are_the_same_are_built_once(toy: Toy) -> None:
    toy.stack("a", {"a-one": [("src/part3.cpp", "value + 3", "value + 33")], "a-nothing": []}, order=1, test=[TEST])
    toy.write_test(TEST, test_of(("a-one", 3, 37)))
    one, two = verify(toy)["units"]
    assert one["result"]["tree"] == two["result"]["tree"]
    assert one["result"]["commit"] != two["result"]["commit"]
    assert one["result"]["wheel_sha256"] == two["result"]["wheel_sha256"]
    assert one["build_key"] != two["build_key"]


def test_only_what_a_change_touches(three: Toy) -> None:
    project = three.root
    git(project, "init", "--quiet", "--initial-branch=main")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "Begin")
    verify(three, "--no-tests")
    nothing = verify(three, "--changed")
    assert set(states(nothing).values()) == {"not_touched"}

    def touched(*arguments: str) -> set[str]:
        found = states(verify(three, "--no-build", "--changed", *arguments))
        return {name for name, state in found.items() if state != "not_touched"}

    three.stack("b", {"b-one": [("src/part1.cpp", "+ 1;", "+ 12;")]}, on="a", order=2)
    three.stack(
        "c", {"c-one": [("src/part1.cpp", '#include "parts.h"', '#include "parts.h"\n// c\n\n')]}, on="b", order=3
    )
    # a+c is carried over b's absence: b is part of what it is made from. c's patch has another preimage now.
    assert touched() == {"b 1", "c 1", "b", "c", "a+b", "a+c", "b+c", "all"}
    git(project, "checkout", "--quiet", "--", ".")
    (project / "README.md").write_text("nothing to do with it\n")
    assert touched() == set()
    series = project / "patches" / "a" / "llama.cpp"
    (series / "a-two.patch").write_text((series / "a-two.patch").read_text().replace("a-two", "a-tow"))
    assert touched() == {"a 2", "b 1", "c 1", "a", "b", "c", "a+b", "a+c", "b+c", "all"}
    git(project, "commit", "--quiet", "--all", "--message", "Reword")
    assert touched() == set()
    assert "a 2" in touched("--base", "HEAD~1")
    git(project, "checkout", "--quiet", "-b", "mine")
    three.write_test(TEST, test_of(("a-one", 3, 17)))
    git(project, "commit", "--quiet", "--all", "--message", "Test less")
    # Measured from where the branch left main; without building, a test touches nothing.
    assert touched() == set()
    found = states(verify(three, "--changed"))
    assert {name for name, state in found.items() if state != "not_touched"} == {"a 1", "a 2", "a", "a+b", "a+c", "all"}
    assert three.run(*VERIFY, "--changed", "--base", "nowhere").status == 2
    assert three.run(*VERIFY, "--base", "HEAD").status == 2


@pytest.mark.deep
def test_killed_it_goes_on_where_it_was(three: Toy) -> None:
    slow = test_of(("a-one", 3, 17), ("a-two", 4, 18)).replace(
        "    assert part(4)",
        f"    import pathlib, time; pathlib.Path({str(three.home / 'testing')!r}).touch(); time.sleep(60)\n    assert part(4)",
    )
    three.write_test(TEST, slow)
    child = three.start(*VERIFY, "a")
    deadline = time.monotonic() + 60
    while not (three.home / "testing").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    assert finish(child).status == -signal.SIGKILL
    assert three.wait_until_alone() == {}, "the tests must end with their forkyard"
    records = list((three.cache / "verified").glob("*.json"))
    assert len(records) == 1
    three.write_test(TEST, slow.replace("time.sleep(60)", "pass"))
    recipe = verify(three, "a")
    assert states(recipe)["a 1"] == "good"
    assert list((three.cache / "scratch").iterdir()) == []
    # A record that was damaged is no record.
    for number, record in enumerate(sorted((three.cache / "verified").glob("*.json"))):
        text = record.read_text()
        record.write_text((text[:-9], "[]", text.replace('"state": "', '"state": "x'), "")[number % 4])
    assert "good*" not in states(verify(three, "a")).values()


def test_interrupted(three: Toy) -> None:
    child = three.start_compiling(*VERIFY)
    child.send_signal(signal.SIGINT)
    answer = finish(child)
    assert answer.status == 130
    assert three.wait_until_alone() == {}
    assert verify(three, "b", "--no-tests")["ok"]


@pytest.mark.deep
def test_two_at_once_share_the_work(three: Toy) -> None:
    counting = three.home / "runs"
    three.write_test(
        TEST, test_of(("a-one", 3, 17)) + f"\ndef teardown_module():\n    open({str(counting)!r}, 'a').write('x')\n"
    )
    children = [three.start(*VERIFY, "a") for _ in range(2)]
    answers: list[Answer] = [finish(child) for child in children]
    assert [answer.status for answer in answers] == [0, 0]
    found = [states(answer.json["recipes"][0]) for answer in answers]
    assert {name: state.strip("*") for name, state in found[0].items()} == {
        name: state.strip("*") for name, state in found[1].items()
    }
    # a 1, a (= a 2), a+b, a+c and all of them: each was tested by one of the two.
    assert counting.read_text() == "x" * 5


def test_what_is_not_a_patchs_fault_is_no_verdict(three: Toy) -> None:
    shutil.move(three.engine, three.engine.with_name("away"))
    answer = three.run(*VERIFY)
    assert answer.status in (4, 5)
    assert set(answer.json) == {"error", "exit_code", "what", "where", "why", "next"}
    assert not list((three.cache / "verified").glob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "status"), [(["nowhere"], 3), (["--engine", "ik_llama.cpp"], 2), (["--variant", "avx3"], 3)]
)
def test_names_that_lead_nowhere(three: Toy, arguments: list[str], status: int) -> None:
    answer = three.run("stack", "verify", *arguments)
    assert answer.status == status, answer.stdout
    assert answer.json["next"] or answer.json["why"]


def test_the_answer_is_as_documented(three: Toy) -> None:
    """Every key that docs/verify.md names is there, and it names all that are."""
    (three.root / "patches" / "c" / "stack.toml").write_text(
        (three.root / "patches" / "c" / "stack.toml").read_text() + 'measure = "nothing"\n'
    )
    document = three.run(*VERIFY, "--no-tests").json
    text = (Path(__file__).parents[3] / "docs" / "verify.md").read_text()
    keys: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            keys.update(value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(json.loads(json.dumps(document)))
    keys -= {"apply", "build"}
    assert {key for key in keys if f"`{key}`" not in text} == set()
