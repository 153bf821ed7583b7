"""Payloads for 64-bit ARM, compiled here: the compiler comes from the package registry."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.gates.aarch64 import code_use
from forkyard.gates.elf import read_elf
from forkyard.recipes import load_variants, resolve
from forkyard.toolchain import detect
from forkyard.toolkits import choose

from ..conftest import ROOT
from ..toy import Toy

FEW = """
schema = 1
[variants.dots]
title = "dot products and FP16"
kind = "isa"
extends = "neon"
features = ["fphp", "asimdhp", "asimddp"]
proof = ["asimddp"]
rank = 20
[variants.few]
title = "two instruction sets"
kind = "cpu"
target = "aarch64"
members = ["neon", "dots"]
rank = 0
[variants.few.engines."llama.cpp"]
options = { GGML_BACKEND_DL = true }
"""
SCORED = ('cpu-target = "ggml-cpu"', 'cpu-target = "ggml-cpu"\ncpu-score-target = "ggml-cpu-feats"')
CXX = "libforkyard-cxx-toy-few.so"


@pytest.fixture(scope="session")
def toolkits(lift_limit: Callable[[], None]) -> Path:
    """The folder of toolkits of the usual cache, with Zig in it."""
    lift_limit()
    cache = Cache.default()
    cache.prepare()
    resolved = resolve(load_variants(ROOT), "neon", "llama.cpp")
    assert resolved.toolkit is not None
    folder = choose("zig", resolved.toolkit, None, detect(cache), cache).folder(cache, Console())
    assert folder is not None
    return folder.parents[1]


@pytest.fixture
def arm_toy(toy: Toy, tmp_path: Path, toolkits: Path) -> Toy:
    (tmp_path / "few.toml").write_text(FEW)
    toy.cache.mkdir(exist_ok=True)
    (toy.cache / "toolkits").symlink_to(toolkits)
    # The C++ library takes longer to compile than all else of the toy.
    toy.environment["CCACHE_DIR"] = str(Cache.default().ccache)
    toy.edit_recipe(*SCORED)
    return toy


def build(toy: Toy, tmp_path: Path) -> Any:
    return toy.build("--variants-file", str(tmp_path / "few.toml"), "--with-ccache", variant="few")


def test_a_wheel_for_another_machine(arm_toy: Toy, tmp_path: Path) -> None:
    built = build(arm_toy, tmp_path).built
    # What the libraries need, not what the compiler was told.
    assert Path(built["wheel"]).name.endswith("-py3-none-manylinux_2_27_aarch64.whl")
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(tmp_path)
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
        (sbom,) = (json.loads(wheel.read(name)) for name in wheel.namelist() if name.endswith(".cdx.json"))
    assert "License-Expression: MIT AND (Apache-2.0 WITH LLVM-exception)" in metadata
    root = tmp_path / "forkyard_toy_few"
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["machine"] == "aarch64"
    assert manifest["toolchain"]["target"] == "aarch64-linux-gnu"
    assert manifest["cpu_features"] == ["asimd"]
    assert [(one["name"], one["flags"]) for one in manifest["members"]] == [
        ("dots", ["-mcpu=generic+neon+fullfp16+dotprod"]),
        ("neon", ["-mcpu=generic+neon"]),
    ]
    for member, dots in (("dots", True), ("neon", False)):
        library = read_elf((root / "bin" / f"libggml-cpu-{member}-toy-few.so").read_bytes())
        assert ("DOTPROD" in code_use(library).sets) == dots
        # The engine is told what each was compiled for.
        assert b"\0ggml_backend_score\0" in library.dynamic_names
        assert (b"\0ggml_toy_dot\0" in library.dynamic_names) == dots
    # One C++ library for all, under a name that no other payload has.
    assert manifest["libraries"]["forkyard-cxx"] == f"lib/{CXX}"
    assert CXX in read_elf((root / "lib" / "libllama-toy-few.so").read_bytes()).needed
    assert {"libcxx-LICENSE.TXT", "zig-LICENSE"} <= {path.name for path in (root / "licenses").iterdir()}
    (library,) = (one for one in sbom["components"] if one["name"] == CXX)
    assert library["licenses"] == [{"expression": "Apache-2.0 WITH LLVM-exception"}]
    assert build(arm_toy, tmp_path).built["fresh"] is False

    # What was left of the build is used again, and code for more than the variant is caught.
    arm_toy.change_engine(
        "CMakeLists.txt",
        "add_library(mtmd src/mtmd.c)",
        "add_library(mtmd src/cpu.c src/mtmd.c)\ntarget_compile_options(mtmd PRIVATE -mcpu=generic+dotprod)",
    )
    arm_toy.edit_recipe(*SCORED)
    failed = build(arm_toy, tmp_path)
    assert failed.status == 8
    assert "libmtmd-toy-few.so: uses DOTPROD, which the variant does not have (sdot)" in failed.stdout + failed.stderr
