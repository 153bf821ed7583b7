"""A stack's own C API in the payload: described, probed, callable; and absent where the stack is not in the build."""

from __future__ import annotations

import ctypes
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..toy import VARIANT, Toy

HEADER = "ours/include/toy-extra.h"
SOURCE = "ours/toy-extra.c"
# In a folder that no recipe names, on top of the engine's own header, C++ like ggml.h or not.
TEXT = """\
#pragma once
#include "ggml.h"
#ifdef __cplusplus
extern "C" {
#endif
#define TOY_EXTRA_TYPE ((enum ggml_toy_type) 7)
enum toy_extra_cause { TOY_EXTRA_NONE = 0, TOY_EXTRA_FULL = 3 };
struct toy_extra { enum toy_extra_cause cause; long long bytes; char text[20]; };
int toy_extra_take(struct toy_extra * out, enum ggml_toy_type type);
#ifdef __cplusplus
}
#endif
"""
BODY = """\
#include "toy-extra.h"
#include <string.h>
int toy_extra_take(struct toy_extra * out, enum ggml_toy_type type) {
    out->cause = type == TOY_EXTRA_TYPE ? TOY_EXTRA_FULL : TOY_EXTRA_NONE;
    out->bytes = 1ll << 40;
    strcpy(out->text, "one; two");
    return 1;
}
"""
PATCHES = {
    "first": [("src/part1.cpp", ") + 1;", ") + 11;")],
    "api": [
        (HEADER, "", TEXT),
        (SOURCE, "", BODY),
        ("CMakeLists.txt", "ggml-base src/base.c", f"ggml-base src/base.c {SOURCE}"),
        ("CMakeLists.txt", "include_directories(include", "include_directories(ours/include include"),
    ],
}


@pytest.fixture
def stacked(toy: Toy) -> Toy:
    """The toy with a stack whose second patch adds a C API."""
    toy.stack("extra", PATCHES, adds={"api": [HEADER, SOURCE]}, headers=[HEADER])
    return toy


class Payload:
    """A built toy payload, opened."""

    def __init__(self, wheel: str, folder: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (self.package,) = folder.glob("forkyard_toy_*[!o]")
        self.manifest = json.loads((self.package / "manifest.json").read_text())
        self.abi = ModuleType("abi")
        exec((self.package / "_abi.py").read_text(), self.abi.__dict__)

    def library(self, name: str) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.package / self.manifest["libraries"][name]))

    def probed(self) -> list[int]:
        """Sizes and offsets as the compiler made them."""
        probe, values = self.library("probe"), ctypes.POINTER(ctypes.c_uint64)()
        count = probe.forkyard_probe_layout(ctypes.byref(values))
        return values[:count]


def test_the_api_of_a_stack_is_in_the_payload(stacked: Toy, tmp_path: Path) -> None:
    payload = Payload(stacked.build().built["wheel"], tmp_path / "with")
    abi: Any = payload.abi
    api = abi.bind(payload.library("ggml-base"))
    out = abi.toy_extra()
    assert api.toy_extra_take(ctypes.byref(out), abi.TOY_EXTRA_TYPE) == 1
    assert (out.cause, out.bytes, out.text) == (abi.TOY_EXTRA_FULL, 2**40, b"one; two")
    assert abi.ENUMS["toy_extra_cause"] == {"TOY_EXTRA_NONE": 0, "TOY_EXTRA_FULL": 3}
    labels = [label for label, _ in abi.PROBE_LAYOUT]
    assert "offsetof(struct toy_extra, bytes)" in labels
    assert payload.probed() == [value for _, value in abi.PROBE_LAYOUT] == list(abi.ctypes_layout())
    assert [(stack["name"], stack["headers"]) for stack in payload.manifest["stacks"]] == [("extra", [HEADER])]

    plain = Payload(stacked.build("--stacks", "none").built["wheel"], tmp_path / "without")
    assert not hasattr(plain.abi, "toy_extra")
    assert not hasattr(plain.abi, "TOY_EXTRA_TYPE")
    assert "toy_extra_take" not in plain.abi.bind(plain.library("llama")).missing
    assert plain.probed() == [value for _, value in plain.abi.PROBE_LAYOUT]


def test_a_changed_header_is_another_key_and_another_module(stacked: Toy, tmp_path: Path) -> None:
    before = stacked.build().built
    changed = {**PATCHES, "api": [(HEADER, "", TEXT.replace("20]", "40]")), *PATCHES["api"][1:]]}
    stacked.stack("extra", changed, adds={"api": [HEADER, SOURCE]}, headers=[HEADER])
    after = stacked.build().built
    assert after["key"] != before["key"]
    payload = Payload(after["wheel"], tmp_path / "after")
    assert ctypes.sizeof(payload.abi.toy_extra) == 56
    assert payload.probed() == list(payload.abi.ctypes_layout())


def test_a_beginning_of_the_series_without_the_header_builds(stacked: Toy) -> None:
    answer = stacked.run("stack", "verify", "--variant", VARIANT, "--no-ccache", "--no-tests")
    assert answer.status == 0, answer.stderr
    (recipe,) = answer.json["recipes"]
    assert recipe["ok"]
    assert [unit["state"] for unit in recipe["units"]] == ["good"] * len(recipe["units"])
    assert len(recipe["units"]) >= 2


def test_a_header_no_patch_adds_stops_the_build_in_words(stacked: Toy) -> None:
    about = stacked.root / "patches" / "extra" / "stack.toml"
    about.write_text(about.read_text().replace("toy-extra.h", "toy-extras.h"))
    answer = stacked.build()
    assert answer.status == 6
    assert answer.json["what"] == "no patch of stack extra adds its header ours/include/toy-extras.h"
    assert answer.json["where"] == str(about)
    assert HEADER in answer.json["why"]
    assert stacked.wheels() == []
    (finding,) = [found for found in stacked.run("stack", "lint").json["findings"] if found["rule"] == "headers"]
    assert finding["next"] == f"did you mean {HEADER}?"
