from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import StorageError
from forkyard.project import Project, write_project
from forkyard.sources import Obtained

Write = Callable[..., Project]
GOT = Obtained("1" * 40, "2" * 40, "2026-01-05", 7, "local", "x", ())
MANIFEST = {"schema": 1, "abi_sha256": "a" * 64, "title": 'mail@home "x" @FORKYARD@', "z": [1]}


@pytest.fixture
def write(project_root: Path, plan_of: Callable[..., Any], tmp_path: Path) -> Write:
    def run(
        folder: str = "build",
        *,
        tree: str = "tree",
        launcher: Path | None = None,
        zig: Path | None = None,
        **changes: Any,
    ) -> Project:
        plan = plan_of(**changes)
        return write_project(
            plan,
            GOT,
            MANIFEST,
            b"{}",
            tmp_path / folder,
            tmp_path / tree,
            project_root / "wheels",
            include_dirs=["include", "ours/include"],
            launcher=launcher,
            zig=zig,
        )

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def settings(project: Project) -> dict[str, Any]:
    return tomllib.loads((project.folder / "pyproject.toml").read_text())


def cmake_arguments(project: Project) -> list[str]:
    found = settings(project)["tool"]["scikit-build"]["cmake"]["args"]
    assert all(isinstance(argument, str) for argument in found)
    return list(found)


def test_writing_again_touches_nothing(write: Write) -> None:
    project = write()
    before = contents(project.folder)
    for path in project.folder.rglob("*"):
        os.utime(path, ns=(1, 1))
    assert contents(write().folder) == before
    assert {p.stat().st_mtime_ns for p in project.folder.rglob("*") if p.is_file()} == {1}


def test_the_same_plan_gives_the_same_files_anywhere(write: Write, tmp_path: Path) -> None:
    one, two = contents(write("one").folder), contents(write("two").folder)
    swapped = {
        name: data.replace(str(tmp_path / "two").encode(), str(tmp_path / "one").encode()) for name, data in two.items()
    }
    assert swapped == one


def test_the_files_are_what_they_pretend_to_be(write: Write) -> None:
    project = write()
    data = settings(project)
    assert data["project"]["name"] == "forkyard-mine-avx2"
    assert data["project"]["entry-points"]["forkyard_llm.payloads"] == {"forkyard-mine-avx2": "forkyard_mine_avx2"}
    assert ast.get_docstring(ast.parse((project.folder / "__init__.py").read_text()))
    text = (project.folder / "manifest.json.in").read_text()
    assert text.count("@") == 2, "CMake replaces only what is meant"
    filled = json.loads(text.replace("@FORKYARD_LIBRARIES@", '  "llama": "lib/x.so"'))
    assert filled == {**MANIFEST, "libraries": {"llama": "lib/x.so"}}
    assert os.access(project.shim / "git", os.X_OK)


@pytest.mark.parametrize("title", ['a "quoted" title', "back\\slash \\N{x}", 'tri"""ple', "per % cent {{ x }} @y@ $z"])
def test_any_title_gives_sound_files(write: Write, project_root: Path, title: str) -> None:
    recipe = project_root / "recipes" / "mine.toml"
    recipe.write_text(recipe.read_text().replace('title = "my engine"', f"title = {json.dumps(title)}"))
    project = write()
    assert title in settings(project)["project"]["description"]
    ast.parse((project.folder / "__init__.py").read_text())


def ask(project: Project, question: str) -> subprocess.CompletedProcess[str]:
    command = [str(project.shim / "git"), *question.split()]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1800, check=False, env={"PATH": "/nonexistent"}
    )


def test_the_shim_answers_upstreams_questions(write: Write) -> None:
    project = write()
    assert ask(project, "rev-parse --short HEAD").stdout == "111111111\n"
    assert ask(project, "-C /x rev-parse HEAD").stdout == "111111111\n"
    assert ask(project, "describe --always --dirty").stdout == "111111111\n"
    assert ask(project, "rev-list --count HEAD").stdout == "7\n"
    assert ask(project, "diff-index --quiet HEAD --").returncode == 0
    assert ask(project, "--version").stdout.startswith("git version ")
    assert ask(project, "fetch origin").returncode != 0


def test_options_and_flags_reach_cmake(write: Write, tmp_path: Path) -> None:
    arguments = cmake_arguments(write(launcher=Path("/usr/bin/ccache")))
    assert "-DGGML_OPENMP=OFF" in arguments
    assert "-DGGML_AVX2=ON" in arguments
    assert "-DCMAKE_C_COMPILER_LAUNCHER=/usr/bin/ccache" in arguments
    assert f"-DFORKYARD_TREE={tmp_path / 'tree'}" in arguments
    flags = next(a for a in arguments if a.startswith("-DCMAKE_CXX_FLAGS="))
    assert "-fno-gnu-unique" in flags
    assert f"-ffile-prefix-map={tmp_path / 'tree'}=mine" in flags


@pytest.mark.parametrize(
    "name", ["with space", "quo'te", "dollar$HOME", "semi;colon", "back\\slash", "am&p", "t\u00e4"]
)
def test_paths_with_odd_characters_survive_or_are_refused(write: Write, tmp_path: Path, name: str) -> None:
    try:
        arguments = cmake_arguments(write(f"{name}/build", tree=f"{name}/tree"))
    except StorageError as error:
        refusal = str(error.next_step)
    else:
        refusal = ""
    if name in ("quo'te",):
        assert "FORKYARD_CACHE" in refusal
        return
    assert refusal == ""
    flags = next(a for a in arguments if a.startswith("-DCMAKE_C_FLAGS=")).removeprefix("-DCMAKE_C_FLAGS=")
    maps = [word for word in shlex.split(flags) if word.startswith("-ffile-prefix-map=")]
    assert f"-ffile-prefix-map={tmp_path / name / 'tree'}=mine" in maps
    assert not flags.endswith("'"), "CMake takes away quotes around a whole value"


@pytest.mark.parametrize("character", ['"', "\n", "\r"])
def test_paths_cmake_cannot_be_given_are_refused(write: Write, character: str) -> None:
    with pytest.raises(StorageError) as caught:
        write(f"b{character}d", tree=f"t{character}")
    assert "FORKYARD_CACHE" in str(caught.value.next_step)


def test_openmp_is_carried_with_its_licence(write: Write, project_root: Path, toolchain: Any) -> None:
    recipe = project_root / "recipes" / "mine.toml"
    recipe.write_text(recipe.read_text().replace("GGML_OPENMP = false", "GGML_OPENMP = true"))
    project = write()
    assert f"-DFORKYARD_OPENMP={toolchain.openmp}" in cmake_arguments(project)
    assert "GCC-exception" in settings(project)["project"]["license"]
    assert "libgomp.so.1" in (project.folder / "CMakeLists.txt").read_text()


def test_every_licence_has_its_own_name(write: Write) -> None:
    text = (write().folder / "CMakeLists.txt").read_text()
    names = re.findall(r'licenses" RENAME "([^"]+)"', text)
    assert names == ["LICENSE", "vendor-x-LICENSE"]


# -- another machine ---------------------------------------------------------------------------------


def test_another_machine_has_a_compiler_of_its_own(write: Write, tmp_path: Path) -> None:
    zig = tmp_path / "a kit"
    zig.mkdir()
    (zig / "zig").write_text('#!/bin/sh\nprintf "%s\\n" "$ZIG_LOCAL_CACHE_DIR" "$@"\n')
    (zig / "zig").chmod(0o755)
    project = write("build", variant="dotprod", zig=zig)
    folder = project.folder / "compilers"
    arguments = cmake_arguments(project)
    assert f"-DCMAKE_TOOLCHAIN_FILE={folder / 'toolchain.cmake'}" in arguments
    assert not [one for one in arguments if one.startswith(("-DCMAKE_C_COMPILER=", "-DCMAKE_CXX_COMPILER="))]
    assert "-DCMAKE_MODULE_LINKER_FLAGS=-Wl,--build-id=sha1 -Wl,--gc-sections -s" in arguments
    (flags,) = (one for one in arguments if one.startswith("-DCMAKE_CXX_FLAGS="))
    assert f"-ffile-prefix-map={zig}=zig" in shlex.split(flags)
    text = (folder / "toolchain.cmake").read_text()
    assert "set(CMAKE_SYSTEM_PROCESSOR aarch64)" in text
    assert f'set(CMAKE_CXX_COMPILER "{folder}/zig-c++")' in text
    # Its own program for it knows no other machine.
    assert settings(project)["tool"]["scikit-build"]["install"]["strip"] is False
    assert "add_library(forkyard-cxx SHARED" in (project.folder / "CMakeLists.txt").read_text()

    def called(program: str, *words: str) -> list[str]:
        done = subprocess.run([str(folder / program), *words], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()

    cache, machine = str(folder / "cache"), ["-target", "aarch64-linux-gnu.2.28"]
    assert called("zig-cc", "-c", "a b.c") == [cache, "cc", *machine, "-c", "a b.c"]
    assert called("zig-c++", "-c", "a.cpp") == [cache, "c++", *machine, "-c", "a.cpp"]
    # The C++ library is the wheel's.
    assert called("zig-c++", "a.o") == [cache, "c++", *machine, "-nostdlib++", "a.o"]
    assert called("zig-ar", "qc", "a.a") == [cache, "ar", "qc", "a.a"]


def test_this_machine_has_the_compiler_of_the_plan(write: Write) -> None:
    project = write()
    arguments = cmake_arguments(project)
    assert "-DCMAKE_C_COMPILER=/usr/bin/cc" in arguments
    assert "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--build-id=sha1" in arguments
    assert not [one for one in arguments if "TOOLCHAIN" in one or "MODULE_LINKER" in one]
    assert settings(project)["tool"]["scikit-build"]["install"]["strip"] is True
    assert not (project.folder / "compilers").exists()
    assert "forkyard-cxx" not in (project.folder / "CMakeLists.txt").read_text()
