from __future__ import annotations

from pathlib import Path

import pytest
from iced_x86 import CpuidFeature

from forkyard.errors import RecipeError
from forkyard.recipes.load import load_recipe, load_variants
from forkyard.recipes.model import FAMILIES
from forkyard.recipes.variants import Variants, cmake_value, configure_options, resolve, supported


@pytest.fixture
def variants(project: Path) -> Variants:
    return load_variants(project)


@pytest.fixture(scope="module")
def own(repository: Path) -> Variants:
    return load_variants(repository)


def test_every_isa_option_is_given_explicitly(variants: Variants) -> None:
    resolved = resolve(variants, "avx2", "llama.cpp")
    assert resolved.options == {
        "GGML_AVX": True,
        "GGML_AVX2": True,
        "GGML_AVX512": False,
        "GGML_BMI2": True,
        "GGML_NATIVE": False,
    }
    assert resolved.flags == ()
    assert resolved.features == ("avx", "avx2", "bmi2")


def test_what_no_option_covers_becomes_a_flag(variants: Variants) -> None:
    resolved = resolve(variants, "avx2", "ik_llama.cpp")
    assert "GGML_BMI2" not in resolved.options
    assert resolved.flags == ("-mbmi2",)


def test_an_option_is_off_unless_all_its_features_are_there(project: Path) -> None:
    extra = project / "extra.toml"
    extra.write_text(
        'schema = 1\n[variants.f]\ntitle = "F alone"\nkind = "isa"\nextends = "avx2"\n'
        'features = ["avx512f"]\nrank = 35\n'
    )
    resolved = resolve(load_variants(project, extra), "f", "llama.cpp")
    assert resolved.options["GGML_AVX512"] is False
    assert resolved.flags == ("-mavx512f",)


def test_features_and_proof_are_inherited_or_own(variants: Variants) -> None:
    resolved = resolve(variants, "avx512", "llama.cpp")
    assert set(resolved.features) == {"avx", "avx2", "bmi2", "avx512f", "avx512dq"}
    assert resolved.proof == {"avx512f": frozenset({"AVX512F"})}
    assert resolved.instruction_sets == {"AVX", "AVX2", "BMI2", "AVX512F", "AVX512DQ"}


def test_native_takes_the_hosts_features_and_the_proof_they_owe(variants: Variants) -> None:
    resolved = resolve(variants, "native", "llama.cpp", ["fpu", "avx", "avx2", "bmi2", "avx512f"])
    assert resolved.features == ("avx", "avx2", "avx512f", "bmi2")
    assert resolved.options["GGML_NATIVE"] is True
    assert resolved.flags == ()
    assert resolved.proof == {"avx2": frozenset({"AVX2"})}
    assert resolve(variants, "native", "llama.cpp", []).proof == {}


def test_native_needs_to_know_the_host(variants: Variants) -> None:
    with pytest.raises(RecipeError, match="were not given"):
        resolve(variants, "native", "llama.cpp")


def test_an_unsupported_variant_says_why_and_what_there_is(variants: Variants) -> None:
    with pytest.raises(RecipeError, match="it is not done yet") as caught:
        resolve(variants, "avx512", "ik_llama.cpp")
    assert "native, avx2" in str(caught.value)
    assert caught.value.where == variants.location_of("variants", "avx512", "engines", "ik_llama.cpp", "unsupported")


def test_a_mistyped_variant_is_corrected(variants: Variants) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'avx512'\?"):
        resolve(variants, "avx521", "llama.cpp")
    with pytest.raises(RecipeError, match="no ISA options are known"):
        resolve(variants, "avx2", "whisper.cpp")


def test_options_are_written_as_cmake_does(project: Path, variants: Variants) -> None:
    options = configure_options(load_recipe("mine", project), resolve(variants, "avx2", "llama.cpp"))
    assert options["GGML_OPENMP"] == "ON"
    assert options["GGML_AVX512"] == "OFF"
    assert options["GGML_LIMIT"] == "4"
    assert options["GGML_LABEL"] == "fy"
    assert list(options) == sorted(options)
    assert [cmake_value(value) for value in (True, 0, "")] == ["ON", "0", ""]


def test_a_recipe_leaves_instruction_sets_to_the_variant(project: Path, variants: Variants) -> None:
    path = project / "recipes" / "mine.toml"
    path.write_text(path.read_text().replace("GGML_LIMIT = 4", "GGML_AVX = false"))
    with pytest.raises(RecipeError, match="the recipe sets GGML_AVX") as caught:
        configure_options(load_recipe("mine", project), resolve(variants, "avx2", "llama.cpp"))
    assert str(path) in str(caught.value.where)


def test_the_projects_features_are_named_as_the_disassembler_does(own: Variants) -> None:
    for name, feature in own.features.items():
        assert feature.flags, name
        for unit in feature.instruction_sets:
            assert hasattr(CpuidFeature, unit), unit


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projects_variants_resolve_for_both_engines(own: Variants, repository: Path, family: str) -> None:
    recipe = load_recipe(family, repository)
    names = supported(own, family)
    assert names[0] == "native"
    for name in names:
        resolved = resolve(own, name, family, own.features)
        assert set(resolved.proof) <= set(resolved.features)
        assert set(resolved.options) >= set(own.engines[recipe.family].options)
        configure_options(recipe, resolved)


def test_the_fast_kernels_of_ik_get_every_flag_they_ask_for(own: Variants) -> None:
    resolved = resolve(own, "avx512-vnni", "ik_llama.cpp")
    on = {option for option, value in resolved.options.items() if value is True}
    assert on == {"GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_AVX512", "GGML_AVX512_VNNI"}
    assert {"-mavx512vl", "-mavx512dq", "-mavx512cd", "-mbmi2"} <= set(resolved.flags)


def test_engines_lack_the_variants_their_code_cannot_have(own: Variants) -> None:
    assert supported(own, "llama.cpp") == [
        *("native", "amx", "avx512-bf16", "avx512-vnni", "avx512", "avx2", "sse42"),
    ]
    assert supported(own, "ik_llama.cpp") == ["native", "avx512-bf16", "avx512-vnni", "avx512", "avx2"]
