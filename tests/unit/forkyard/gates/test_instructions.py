from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from iced_x86 import CpuidFeature

from forkyard.gates.elf import read_elf
from forkyard.gates.instructions import BASELINE, code_use, limits_for
from forkyard.recipes.load import load_recipe, load_variants
from forkyard.recipes.variants import resolve

MakeElf = Callable[..., bytes]


@pytest.mark.parametrize(
    ("code", "beyond"),
    [
        ([], set()),
        (["avx2"], {"AVX2"}),
        (["avx512f"], {"AVX512F"}),
        (["avx512_vnni", "avx512f"], {"AVX512_VNNI", "AVX512F"}),
        (["amx"], {"AMX_INT8"}),
        (["lzcnt"], {"LZCNT"}),
        (["tzcnt"], set()),
        (["cpuid"], set()),
    ],
)
def test_instructions_are_told_by_their_sets(make_elf: MakeElf, code: list[str], beyond: set[str]) -> None:
    use = code_use(read_elf(make_elf(code)))
    assert set(use.sets) - BASELINE == beyond
    assert use.undecodable is None


def test_what_is_no_instruction_is_told_with_its_address(make_elf: MakeElf) -> None:
    elf = read_elf(make_elf(["avx2", "none"]))
    assert code_use(elf).undecodable == elf.code[0][0] + 4


def test_instructions_are_named(make_elf: MakeElf) -> None:
    use = code_use(read_elf(make_elf(["avx512_vnni"])))
    assert use.sets["AVX512_VNNI"] == {"EVEX_VPDPBUSD_ZMM_K1Z_ZMM_ZMMM512B32"}


def test_the_baseline_is_named_as_the_disassembler_does() -> None:
    assert all(hasattr(CpuidFeature, name) for name in BASELINE)


def test_limits_come_from_the_recipe_and_the_variant() -> None:
    root = Path(__file__).parents[4]
    recipe = load_recipe("llama.cpp", root)
    limits = limits_for(recipe, resolve(load_variants(root), "avx512", "llama.cpp"))
    assert limits.cpu_library == "ggml-cpu"
    assert "AVX512VL" in limits.allowed
    assert "AVX512_VNNI" not in limits.allowed
    assert limits.proof == {"avx512f": frozenset({"AVX512F"})}
    assert limits.guarded == {"mtmd": frozenset({"LZCNT"})}
