from __future__ import annotations

import ctypes
import math
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from forkyard_llm.engines.candidates import Candidates
from forkyard_llm.errors import AbiMismatch, EngineError
from forkyard_llm.sampling import SamplingParams
from hypothesis import given
from hypothesis import strategies as st

from forkyard.abi import generate, render_ctypes, render_probe

HEADER = """
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
typedef int32_t llama_token;
typedef struct llama_token_data { llama_token id; float logit; float p; } llama_token_data;
typedef struct llama_token_data_array {
    llama_token_data * data; size_t size; int64_t selected; bool sorted;
} llama_token_data_array;
"""
EVERYTHING = SamplingParams(top_k=0)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, ctypes.CDLL]:
    """The generated module and the probe library of a header that declares candidates as the engines do."""
    folder = tmp_path_factory.mktemp("candidates")
    (folder / "engine.h").write_text(HEADER)
    abi = generate([folder / "engine.h"], [], [])
    module = ModuleType("generated")
    exec(render_ctypes(abi), module.__dict__)
    return module, compile_probe(folder, render_probe(abi))


def compile_probe(folder: Path, source: str) -> ctypes.CDLL:
    (folder / "probe.c").write_text(source)
    command = ["cc", "-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{folder}"]
    command += ['-DFORKYARD_BUILD_KEY="k"', '-DFORKYARD_ABI_SHA256="s"', "-o", str(folder / "libprobe.so")]
    subprocess.run([*command, str(folder / "probe.c")], check=True, timeout=1800)
    return ctypes.CDLL(str(folder / "libprobe.so"))


def row(values: list[float]) -> ctypes._Pointer[ctypes.c_float]:
    return ctypes.cast((ctypes.c_float * len(values))(*values), ctypes.POINTER(ctypes.c_float))


def filled(parts: tuple[ModuleType, ctypes.CDLL], values: list[float], keep: int) -> list[tuple[int, float]]:
    candidates = Candidates(*parts, len(values))
    candidates.fill(row(values), SamplingParams(top_k=keep))
    array = candidates.array
    assert (array.selected, array.sorted) == (-1, False)
    return [(array.data[index].id, array.data[index].logit) for index in range(array.size)]


LOGITS = st.lists(
    st.one_of(st.floats(-200, 200, width=32), st.just(-math.inf), st.sampled_from([0.0, 1.5])), min_size=1, max_size=80
)


@given(values=LOGITS)
def test_the_whole_vocabulary(parts, values: list[float]):
    assert filled(parts, values, 0) == list(enumerate(values))


@given(values=LOGITS, keep=st.integers(min_value=1, max_value=90))
def test_a_short_list_holds_every_token_a_top_k_would_keep(parts, values: list[float], keep: int):
    chosen = filled(parts, values, keep)
    assert chosen == sorted(chosen)
    assert all(values[token] == logit for token, logit in chosen)
    best = sorted(values, reverse=True)[:keep]
    assert sorted((logit for _, logit in chosen), reverse=True)[:keep] == best


@given(values=LOGITS)
def test_the_most_likely_token_is_the_first_of_the_best(parts, values: list[float]):
    candidates = Candidates(*parts, len(values))
    candidates.fill(row(values), SamplingParams(temperature=0))
    assert candidates.first() == values.index(max(values))


def test_a_short_list_of_a_usual_distribution_is_short(parts):
    values = [-((token % 1000) / 20.0) for token in range(50_000)]
    assert 40 <= len(filled(parts, values, 40)) < 10_000


@given(values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), place=st.integers(0, 39))
@pytest.mark.parametrize("keep", [0, 1, 5])
def test_logits_that_are_not_numbers_are_an_error(parts, keep: int, values: list[float], place: int):
    values[place % len(values)] = math.nan
    with pytest.raises(EngineError, match="not numbers"):
        filled(parts, values, keep)


def test_the_error_says_what_the_engine_says(parts):
    row_of_nan = row([float("nan")] * 3)
    for said, ending in (("lost the RPC server", " The engine says: lost the RPC server$"), ("", "suit it\\?$")):
        with pytest.raises(EngineError, match=ending):
            Candidates(*parts, 3, lambda said=said: said).fill(row_of_nan, SamplingParams())


def test_no_logits_are_an_error(parts):
    with pytest.raises(EngineError, match="no logits"):
        Candidates(*parts, 4).fill(ctypes.POINTER(ctypes.c_float)(), SamplingParams())


def test_biases_move_tokens_into_and_out_of_a_short_list(parts):
    values = [0.0] * 10_000
    values[5] = 50.0
    candidates = Candidates(*parts, len(values))
    candidates.fill(row(values), SamplingParams(temperature=0, logit_bias={5: -math.inf, 7: 0.5}))
    assert candidates.first() == 7
    candidates.fill(row(values), SamplingParams(top_k=1, logit_bias={9: 60.0}))
    assert (candidates.array.size, candidates.first()) == (1, 9)


def test_the_selected_candidate(parts):
    candidates = Candidates(*parts, 3)
    candidates.fill(row([1.0, 2.0, 3.0]), EVERYTHING)
    candidates.array.selected = 2
    assert candidates.selected() == 2


def test_what_a_sampler_did_to_the_array_is_undone(parts):
    candidates = Candidates(*parts, 3)
    candidates.fill(row([1.0, 2.0, 3.0]), EVERYTHING)
    own = (parts[0].llama_token_data * 1)()
    candidates.array.data = ctypes.cast(own, ctypes.POINTER(parts[0].llama_token_data))
    candidates.array.size = 1
    candidates.fill(row([3.0, 2.0, 1.0]), EVERYTHING)
    assert [candidates.array.data[index].logit for index in range(candidates.array.size)] == [3.0, 2.0, 1.0]


def test_a_probe_without_the_function_is_refused(parts, tmp_path: Path):
    (tmp_path / "bare.h").write_text("struct s { int x; };\n")
    bare = compile_probe(tmp_path, render_probe(generate([tmp_path / "bare.h"], [], [])))
    with pytest.raises(AbiMismatch, match="no candidate function"):
        Candidates(parts[0], bare, 4)
