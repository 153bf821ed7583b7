"""What goes wrong between the pin and the wheel: patches, options, compilers, gates. Nothing reaches the output."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ..toy import Answer, Toy

PART3 = ("src/part3.cpp", "value + 3")


def assert_nothing_made(toy: Toy) -> None:
    assert not toy.out.exists() or list(toy.out.glob("forkyard_toy*")) == []
    assert list((toy.cache / "wheels").glob("*/record.json")) == []


def assert_error(answer: Answer, status: int, kind: str) -> dict[str, str]:
    assert answer.status == status, f"{answer.status}\n{answer.stdout}\n{answer.stderr}"
    assert answer.json["error"] == kind
    assert answer.json["exit_code"] == status
    return answer.json


def test_a_patch_that_does_not_apply(toy: Toy) -> None:
    patch = toy.patch((*PART3, "value + 33"))
    toy.change_engine(*PART3, "value + 5")
    toy.edit_recipe("stacks = []", 'stacks = ["changes"]')
    error = assert_error(toy.build(), 6, "patch")
    assert error["where"] == str(patch)
    assert "src/part3.cpp" in error["why"]
    assert_nothing_made(toy)


def test_a_patch_that_applies_elsewhere(toy: Toy) -> None:
    """An offset: git would take it; a patch that is not exactly where it says is refused."""
    patch = toy.patch((*PART3, "value + 33"))
    toy.change_engine("src/part3.cpp", "int toy_part_3", "// One more line.\nint toy_part_3")
    toy.edit_recipe("stacks = []", 'stacks = ["changes"]')
    error = assert_error(toy.build(), 6, "patch")
    assert error["where"] == str(patch)
    assert_nothing_made(toy)


def test_a_patch_with_fuzz(toy: Toy) -> None:
    patch = toy.patch((*PART3, "value + 33"))
    patch.write_text(patch.read_text().replace(" int toy_part_3(int value) {", " int toy_part_3(int other) {"))
    assert_error(toy.build(), 6, "patch")
    assert_nothing_made(toy)


def test_a_patch_in_no_series(toy: Toy) -> None:
    patch = toy.patch((*PART3, "value + 33"))
    shutil.copy(patch, patch.with_name("0002-forgotten.patch"))
    assert "0002-forgotten.patch" in assert_error(toy.build(), 6, "patch")["what"]


def test_a_series_that_names_a_missing_patch(toy: Toy) -> None:
    patch = toy.patch((*PART3, "value + 33"))
    (patch.parent / "series").write_text("0001-chang.patch\n")
    error = assert_error(toy.build(), 6, "patch")
    assert error["where"] == f"{patch.parent}/series:1"
    assert "0001-change.patch" in error["next"]


def test_a_cmake_option_the_engine_does_not_know(toy: Toy) -> None:
    toy.edit_recipe("GGML_OPENMP = false", "GGML_OPENMP = false\nGGML_OPENPM = false")
    error = assert_error(toy.build(), 9, "build")
    assert "GGML_OPENPM" in error["what"]
    line = toy.recipe.read_text().splitlines().index("GGML_OPENPM = false") + 1
    assert error["where"].startswith(f"{toy.recipe}:{line}")
    assert_nothing_made(toy)
    # Before anything was compiled; and once more: that CMake says it only once does not hide it.
    assert not list((toy.cache / "build").rglob("part3.cpp.o"))
    assert "GGML_OPENPM" in assert_error(toy.build(), 9, "build")["what"]


def test_a_target_the_engine_does_not_have(toy: Toy) -> None:
    toy.edit_recipe('"llama-quantize"', '"llama-quantise"')
    error = assert_error(toy.build(), 9, "build")
    assert "llama-quantise" in error["why"]
    assert_nothing_made(toy)
    toy.edit_recipe('"llama-quantise"', '"llama-quantize"')
    assert toy.build().built["fresh"]


def test_a_compile_error(toy: Toy, undisturbed: Answer) -> None:
    toy.patch((*PART3, "value + missing_thing"))
    error = assert_error(toy.build("--jobs", "1"), 9, "build")
    assert "src/part3.cpp" in error["why"]
    assert "missing_thing" in error["why"]
    assert "error:" in error["why"]
    log = Path(error["where"].removeprefix("log: "))
    assert "missing_thing" in log.read_text()
    assert_nothing_made(toy)
    # Mended: it goes on with what is left.
    toy.edit_recipe('stacks = ["changes"]', "stacks = []")
    built = toy.build().built
    assert built["sha256"] == undisturbed.built["sha256"]


def test_a_compile_error_is_shown_with_its_place_first(toy: Toy) -> None:
    toy.patch((*PART3, "value + missing_thing + missing_other"))
    error = assert_error(toy.build("--jobs", "1"), 9, "build")
    shown = error["why"].splitlines()[1]
    line = next(
        n
        for n, text in enumerate((toy.cache / "trees/toy/src/part3.cpp").read_text().splitlines(), 1)
        if "missing_thing" in text
    )
    assert f"src/part3.cpp:{line}:" in shown
    assert "missing_thing" in shown


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_compiler_killed_for_lack_of_memory(toy: Toy, tmp_path: Path, jobs: str) -> None:
    """As the kernel does it: the compiler proper is killed while its driver goes on."""
    folder = tmp_path / "compilers"
    folder.mkdir()
    for name in ("cc", "c++"):
        real = shutil.which(name)
        assert real
        killed = f"echo '{name}: fatal error: Killed signal terminated program cc1plus' >&2; exit 1"
        script = f'#!/bin/sh\ncase "$*" in *-c*part3.cpp*) {killed} ;; esac\nexec {real} "$@"\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    env = {"CC": str(folder / "cc"), "CXX": str(folder / "c++")}
    error = assert_error(toy.build("--jobs", jobs, env=env), 9, "build")
    assert "memory" in error["why"]
    assert "Killed" in error["why"]
    assert ("--jobs 1" in error["next"]) == (jobs != "1")
    assert_nothing_made(toy)


def test_a_link_error(toy: Toy) -> None:
    lost = "#include <new>\nint nowhere();\nint toy_else() { return nowhere(); }\n"
    toy.patch(("src/llama.cpp", "#include <new>\n", lost))
    error = assert_error(toy.build(), 9, "build")
    assert "nowhere" in error["why"]
    assert_nothing_made(toy)


def test_instructions_of_a_newer_cpu_outside_the_cpu_library(toy: Toy) -> None:
    leak = (
        '#include <immintrin.h>\n__attribute__((target("avx2"))) void toy_leak(int * data) {\n'
        "    __m256i value = _mm256_loadu_si256((const __m256i *) data);\n"
        "    _mm256_storeu_si256((__m256i *) data, _mm256_add_epi32(value, value));\n}\nconst char"
    )
    toy.patch(("src/base.c", "const char", leak))
    error = assert_error(toy.build(), 8, "gate")
    text = " ".join(str(value) for value in error.values())
    assert "AVX2" in text
    assert "libggml-base" in text
    assert_nothing_made(toy)
    # The same library is right for a CPU that has it.
    assert toy.build(variant="avx2").status == 0


def test_an_earlier_wheel_stays_when_the_next_one_fails(toy: Toy) -> None:
    first = toy.build().built
    toy.patch((*PART3, "value + missing_thing"))
    assert toy.build().status == 9
    assert [str(path) for path in toy.wheels()] == [first["wheel"]]


@pytest.fixture
def only_git(tmp_path: Path) -> str:
    """A PATH with git and a shell, and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("git", "sh"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return str(folder)


def test_no_compiler(toy: Toy, only_git: str) -> None:
    env = {"PATH": only_git, "CC": "", "CXX": ""}
    error = assert_error(toy.build(env=env), 7, "toolchain")
    assert "install" in error["next"]
    doctor = toy.run("doctor", env=env)
    assert doctor.status == 7
    (check,) = [check for check in doctor.json["checks"] if check["name"] == "compiler"]
    assert check["state"] == "missing"
    assert check["fix"] in error["next"]
    assert_nothing_made(toy)


def test_a_compiler_that_is_not_there(toy: Toy) -> None:
    error = assert_error(toy.build(env={"CC": "no-such-cc", "CXX": "no-such-c++"}), 7, "toolchain")
    assert "no-such-cc" in error["what"]


def test_a_compiler_that_does_not_work(toy: Toy) -> None:
    broken = toy.home / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'segmentation fault' >&2\nexit 1\n")
    broken.chmod(0o755)
    error = assert_error(toy.build(env={"CC": str(broken), "CXX": str(broken)}), 7, "toolchain")
    assert "segmentation fault" in error["why"]


def test_no_git(toy: Toy, only_git: str) -> None:
    os.unlink(f"{only_git}/git")
    cc, cxx = shutil.which("cc"), shutil.which("c++")
    assert cc
    assert cxx
    answer = toy.build(env={"PATH": only_git, "CC": cc, "CXX": cxx})
    assert assert_error(answer, 7, "toolchain")["next"]
