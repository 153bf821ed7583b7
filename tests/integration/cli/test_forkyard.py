"""The forkyard command as scripts use it: one JSON document on standard output, documented exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest

from ..toy import TIMEOUT_S, VARIANT, Answer, Toy

KEYS = {"error", "exit_code", "what", "where", "why", "next"}


def assert_error(answer: Answer, status: int, *words: str) -> dict[str, str]:
    assert answer.status == status, f"{answer.status}\n{answer.stdout}\n{answer.stderr}"
    error = answer.json
    assert set(error) == KEYS
    assert error["exit_code"] == status
    text = " ".join(str(value) for value in error.values())
    for word in words:
        assert word in text, f"{word!r} is not in {text}"
    return error


def line_of(path: Path, text: str) -> str:
    """``file:line`` of a text that a file holds."""
    number = next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)
    return f"{path}:{number}"


def test_a_day_with_forkyard(toy: Toy) -> None:
    """Plan, build, look, lock, clean: each says truly what is there."""
    planned = toy.run("plan", VARIANT)
    assert planned.status == 0
    (plan,) = planned.json["plans"]
    assert (plan["recipe"], plan["variant"], plan["distribution"]) == ("toy", VARIANT, "forkyard-toy-sse42")
    assert plan["pin"]["commit"] == toy.commit
    assert plan["source"] == "to be fetched"
    assert plan["cmake_options"]["GGML_SSE42"] == "ON"
    assert plan["cmake_options"]["GGML_AVX"] == "OFF"
    # Planning made nothing but a note of the compiler's digests.
    assert [path.name for path in toy.cache.iterdir()] in ([], ["toolchain-digests.json"])

    def states() -> dict[str, str]:
        status = toy.run("status").json
        return {row["variant"]: row["state"] for row in status["payloads"]}

    toy.environment["FORKYARD_ROOT"] = str(toy.root)
    toy.out = toy.root / "dist"
    assert states()[VARIANT] == "not built"
    built = toy.run("build", VARIANT, "--no-ccache").built
    assert built["key"] == plan["key"]
    assert Path(built["wheel"]).parent == toy.out
    assert states()[VARIANT] == "current"
    assert states()["avx2"] == "not built"
    (again,) = toy.run("plan", VARIANT).json["plans"]
    assert again["source"].endswith("(in the cache)")
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"))
    assert states()[VARIANT] == "out of date"
    (patched,) = toy.run("plan", VARIANT).json["plans"]
    assert patched["key"] != plan["key"]
    assert patched["stacks"][0]["patches"] == ["0001-change.patch"]
    toy.edit_recipe('["changes"]', "[]")

    assert_error(toy.run("lock", "--check"), 3, "toy.lock.toml")
    assert_error(toy.run("build", "avx2", "--locked", "--no-ccache"), 3, "forkyard lock toy")
    assert toy.run("lock").json["locks"][0]["changed"]
    assert toy.run("lock", "--check").status == 0
    assert not toy.run("lock").json["locks"][0]["changed"]
    assert toy.run("build", VARIANT, "--locked", "--no-ccache").built["sha256"] == built["sha256"]

    would = toy.run("clean", "--dry-run").json
    assert would["dry_run"]
    assert {row["part"] for row in would["parts"]} == {"builds", "wheels", "logs"}
    assert states()[VARIANT] == "current"
    done = toy.run("clean", "builds", "wheels", "sources", "ccache", "logs").json
    assert all(row["bytes"] >= 0 for row in done["parts"])
    assert not (toy.cache / "build").exists()
    assert not (toy.cache / "store").exists()
    # The output folder is the user's.
    assert toy.wheels()


def test_a_lock_that_is_out_of_date(toy: Toy) -> None:
    toy.run("lock")
    toy.change_engine("src/part3.cpp", "value + 3", "value + 4")
    assert_error(toy.run("lock", "--check"), 3, "forkyard lock toy", toy.commit)
    assert_error(toy.build("--locked"), 3, toy.commit)
    warned = toy.build()
    assert warned.built["fresh"]
    assert "not as it was locked" in warned.stderr


@pytest.mark.parametrize("command", ["plan", "build"])
def test_nothing_but_json_on_standard_output(toy: Toy, command: str) -> None:
    quiet = toy.run(
        command, VARIANT, "--quiet", *(["--no-ccache", "--out", str(toy.out)] if command == "build" else [])
    )
    assert quiet.json
    assert quiet.stderr == ""


def test_the_best_variant_and_why(toy: Toy) -> None:
    planned = toy.run("plan")
    assert planned.status == 0, planned.stderr
    (choice,) = planned.json["chosen"]
    (chosen,) = planned.json["plans"]
    assert choice["recipe"] == chosen["recipe"] == "toy"
    assert choice["variant"] == chosen["variant"] != "native"
    for reason in choice["reasons"]:
        assert reason in planned.stderr
    # Naming it gives the same build.
    (named,) = toy.run("plan", chosen["variant"]).json["plans"]
    assert named["key"] == chosen["key"]
    assert toy.run("plan", "best", "toy").json == planned.json
    assert_error(toy.run("plan", "toy"), 2, "the variant comes before it", "best toy")


def test_text_for_people(toy: Toy) -> None:
    toy.out = toy.home / "out put"
    command = [sys.executable, "-m", "forkyard", "build", VARIANT, "--out", str(toy.out), "--no-ccache"]
    done = subprocess.run(
        command, cwd=toy.home, env=toy.env(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"built: {toy.wheels()[0]}"
    (install,) = (line for line in lines if line.startswith("  pip install "))
    # It works when it is pasted, whatever the folder is called.
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {install}"], capture_output=True, text=True).stdout
    assert words.splitlines()[-1] == str(toy.wheels()[0])
    assert any(line.startswith("  forkyard-llm generate ") for line in lines)
    assert "compiling forkyard-toy-sse42" in done.stderr


def test_an_error_for_people(toy: Toy) -> None:
    toy.edit_recipe("stacks = []", "stakcs = []")
    command = [sys.executable, "-m", "forkyard", "plan", VARIANT]
    done = subprocess.run(
        command, cwd=toy.home, env=toy.env(), capture_output=True, text=True, timeout=1800, check=False
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ")
    assert f"where: {line_of(toy.recipe, 'stakcs')}" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        ("stacks = []", "stakcs = []", "stacks"),
        ('family = "llama.cpp"', 'family = "lama.cpp"', "llama.cpp"),
        ('kind = "local"', 'kind = "locale"', "local"),
        ("licenses =", "licences =", "licenses"),
        ("stacks = []", 'stacks = ["chnages"]', "changes"),
    ],
)
def test_a_slip_in_a_recipe(toy: Toy, old: str, new: str, meant: str) -> None:
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"))
    toy.edit_recipe('["changes"]', "[]")
    toy.edit_recipe(old, new)
    error = assert_error(toy.run("plan", VARIANT), 3)
    assert error["where"].startswith(line_of(toy.recipe, new))
    assert meant in error["next"]


@pytest.mark.parametrize(
    ("words", "status", "meant"),
    [
        (["plan", "ssse42"], 3, "sse42"),
        (["plan", VARIANT, "toi"], 3, "toy"),
        (["plan", VARIANT, "--stacks", "chnages"], 3, "changes"),
        (["clean", "bilds"], 2, "builds"),
        (["schema", "recipes"], 2, "recipe"),
        (["plan", VARIANT, "/no/such/recipe.toml"], 3, "/no/such/recipe.toml"),
        (["plan", VARIANT, "--variants-file", "/no/such/variants.toml"], 3, "/no/such/variants.toml"),
    ],
)
def test_a_slip_on_the_command_line(toy: Toy, words: list[str], status: int, meant: str) -> None:
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"))
    assert_error(toy.run(*words), status, meant)


@pytest.mark.parametrize("words", [["built"], ["build", VARIANT, "--jobs", "0"], ["plan", VARIANT, "--outt", "x"]])
def test_usage(toy: Toy, words: list[str]) -> None:
    answer = toy.run(*words)
    assert answer.status == 2
    assert answer.stdout == ""
    assert answer.stderr


def test_outside_a_project(toy: Toy) -> None:
    assert_error(toy.run("plan", VARIANT, env={"FORKYARD_ROOT": str(toy.home)}), 2, "FORKYARD_ROOT")


def test_a_recipe_by_its_path(toy: Toy) -> None:
    mine = toy.home / "mine.toml"
    shutil.copy(toy.recipe, mine)
    text = mine.read_text().replace('name = "toy"', 'name = "my-toy"').replace(str(toy.engine), "../engine")
    mine.write_text(text)
    toy.recipe.unlink()
    built = toy.build("mine.toml").built
    assert Path(built["wheel"]).name.startswith("forkyard_my_toy_sse42-")
    assert toy.run("lock", "mine.toml").json["locks"][0]["lock"].endswith("mine.lock.toml")
    assert (toy.home / "mine.lock.toml").exists()


def test_stacks_from_the_command_line(toy: Toy, undisturbed: Answer) -> None:
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"))
    patched = toy.build().built
    stock = toy.build("--stacks", "none").built
    assert stock["sha256"] == undisturbed.built["sha256"] or stock["key"] == undisturbed.built["key"]
    chosen = toy.build("--stacks", "changes").built
    assert chosen["sha256"] == patched["sha256"] != stock["sha256"]
    with zipfile.ZipFile(chosen["wheel"]) as wheel:
        manifest = json.loads(wheel.read("forkyard_toy_sse42/manifest.json"))
    assert [patch["file"] for patch in manifest["stacks"][0]["patches"]] == ["0001-change.patch"]


def test_a_variant_of_ones_own(toy: Toy) -> None:
    mine = toy.home / "mine.toml"
    mine.write_text(
        'schema = 1\n[variants.my-sse]\ntitle = "Mine"\nkind = "isa"\nextends = "sse42"\nproof = ["ssse3"]\nrank = 11\n'
    )
    built = toy.build("--variants-file", str(mine), variant="my-sse").built
    assert Path(built["wheel"]).name.startswith("forkyard_toy_my_sse-")


def test_the_tools_in_the_wheel_run_anywhere(toy: Toy) -> None:
    built = toy.build().built
    folder = toy.home / "elsewhere"
    with zipfile.ZipFile(built["wheel"]) as wheel:
        for info in wheel.infolist():
            path = Path(wheel.extract(info, folder))
            path.chmod((info.external_attr >> 16) & 0o777)
    shutil.rmtree(toy.cache)
    tool = folder / "forkyard_toy_sse42" / "bin" / "llama-cli"
    done = subprocess.run([tool], env={}, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("toy/src/llama.cpp:"), done.stdout


def test_doctor(toy: Toy) -> None:
    answer = toy.run("doctor")
    assert answer.status == 0
    assert answer.json["ok"]
    assert {"python", "machine", "git", "compiler", "cache"} <= {check["name"] for check in answer.json["checks"]}


def test_variants(toy: Toy) -> None:
    rows = {row["name"]: row for row in toy.run("variants").json["variants"]}
    assert set(rows) >= {"native", "sse42", "avx2", "avx512", "avx512-vnni", "avx512-bf16", "amx"}
    assert set(rows["sse42"]["features"]) < set(rows["avx2"]["features"]) < set(rows["avx512"]["features"])


def test_the_schemas_fit_the_files(toy: Toy) -> None:
    import tomllib

    names = toy.run("schema").json["schemas"]
    recipe = tomllib.loads(toy.recipe.read_text())
    variants = tomllib.loads((toy.root / "recipes" / "variants.toml").read_text())
    assert set(names) >= {"recipe", "variants"}
    jsonschema.validate(recipe, toy.run("schema", "recipe").json)
    jsonschema.validate(variants, toy.run("schema", "variants").json)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**recipe, "stakcs": []}, toy.run("schema", "recipe").json)


@pytest.mark.parametrize("command", [[], ["build"]])
def test_help_needs_nothing(toy: Toy, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forkyard", *command, "--help"],
        cwd=toy.home,
        env={**toy.env(), "FORKYARD_ROOT": "/nowhere", "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if not command:
        assert "10  disk full, read-only, no permission" in done.stdout
