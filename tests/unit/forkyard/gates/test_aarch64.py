"""The gates on payloads for 64-bit ARM: a sound one passes, and each planted fault is found."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import capstone
import pytest

from forkyard.gates import IsaLimits, check_wheel, limits_for, platform_floor
from forkyard.gates.aarch64 import _PLAIN, code_use
from forkyard.gates.elf import read_elf
from forkyard.recipes.load import load_recipe, load_variants
from forkyard.recipes.variants import resolve

MakeElf = Callable[..., bytes]
MakeWheel = Callable[..., Path]

PACKAGE = "forkyard_engine_avx2"
AARCH64 = 183
NEON = frozenset({"FPARMV8", "NEON"})
LIMITS = IsaLimits(
    NEON | {"DOTPROD"},
    "cpu",
    {"asimddp": frozenset({"DOTPROD"})},
    {"engine": frozenset({"SME"})},
    machine="aarch64",
)


def changed(**libraries: dict[str, Any]) -> dict[str, Any]:
    """A wheel for 64-bit ARM, less what is to be wrong with it."""
    sound: dict[str, dict[str, Any]] = {
        "engine": {"code": ["mov", "neon"], "versions": {"libc.so.6": ["GLIBC_2.17", "GLIBC_2.27"]}},
        "cpu": {"code": ["dotprod"], "versions": {"libm.so.6": ["GLIBC_2.27"]}},
        "tool": {"interpreter": "/lib/ld-linux-aarch64.so.1"},
    }
    return {
        "name": f"{PACKAGE}-1.0-py3-none-manylinux_2_27_aarch64.whl",
        **{name: {"machine": AARCH64, **facts, **libraries.pop(name, {})} for name, facts in sound.items()},
        **libraries,
    }


def found(wheel: Path) -> list[str]:
    return [str(finding) for finding in check_wheel(wheel, package=PACKAGE, limits=LIMITS).findings]


def test_a_sound_wheel_passes(make_wheel: MakeWheel) -> None:
    wheel = make_wheel(**changed())
    report = check_wheel(wheel, package=PACKAGE, limits=LIMITS)
    assert not report.findings
    assert report.facts["platform_floor"] == "manylinux_2_27_aarch64"
    assert report.facts["instruction_sets"][f"{PACKAGE}/lib/libcpu-fy.so"] == ["DOTPROD"]
    assert platform_floor(wheel) == "manylinux_2_27_aarch64"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"cpu": {"machine": 62, "code": ["avx2"]}},
            "[instructions] forkyard_engine_avx2/lib/libcpu-fy.so: is code for",
        ),
        ({"engine": {"needed": ["ld-linux-x86-64.so.2"]}}, "needs ld-linux-x86-64.so.2, which is neither"),
        ({"engine": {"needed": ["libc++.so.1"]}}, "needs libc++.so.1, which is neither in the wheel nor"),
        (
            {"cpu": {"versions": {"libc.so.6": ["GLIBC_2.34"]}}},
            "is tagged manylinux_2_27_aarch64, but needs manylinux_2_34_aarch64 (glibc 2.34",
        ),
        (
            {"name": f"{PACKAGE}-1.0-py3-none-manylinux_2_27_x86_64.whl"},
            "the platform tag manylinux_2_27_x86_64 is not one of Linux on 64-bit ARM",
        ),
        ({"engine": {"code": ["sve"]}}, "libengine-fy.so: uses SVE, which the variant does not have (ptrue)"),
        ({"cpu": {"code": ["dotprod", "i8mm"]}}, "libcpu-fy.so: uses MATMULINT8, which the variant does not have"),
        ({"tool": {"code": ["lse"]}}, "bin/tool: uses LSE, which the variant does not have (ldadd)"),
        ({"engine": {"code": ["sme"]}}, "it may be guarded, but the file holds no getauxval"),
        ({"cpu": {"code": ["neon"]}}, "[instructions] cpu: holds no asimddp instruction, which the variant is for"),
        ({"engine": {"code": ["none"]}}, "libengine-fy.so: holds what is no instruction at 0x"),
    ],
)
def test_each_fault_is_found(make_wheel: MakeWheel, changes: dict[str, Any], expected: str) -> None:
    findings = found(make_wheel(**changed(**changes)))
    assert any(expected in finding for finding in findings), findings


def test_code_that_asks_the_kernel_passes(make_wheel: MakeWheel) -> None:
    assert not found(make_wheel(**changed(engine={"code": ["sme"], "imports": ["getauxval"]})))


@pytest.mark.parametrize(
    ("code", "sets"),
    [
        (["mov", "branch"], set()),
        (["neon"], {"NEON"}),
        (["fp16"], {"NEON", "FULLFP16"}),
        (["i8mm", "dotprod"], {"MATMULINT8", "DOTPROD"}),
        (["sve", "sve2", "sme"], {"SVE", "SVE2", "SME"}),
    ],
)
def test_instructions_are_told_by_their_sets(make_elf: MakeElf, code: list[str], sets: set[str]) -> None:
    use = code_use(read_elf(make_elf(code, machine=AARCH64)))
    assert set(use.sets) == sets
    assert use.undecodable is None
    assert not use.asks


def test_what_is_no_instruction_is_told_with_its_address(make_elf: MakeElf) -> None:
    elf = read_elf(make_elf(["mov", "none", "neon", "none"], machine=AARCH64))
    assert code_use(elf).undecodable == elf.code[0][0] + 4


@pytest.mark.parametrize("mask", [mask for mask, _ in _PLAIN])
def test_what_is_not_looked_at_needs_nothing(mask: int) -> None:
    value = dict(_PLAIN)[mask]
    free = [bit for bit in range(32) if not mask >> bit & 1]
    random = Random(mask)
    words = [value | sum(1 << bit for bit in free if random.random() < 0.5) for _ in range(2000)]
    machine = capstone.Cs(capstone.CS_ARCH_AARCH64, capstone.CS_MODE_LITTLE_ENDIAN)
    machine.detail = machine.skipdata = True
    for instruction in machine.disasm(struct.pack("<2000I", *words), 0):
        groups = [instruction.group_name(group) for group in instruction.groups] if instruction.id else []
        assert not [name for name in groups if name.startswith("Has")], instruction


def test_limits_come_from_the_target_too() -> None:
    root = Path(__file__).parents[4]
    recipe = load_recipe("llama.cpp", root)
    limits = limits_for(recipe, resolve(load_variants(root), "cpu-aarch64", "llama.cpp"))
    assert limits.machine == "aarch64"
    assert limits.allowed == NEON
    assert limits.members["dotprod"].allowed == NEON | {"LSE", "FULLFP16", "DOTPROD"}
    assert limits.guarded["forkyard-cxx"] == {"MTE", "SME", "SVE"}
