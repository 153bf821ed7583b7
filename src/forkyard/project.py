"""Writing the small CMake and Python project that turns a patched tree into a payload wheel."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from forkyard.cache import write_if_changed
from forkyard.errors import StorageError
from forkyard.plan import Plan
from forkyard.recipes.model import OptionValue
from forkyard.recipes.variants import Target, cmake_value, score_source
from forkyard.sources import Obtained


@dataclass(frozen=True)
class Project:
    """A generated project on disk."""

    folder: Path
    """Holds pyproject.toml and CMakeLists.txt."""
    shim: Path
    """Goes first on PATH: answers upstream's questions to git."""
    cmake: Path
    """CMake's build folder."""


@dataclass(frozen=True)
class Toolchest:
    """How the code of a backend is compiled on this machine."""

    options: Mapping[str, OptionValue]
    """CMake options that say where the toolkit is."""
    languages: Sequence[str]
    """CMake's names of the languages that the toolkit compiles."""
    launcher: Sequence[str]
    """ccache, with a folder and a size limit of the backend's own; empty without."""
    jobs: int
    """Compiles of its code at a time."""


def write_project(
    plan: Plan,
    obtained: Obtained,
    manifest: Mapping[str, Any],
    sbom: bytes,
    folder: Path,
    tree: Path,
    templates: Path,
    *,
    include_dirs: Sequence[str],
    jobs: int | None = None,
    launcher: Path | None = None,
    toolkit: Toolchest | None = None,
    zig: Path | None = None,
) -> Project:
    """Write the project into ``folder``; files that would not change are left alone, so CMake sees no change.

    ``folder`` already holds ``abi.json``, ``_abi.py`` and ``probe.c``.

    Args:
        tree: the patched tree.
        templates: the repository's ``wheels`` folder.
        include_dirs: folders of the tree that the probe includes headers from.
        jobs: parallel compiles; ``None`` leaves it to ninja.
        launcher: ccache, if it is to be used.
        toolkit: what the backend's code is compiled with, of a variant for GPUs.
        zig: folder of the toolkit that all is compiled with, of a variant for another machine.

    Raises:
        StorageError: the folder cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - the output is CMake and TOML, not HTML
    )
    cmake = folder / "cmake"
    compilers = folder / "compilers"
    bundled = cxx_license(plan) or openmp_license(plan)
    values = {
        "distribution": plan.distribution,
        "package": plan.package,
        "version": plan.version(obtained.date),
        "description": f"{plan.recipe.title} with its libraries and tools, built for {plan.variant.title}",
        "title": plan.recipe.title,
        "family": plan.recipe.family,
        "variant_title": plan.variant.title,
        "pin": obtained.commit,
        "date": obtained.date,
        "label": plan.label,
        "build_number": obtained.build_number,
        "stacks": [stack.name for stack in plan.stacks],
        "features": plan.variant.features,
        "hardware": plan.variant.hardware,
        "build_key": plan.key,
        "abi_sha256": manifest["abi_sha256"],
        "suffix": f"{plan.slug}-{plan.variant.name}",
        "tools": plan.tools,
        "libraries": plan.libraries,
        "cpu_target": plan.recipe.build.cpu_target,
        "cpu_flags": plan.cpu_flags,
        "loadable": plan.loadable,
        "members": [
            {
                "name": one.name,
                "flags": one.flags,
                "options": one.options,
                "borrows": [(lender, "|".join(map(re.escape, paths))) for lender, paths in sorted(one.borrows.items())],
                "folder": str(PurePosixPath(plan.cpu_library(one.name)).parent),
                "output_name": PurePosixPath(plan.cpu_library(one.name)).stem.removeprefix("lib"),
            }
            for one in plan.variant.members
        ],
        "module": plan.variant.module,
        "drops": plan.variant.drops,
        "pool": toolkit.jobs if toolkit else None,
        "languages": toolkit.languages if toolkit else (),
        "launcher": toolkit.launcher if toolkit else (),
        "library_folders": plan.variant.backend.library_folders if plan.variant.backend else (),
        "requires": plan.variant.backend.requires if plan.variant.backend else (),
        "cpu_score_target": plan.recipe.build.cpu_score_target,
        "defines": plan.recipe.build.defines,
        "include_dirs": include_dirs,
        "openmp": openmp_name(plan),
        "machine": plan.variant.machine,
        "zig": zig,
        "compilers": compilers,
        "score": score_source(plan.variant),
        "licenses": [(path, _license_name(path)) for path in plan.recipe.build.licenses],
        "license": "MIT" if bundled is None else f"MIT AND ({bundled})",
        "build_dir": str(cmake),
        "cmake_args": _cmake_arguments(plan, tree, cmake, launcher, toolkit, zig),
        "jobs": jobs,
    }
    # CMake replaces @FORKYARD_LIBRARIES@; any other @ of the manifest is written as JSON's escape for it.
    text = json.dumps(manifest, indent=1, sort_keys=True).replace("@", "\\u0040")
    body = text[: text.rindex("\n}")] + ',\n "libraries": {\n@FORKYARD_LIBRARIES@\n }\n}\n'
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md"):
        write_if_changed(folder / name, environment.get_template(f"{name}.j2").render(values).encode())
    titles = {name: _in_docstring(str(values[name])) for name in ("title", "variant_title")}
    write_if_changed(
        folder / "__init__.py", environment.get_template("__init__.py.j2").render({**values, **titles}).encode()
    )
    write_if_changed(folder / "manifest.json.in", body.encode())
    write_if_changed(folder / "sbom.cdx.json", sbom)
    if zig is not None and plan.variant.target is not None:
        _write_compilers(environment, values, plan.variant.target, zig, compilers)
    shim = folder / "shim"
    write_if_changed(shim / "git", environment.get_template("git.sh.j2").render(values).encode(), mode=0o755)
    return Project(folder, shim, cmake)


def _write_compilers(
    environment: jinja2.Environment, values: Mapping[str, Any], target: Target, zig: Path, folder: Path
) -> None:
    """Write the programs of a target's compiler, and the file that tells CMake of them."""
    machine = ["-target", f"{target.triple}.{target.glibc}"]
    script, cache = environment.get_template("zig.sh.j2"), shlex.quote(str(folder / "cache"))
    for word, options in (("cc", machine), ("c++", machine), ("ar", []), ("ranlib", [])):
        command = shlex.join([str(zig / "zig"), word, *options])
        text = script.render(word=word, cache=cache, command=command)
        write_if_changed(folder / f"zig-{word}", text.encode(), mode=0o755)
    write_if_changed(folder / "toolchain.cmake", environment.get_template("toolchain.cmake.j2").render(values).encode())


def _cmake_arguments(
    plan: Plan, tree: Path, cmake: Path, launcher: Path | None, toolkit: Toolchest | None, zig: Path | None
) -> list[str]:
    # Upstream's asserts print __FILE__: without the maps every message, and so the bytes, would hold this machine's
    # paths. ccache shortens paths below its base folder to relative ones before the compiler sees them.
    relative = os.path.relpath(tree, cmake)
    # The relative one comes last: it never needs quotes, and CMake strips a value of quotes around all of it.
    maps = [f"-ffile-prefix-map={tree}={plan.recipe.name}", f"-ffile-prefix-map={cmake.parent}=payload"]
    maps.append(f"-ffile-prefix-map={relative}={plan.recipe.name}")
    if zig is not None:
        maps += [f"-ffile-prefix-map={path}=zig" for path in (zig, os.path.relpath(zig, cmake))]
    # These go through a shell; a folder's name may hold a space.
    maps = [shlex.quote(flag) for flag in maps]
    arguments = [f"-D{name}={value}" for name, value in plan.options.items()]
    compilers = [f"-DCMAKE_C_COMPILER={plan.toolchain.c}", f"-DCMAKE_CXX_COMPILER={plan.toolchain.cxx}"]
    kinds, linking = ["SHARED", "EXE"], "-Wl,--build-id=sha1"
    if zig is not None:
        compilers = [
            f"-DCMAKE_TOOLCHAIN_FILE={cmake.parent / 'compilers' / 'toolchain.cmake'}",
            f"-DFORKYARD_ZIG={zig}",
        ]
        # Of its own run-time library the compiler links all or nothing.
        kinds, linking = [*kinds, "MODULE"], f"{linking} -Wl,--gc-sections -s"
    arguments += [
        f"-DFORKYARD_TREE={tree}",
        *compilers,
        f"-DCMAKE_C_FLAGS={' '.join([*plan.c_flags, *maps])}",
        f"-DCMAKE_CXX_FLAGS={' '.join([*plan.cxx_flags, *maps])}",
        *(f"-DCMAKE_{kind}_LINKER_FLAGS={linking}" for kind in kinds),
        f"-DCMAKE_C_COMPILER_LAUNCHER={launcher or ''}",
        f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher or ''}",
    ]
    if toolkit is not None:
        # With a type: CMake makes relative paths without one absolute.
        arguments += [f"-D{name}:STRING={cmake_value(value)}" for name, value in toolkit.options.items()]
        if "CUDA" in toolkit.languages:
            arguments += [
                f"-DCMAKE_CUDA_HOST_COMPILER={plan.toolchain.cxx}",
                f"-DCMAKE_CUDA_FLAGS={' '.join([*plan.cxx_flags, *maps])}",
            ]
    if openmp_name(plan) is not None:
        arguments.append(f"-DFORKYARD_OPENMP={plan.toolchain.openmp}")
    for argument in arguments:
        if re.search(r"[\n\r\0\"]", argument):
            msg = "a path or option holds a character CMake cannot be given"
            raise StorageError(msg, where=argument, next_step="choose another cache folder with FORKYARD_CACHE")
    return arguments


def cxx_license(plan: Plan) -> str | None:
    """SPDX expression of the carried C++ library; ``None`` if it is the system's."""
    return "Apache-2.0 WITH LLVM-exception" if plan.variant.target else None


def openmp_name(plan: Plan) -> str | None:
    """File name under which the OpenMP library is carried: its soname."""
    if plan.options.get("GGML_OPENMP") != "ON" or plan.toolchain.openmp is None:
        return None
    return "libgomp.so.1" if plan.toolchain.family == "gcc" else plan.toolchain.openmp.name


def openmp_license(plan: Plan) -> str | None:
    """SPDX expression of the carried OpenMP library; ``None`` if there is none."""
    if openmp_name(plan) is None:
        return None
    if plan.toolchain.family == "gcc":
        return "GPL-3.0-or-later WITH GCC-exception-3.1"
    return "Apache-2.0 WITH LLVM-exception"


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _license_name(path: str) -> str:
    return "-".join(PurePosixPath(path).parts)
