from __future__ import annotations

import pytest
from forkyard_llm.engines.options import (
    CAPABILITIES,
    CHOICES,
    ENGINE_OPTIONS,
    FAMILIES,
    ModelOptions,
    check_engine_options,
    choice,
    families_with,
)
from forkyard_llm.errors import UnsupportedOption, UsageError


def test_every_table_knows_every_family():
    assert set(CAPABILITIES) == set(ENGINE_OPTIONS) == set(FAMILIES)
    assert all(set(table) == set(FAMILIES) for table in CHOICES.values())


def test_an_option_of_the_other_engine_names_that_engine():
    with pytest.raises(UnsupportedOption, match=r"llama\.cpp has no option 'mla_attn'; ik_llama\.cpp has it"):
        check_engine_options("llama.cpp", {"mla_attn": 2})
    with pytest.raises(UnsupportedOption, match=r"ik_llama\.cpp has no option 'swa_full'; llama\.cpp has it"):
        check_engine_options("ik_llama.cpp", {"swa_full": True})


def test_an_option_no_engine_has_is_a_mistake():
    with pytest.raises(UsageError, match="no engine has an option 'n_gpu_layer'"):
        check_engine_options("llama.cpp", {"n_gpu_layer": 3})


@pytest.mark.parametrize(
    ("name", "value"), [("mla_attn", True), ("mla_attn", "2"), ("graph_reuse", 1), ("rope_cache", None)]
)
def test_values_of_the_wrong_type_are_refused(name: str, value: object):
    with pytest.raises(UsageError, match=f"option '{name}' must be"):
        check_engine_options("ik_llama.cpp", {name: value})


def test_right_values_pass():
    check_engine_options("ik_llama.cpp", {"mla_attn": 3, "graph_reuse": False, "thresh_experts": 1})
    check_engine_options("llama.cpp", {"swa_full": False, "direct_io": True})


def test_names_are_taken_in_any_case():
    assert choice("llama.cpp", "cache type", "type_k", "Q8_0") == "q8_0"
    assert choice("ik_llama.cpp", "cache type", "type_k", "q8_KV") == "q8_kv"


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_both_engines_have_the_cache_types_of_the_stack(engine):
    assert choice(engine, "cache type", "type_v", "ftq3") == "ftq3"


def test_a_name_of_the_other_engine_names_that_engine():
    with pytest.raises(UnsupportedOption, match=r"llama\.cpp has no split_mode 'graph' .*ik_llama\.cpp has it"):
        choice("llama.cpp", "split_mode", "split_mode", "graph")
    with pytest.raises(UnsupportedOption, match=r"llama\.cpp has no type_k 'q6_0'"):
        choice("llama.cpp", "cache type", "type_k", "q6_0")


@pytest.mark.parametrize("value", ["rows", "", 2])
def test_a_name_no_engine_knows_is_a_mistake(value):
    with pytest.raises(UsageError, match="not known to any engine"):
        choice("llama.cpp", "split_mode", "split_mode", value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_ctx": -1},
        {"n_batch": 0},
        {"n_threads": 0},
        {"n_threads_batch": 0},
        {"n_ubatch": 0},
        {"n_ctx": 2**31},
        {"n_ctx": 1.5},
    ],
)
def test_sizes_that_make_no_sense_are_refused(arguments):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        ModelOptions(**arguments)


def test_families_with():
    assert families_with("chat") == FAMILIES
    assert families_with("mla_attn") == ("ik_llama.cpp",)
    assert families_with("split_mode:tensor") == ("llama.cpp",)
    assert families_with("telepathy") == ()


def test_a_batch_has_room_for_a_token_of_each_request():
    assert ModelOptions(n_parallel=8, n_batch=8).n_parallel == 8
    with pytest.raises(UsageError, match="n_parallel is 9, and a batch has room for 8 tokens"):
        ModelOptions(n_parallel=9, n_batch=8)
