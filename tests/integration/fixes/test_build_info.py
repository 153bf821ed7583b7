"""The build-info generator writes what the template asks for, and is used only where upstream's own is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cmake import CMAKE_BIN_DIR

pytestmark = pytest.mark.patch("build-info-generator")

STACK = Path(__file__).parents[3] / "patches" / "fixes"
GENERATOR = STACK / "src" / "cmake" / "forkyard-build-info-gen.cmake"
PATCH = STACK / "ik_llama.cpp" / "build-info-generator.patch"
TEMPLATE = 'number=@BUILD_NUMBER@\ncommit="@BUILD_COMMIT@"\ncompiler="@BUILD_COMPILER@"\ntarget="@BUILD_TARGET@"\n'
COMPILER = 'cc (Some "quoted" \\ Linux 1.2-3) 4.5.6'
TIMEOUT = 1800.0


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def cmake() -> str:
    # The one from the registry that builds use; a machine need not have its own.
    return str(Path(CMAKE_BIN_DIR) / "cmake")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the template and our generator, and beside it a git and a compiler of our making."""
    (tmp_path / "tree" / "common").mkdir(parents=True)
    (tmp_path / "tree" / "cmake").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "tree" / "common" / "build-info.cpp.in").write_text(TEMPLATE, encoding="utf-8")
    shutil.copy(GENERATOR, tmp_path / "tree" / "cmake")
    script(tmp_path / "bin" / "git", 'case "$*" in "rev-parse --short HEAD") echo abc1234;; *count*) echo 4321;; esac')
    script(
        tmp_path / "bin" / "compiler",
        f"case \"$1\" in --version) printf '%s\\nsecond line\\n' '{COMPILER}';; -dumpmachine) echo z80-cpm;; esac",
    )
    return tmp_path / "tree"


def generate(cmake: str, tree: Path, *defines: str, git: bool = True) -> dict[str, str]:
    """Run the generator as common/CMakeLists.txt does and read its output back, C escapes undone."""
    path = f"{tree.parent / 'bin'}{os.pathsep}{os.environ['PATH']}" if git else str(tree.parent / "empty")
    arguments = [f"-D{define}" for define in defines] + ["-P", "cmake/forkyard-build-info-gen.cmake"]
    done = subprocess.run(
        [cmake, *arguments],
        cwd=tree,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (tree / "common" / "build-info.cpp").read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines)
    return {name: re.sub(r"\\(.)", r"\1", value.removeprefix('"').removesuffix('"')) for name, value in values.items()}


def test_all_four_values_are_written(cmake: str, tree: Path) -> None:
    values = generate(cmake, tree, f"CMAKE_C_COMPILER={tree.parent / 'bin' / 'compiler'}", "MSVC=")

    assert values == {"number": "4321", "commit": "abc1234", "compiler": COMPILER, "target": "z80-cpm"}


def test_nothing_known_is_no_error(cmake: str, tree: Path) -> None:
    values = generate(cmake, tree, git=False)

    assert values == {"number": "0", "commit": "unknown", "compiler": "unknown", "target": "unknown"}


def test_a_compiler_that_cannot_be_asked_is_named_by_its_id(cmake: str, tree: Path) -> None:
    compiler = tree.parent / "missing"
    values = generate(
        cmake, tree, f"CMAKE_C_COMPILER={compiler}", "CMAKE_C_COMPILER_ID=GNU", "CMAKE_C_COMPILER_VERSION=12.2.0"
    )

    assert values["compiler"] == "GNU 12.2.0"
    assert values["target"] == "unknown"


def test_msvc_takes_its_values_from_cmake(cmake: str, tree: Path) -> None:
    values = generate(
        cmake,
        tree,
        "MSVC=1",
        "CMAKE_C_COMPILER_ID=MSVC",
        "CMAKE_C_COMPILER_VERSION=19.4",
        "CMAKE_VS_PLATFORM_NAME=x64",
    )

    assert values["compiler"] == "MSVC 19.4"
    assert values["target"] == "x64"


def test_a_build_number_that_is_no_number_becomes_0(cmake: str, tree: Path) -> None:
    script(tree.parent / "bin" / "git", "echo '1; evil()'")

    assert generate(cmake, tree)["number"] == "0"


def test_the_output_is_left_alone_when_nothing_changed(cmake: str, tree: Path) -> None:
    output = tree / "common" / "build-info.cpp"
    generate(cmake, tree)
    os.utime(output, ns=(10**18, 10**18))

    generate(cmake, tree)
    assert output.stat().st_mtime_ns == 10**18

    script(tree.parent / "bin" / "git", 'case "$*" in *count*) echo 4322;; *) echo abc1235;; esac')
    generate(cmake, tree)
    assert output.stat().st_mtime_ns != 10**18


def hook() -> tuple[list[str], list[str]]:
    """Lines the patch adds to and removes from common/CMakeLists.txt."""
    diff = PATCH.read_text(encoding="utf-8").partition("\ndiff --git ")[2].splitlines()
    added = [line[1:] for line in diff if line.startswith("+") and not line.startswith("+++")]
    removed = [line[1:] for line in diff if line.startswith("-") and not line.startswith("---")]
    return added, removed


@pytest.mark.parametrize("complete", [True, False], ids=["complete-tree", "generator-missing"])
def test_the_hook_does_nothing_in_a_complete_tree(cmake: str, tmp_path: Path, complete: bool) -> None:
    added, removed = hook()
    assert len(removed) == 1, "the hook changes one line of upstream's and adds the rest"
    changed = added[-1]
    (tmp_path / "common" / "cmake").mkdir(parents=True)
    if complete:
        (tmp_path / "common" / "cmake" / "build-info-gen-cpp.cmake").touch()
    runner = tmp_path / "runner.cmake"
    # The command line as it was and as it is now, both expanded by CMake itself.
    runner.write_text(
        "\n".join(
            [
                f'set(CMAKE_CURRENT_SOURCE_DIR "{tmp_path}/common")',
                *added[:-1],
                f"set(before {removed[0].strip()})",
                f"set(after {changed.strip()})",
                'list(JOIN before " " before)',
                'list(JOIN after " " after)',
                'file(WRITE result "${before}\\n${after}\\n")',
            ]
        ),
        encoding="utf-8",
    )
    subprocess.run([cmake, "-P", str(runner)], cwd=tmp_path, check=True, timeout=TIMEOUT)

    before, after = (tmp_path / "result").read_text(encoding="utf-8").splitlines()
    if complete:
        assert after == before
    else:
        assert after == before.replace(
            f"{tmp_path}/common/cmake/build-info-gen-cpp.cmake",
            f"{tmp_path}/common/../cmake/forkyard-build-info-gen.cmake",
        )
        assert after != before
