"""The functions of the stack `numa-mirror`: described from the stack's own header, bound from a small library.

So a change of the header that the bindings do not follow is seen here, without an engine.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from forkyard_llm.engines.numa_mirror import (
    NumaCopy,
    NumaFailure,
    NumaMirror,
    NumaNode,
    NumaRange,
    NumaReport,
    read_report,
)
from forkyard_llm.errors import EngineError
from hypothesis import given
from hypothesis import strategies as st

from forkyard.abi import generate, render_ctypes

HEADER = Path(__file__).parents[4] / "patches" / "numa-mirror" / "src" / "ggml" / "include" / "ggml-numa-mirror.h"

# What the stack's header takes from the engines' own.
GGML_H = """
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#define GGML_API extern
#define GGML_MAX_SRC 10
enum ggml_numa_strategy { GGML_NUMA_STRATEGY_DISABLED = 0, GGML_NUMA_STRATEGY_MIRROR = 4 };
struct ggml_context;
struct ggml_tensor { void * data; };
"""
BACKEND_H = "typedef struct ggml_backend_buffer * ggml_backend_buffer_t;\n"

# `told` is what the library was last told, `reports` how often it was asked.
SOURCE = r"""
#include "ggml-numa-mirror.h"
#include <stdio.h>
#include <string.h>
int told = -1, n_nodes = 0, reports = 0, padding = 0;
static uint64_t counts[2][2];
static struct ggml_numa_mirror_failure failure;
bool ggml_numa_mirror_start(bool split) { (void) split; n_nodes = 2; return true; }
bool ggml_numa_mirror_parse(const char * words, int * what) { *what = (int) strlen(words); return words[0] != '!'; }
void ggml_numa_mirror_set(int what) { told = what; }
void fail(int cause, int node, uint64_t lacks, const char * reason) {
    failure.cause = (enum ggml_numa_mirror_cause) cause; failure.node = node; failure.lacks = lacks;
    snprintf(failure.reason, sizeof(failure.reason), "%s", reason);
}
bool ggml_numa_mirror_take_failure(struct ggml_numa_mirror_failure * out) {
    if (!failure.reason[0]) return false;
    *out = failure; failure.reason[0] = 0; return true;
}
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


@dataclass(frozen=True)
class Bound:
    """A library, and what the generated module makes of it."""

    library: ctypes.CDLL
    abi: ModuleType
    api: Any


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stack's header beside what it includes."""
    folder = tmp_path_factory.mktemp("include")
    (folder / "ggml.h").write_text(GGML_H)
    (folder / "ggml-backend.h").write_text(BACKEND_H)
    (folder / HEADER.name).write_bytes(HEADER.read_bytes())
    return folder


def module_of(*headers: Path) -> ModuleType:
    module = ModuleType("generated")
    exec(render_ctypes(generate(headers, [], [])), module.__dict__)
    return module


def bound(folder: Path, include: Path, source: str) -> Bound:
    (folder / "numa.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{include}", str(folder / "numa.c")]
    subprocess.run([*command, "-o", str(folder / "libnuma.so")], check=True, timeout=1800)
    library, abi = ctypes.CDLL(str(folder / "libnuma.so")), module_of(include / HEADER.name)
    return Bound(library, abi, abi.bind(library))


@pytest.fixture
def engine(tmp_path: Path, include: Path) -> Bound:
    return bound(tmp_path, include, SOURCE)


@pytest.fixture
def library(engine: Bound) -> ctypes.CDLL:
    return engine.library


@pytest.fixture
def mirror(engine: Bound) -> NumaMirror:
    found = NumaMirror.find(engine.abi, engine.api)
    assert found is not None
    return found


def number(library: ctypes.CDLL, name: str) -> ctypes.c_int:
    return ctypes.c_int.in_dll(library, name)


def work(library: ctypes.CDLL, node: int, local: int, remote: int) -> None:
    library.work(node, ctypes.c_uint64(local), ctypes.c_uint64(remote))


def test_without_the_stack_s_header_there_is_nothing(engine: Bound, include: Path):
    plain = module_of(include / "ggml.h")
    assert not hasattr(plain, "GGML_NUMA_STRATEGY_SPLIT")
    assert NumaMirror.find(plain, plain.bind(engine.library)) is None, "not even if the library has the functions"
    assert NumaMirror.find(engine.abi, engine.api) is not None


@pytest.mark.parametrize(
    "source", ["", "int ggml_numa_mirror_start(int split) { return split; }"], ids=["none of them", "one of them"]
)
def test_a_library_without_what_its_headers_declare_is_damaged(tmp_path: Path, include: Path, source: str):
    half = bound(tmp_path, include, f"{source}\nint something_else;\n")
    with pytest.raises(
        EngineError, match=r"declare ggml_numa_mirror_start, .* have no ggml_numa_mirror_\w+; reinstall"
    ):
        NumaMirror.find(half.abi, half.api)


def test_the_strategy_has_the_header_s_number(engine: Bound):
    assert engine.abi.GGML_NUMA_STRATEGY_SPLIT == 5


def test_the_engine_reads_the_words(mirror: NumaMirror, library: ctypes.CDLL):
    mirror.set(["kv", "best-effort"])
    assert number(library, "told").value == len("kv,best-effort")
    with pytest.raises(EngineError, match="does not know the words '!'"):
        mirror.set(["!"])


LACKS = (
    "numa-mirror: node 3 lacks 7 bytes for a copy of 9 bytes of kv (mbind: Operation not permitted; a container ...)"
)


def fail(library: ctypes.CDLL, cause: int, node: int, lacks: int, reason: str = LACKS) -> None:
    library.fail(cause, node, ctypes.c_uint64(lacks), reason.encode())


def test_a_failure_is_told_once_and_whole(mirror: NumaMirror, engine: Bound):
    assert mirror.take_failure() is None
    fail(engine.library, engine.abi.GGML_NUMA_CAUSE_REFUSED, 3, 2**40)
    assert mirror.take_failure() == NumaFailure("refused", 3, 2**40, LACKS)
    assert mirror.take_failure() is None
    fail(engine.library, engine.abi.GGML_NUMA_CAUSE_NO_ROOM, -1, 0, "split")
    assert mirror.take_failure() == NumaFailure("no_room", None, 0, "split")


def test_a_failure_of_an_earlier_load_is_forgotten(mirror: NumaMirror, engine: Bound):
    fail(engine.library, engine.abi.GGML_NUMA_CAUSE_NO_ROOM, 3, 7)
    mirror.set(["all"])
    assert mirror.take_failure() is None


def test_a_cause_of_a_newer_engine_has_no_name(mirror: NumaMirror, library: ctypes.CDLL):
    fail(library, 99, 0, 1)
    failure = mirror.take_failure()
    assert failure is not None
    assert (failure.cause, failure.reason) == ("", LACKS)


def test_off_counts_nothing_and_asks_nothing(mirror: NumaMirror, library: ctypes.CDLL):
    assert mirror.counters() == []
    assert number(library, "reports").value == 0


def test_counters_have_the_kernel_s_ids(mirror: NumaMirror, library: ctypes.CDLL):
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
def test_a_report_of_any_length_arrives_whole(mirror: NumaMirror, library: ctypes.CDLL, padding: int):
    library.ggml_numa_mirror_start(False)
    number(library, "padding").value = padding
    report = mirror.report()
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
