"""The functions of the stack `numa-mirror`: bound from a small library of the same interface."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.engines.numa_mirror import NumaCopy, NumaMirror, NumaNode, NumaRange, NumaReport, read_report
from forkyard_llm.errors import EngineError
from hypothesis import given
from hypothesis import strategies as st

# The signatures of ggml-numa-mirror.h; `told` is what the library was last told, `reports` how often it was asked.
SOURCE = r"""
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
int told = -1, n_nodes = 0, reports = 0, padding = 0;
static uint64_t counts[2][2];
bool ggml_numa_mirror_start(bool split) { (void) split; n_nodes = 2; return true; }
void ggml_numa_mirror_set(int what) { told = what; }
int  ggml_numa_mirror_n_nodes(void) { return n_nodes; }
void ggml_numa_mirror_counters(int node, uint64_t * local, uint64_t * remote) {
    *local = counts[node][0]; *remote = counts[node][1];
}
void ggml_numa_mirror_reset_counters(void) {
    for (int i = 0; i < 4; ++i) counts[i/2][i%2] = 0;
}
void work(int node, uint64_t local, uint64_t remote) { counts[node][0] += local; counts[node][1] += remote; }
size_t ggml_numa_mirror_report(char * text, size_t size) {
    ++reports;
    return (size_t) snprintf(text, size, "{\"mode\":\"%s\",\"fake\":true,\"nodes\":[%s],%*s\"ranges\":[]}",
        n_nodes ? "mirror" : "off", !n_nodes ? "" :
        "{\"id\":0,\"cpus\":2,\"local\":0,\"remote\":0},{\"id\":3,\"cpus\":4,\"local\":0,\"remote\":0}", padding, "");
}
"""


def compile_library(folder: Path, source: str) -> ctypes.CDLL:
    (folder / "numa.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(folder / "libnuma.so"), str(folder / "numa.c")]
    subprocess.run(command, check=True, timeout=60)
    return ctypes.CDLL(str(folder / "libnuma.so"))


@pytest.fixture
def library(tmp_path: Path) -> ctypes.CDLL:
    return compile_library(tmp_path, SOURCE)


def number(library: ctypes.CDLL, name: str) -> ctypes.c_int:
    return ctypes.c_int.in_dll(library, name)


def work(library: ctypes.CDLL, node: int, local: int, remote: int) -> None:
    library.work(node, ctypes.c_uint64(local), ctypes.c_uint64(remote))


def test_the_library_that_has_them_is_found(library: ctypes.CDLL):
    process = ctypes.CDLL(None)
    assert NumaMirror.find([process]) is None
    assert NumaMirror.find([]) is None
    assert NumaMirror.find([process, library]) is not None


def test_half_of_them_is_a_damaged_payload(tmp_path: Path):
    half = compile_library(tmp_path, "int ggml_numa_mirror_start(int split) { return split; }")
    with pytest.raises(EngineError, match=r"has ggml_numa_mirror_start, but no ggml_numa_mirror_\w+; reinstall"):
        NumaMirror.find([half])


def test_bits_arrive(library: ctypes.CDLL):
    NumaMirror(library).set(5)
    assert number(library, "told").value == 5


def test_off_counts_nothing_and_asks_nothing(library: ctypes.CDLL):
    assert NumaMirror(library).counters() == []
    assert number(library, "reports").value == 0


def test_counters_have_the_kernel_s_ids(library: ctypes.CDLL):
    mirror = NumaMirror(library)
    library.ggml_numa_mirror_start(False)
    work(library, 0, 2**40, 0)
    work(library, 1, 3, 1)
    assert mirror.counters() == [NumaNode(0, 2, 2**40, 0), NumaNode(3, 4, 3, 1)]
    work(library, 1, 1, 0)
    assert mirror.counters()[1] == NumaNode(3, 4, 4, 1)
    assert number(library, "reports").value == 1, "the report is dear; ids are asked for once"
    mirror.reset_counters()
    assert mirror.counters() == [NumaNode(0, 2, 0, 0), NumaNode(3, 4, 0, 0)]


@pytest.mark.parametrize("padding", [0, 16384, 100_000])
def test_a_report_of_any_length_arrives_whole(library: ctypes.CDLL, padding: int):
    library.ggml_numa_mirror_start(False)
    number(library, "padding").value = padding
    report = NumaMirror(library).report()
    assert report == NumaReport("mirror", (NumaNode(0, 2, 0, 0), NumaNode(3, 4, 0, 0)), (), fake=True)
    assert number(library, "reports").value == (1 if padding == 0 else 2)


def test_the_share_of_local_bytes():
    assert NumaNode(0, 1, 3, 1).local_share == 0.75
    assert NumaNode(0, 1, 0, 0).local_share is None


def test_ranges_are_read():
    copies = [{"id": 0, "alias": True, "pages": 9, "here": 9}, {"id": 2, "alias": False, "pages": 9, "here": 8}]
    kv = {"kind": "kv", "bytes": 36864, "mirrored": True, "node": copies, "differs": 4}
    weights = {"kind": "weights", "bytes": 7, "mirrored": False, "node": [], "differs": 0}
    split = {**weights, "slices_pages": 5, "slices_here": 4}
    text = json.dumps({"mode": "split", "nodes": [], "ranges": [kv, weights, split]})
    assert read_report(text) == NumaReport(
        "split",
        (),
        (
            NumaRange("kv", 36864, True, (NumaCopy(0, True, 9, 9), NumaCopy(2, False, 9, 8)), 4),
            NumaRange("weights", 7, False, (), 0),
            NumaRange("weights", 7, False, (), 0, slice_pages=5, slice_pages_here=4),
        ),
    )


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["mode", "nodes", "ranges", "id"]), inner),
)


@given(st.text() | JSON.map(json.dumps))
def test_anything_else_is_an_error_of_ours(text: str):
    try:
        read_report(text)
    except EngineError as error:
        assert "NUMA report cannot be read" in str(error)
