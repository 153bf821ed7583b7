"""A CPU library scores 0 where the OS does not save the registers it uses, whatever CPUID lists.

The file that scores is compiled alone, with a CPU that has everything and an OS that saves what the test says, so it
does not matter which CPU runs the test.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .compiling import compiled, extract

pytestmark = pytest.mark.patch("cpu-variant-os")

FILE = "ggml/src/ggml-cpu/arch/x86/cpu-feats.cpp"
HEADERS = ("ggml/include", "ggml/src/ggml-backend-impl.h")
# What CPUID lists, and the instruction that reads what the OS saves; without the patch nothing asks that.
LISTED = re.compile(r"(bool (\w+)\(void\) \{ return )[^;]+(; \})")
ASKED = re.compile(r"__asm__ __volatile__\(\"xgetbv\"[^;]*;")
SAVED = 'extern "C" { unsigned saved = 0; }\n'
# Bits of XCR0; an OS that saves nothing does not set OSXSAVE.
SSE, AVX, OPMASK, ZMM, MORE_ZMM, TILE_CONFIG, TILES = 0x3, 0x4, 0x20, 0x40, 0x80, 0x20000, 0x40000
AVX512, AMX = OPMASK | ZMM | MORE_ZMM, TILE_CONFIG | TILES
# The options of upstream's libraries, those for GCC and the two of MSVC that imply AVX without naming it.
UP_TO_AVX2 = ("SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2")
MSVC_AVX2 = ("F16C", "FMA", "AVX2")
MSVC_AVX512 = ("AVX512",)


@pytest.fixture(scope="module")
def score(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """A function from what the OS saves and the options of a CPU library to its score."""
    folder = extract(engine_payload("llama.cpp"), tmp_path_factory.mktemp("score"), FILE, *HEADERS)
    text, count = LISTED.subn(
        lambda match: match[1] + ("saved != 0" if match[2] == "OSXSAVE" else "true") + match[3],
        (folder / FILE).read_text(),
    )
    assert count > 40
    text = SAVED + ASKED.sub("eax = saved; edx = 0;", text)
    libraries: dict[tuple[str, ...], ctypes.CDLL] = {}

    def scored(saved: int, *options: str) -> int:
        if options not in libraries:
            defines = ["BACKEND_DL", "BACKEND_BUILD", "BACKEND_SHARED", *options]
            words = ["-shared", "-fPIC", *(f"-DGGML_{name}" for name in defines)]
            words += [f"-I{folder / 'ggml' / name}" for name in ("include", "src")]
            libraries[options] = ctypes.CDLL(str(compiled(text, folder / f"of-{'-'.join(options)}.so", *words)))
        ctypes.c_uint.in_dll(libraries[options], "saved").value = saved
        return int(libraries[options].ggml_backend_score())

    return scored


def test_a_library_without_wide_registers_needs_nothing(score: Callable[..., int]) -> None:
    assert score(0) == score(SSE) == 1
    assert score(0, "SSE42") == score(SSE | AVX, "SSE42") == 5


@pytest.mark.parametrize("options", [("SSE42", "AVX"), UP_TO_AVX2, MSVC_AVX2])
def test_avx(score: Callable[..., int], options: tuple[str, ...]) -> None:
    assert score(SSE | AVX, *options) > score(SSE, "SSE42")
    assert [score(saved, *options) for saved in (0, 1, SSE, AVX, AVX512)] == [0] * 5


@pytest.mark.parametrize("options", [(*UP_TO_AVX2, "AVX512"), MSVC_AVX512])
def test_avx512(score: Callable[..., int], options: tuple[str, ...]) -> None:
    all_of_it = SSE | AVX | AVX512
    assert score(all_of_it, *options) > score(SSE | AVX, *UP_TO_AVX2)
    lacking = [0, SSE, SSE | AVX, SSE | AVX512, *(all_of_it - bit for bit in (OPMASK, ZMM, MORE_ZMM))]
    assert [score(saved, *options) for saved in lacking] == [0] * len(lacking)


def test_amx(score: Callable[..., int]) -> None:
    options, below = (*UP_TO_AVX2, "AVX512", "AMX_INT8"), SSE | AVX | AVX512
    assert score(below | AMX, *options) > score(below | AMX, *UP_TO_AVX2, "AVX512")
    lacking = [below, below | TILES, below | TILE_CONFIG, SSE | AMX, SSE | AVX | AMX]
    assert [score(saved, *options) for saved in lacking] == [0] * len(lacking)
