"""Which memory serves which node: the buffer the engine loaded into, or copies, and with pages of which size."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from . import arch_models, cases
from .driver import MIRROR, OFF, SPLIT, Answer, Driver, Mode

pytestmark = pytest.mark.patch("numa-split")

NODES = 3
MODEL = "dense-q8_0"
PAGE = 4096
HAS_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage").is_dir()


def answer(numa: Driver, engine: str, mode: Mode, tiny: Path, *, mmap: bool) -> Answer:
    """Of a prompt, if its logits are those of an engine without the stack; the weights stay as they are in the file."""
    ops = [["decode", 0, [[0, cases.tokens(random.Random(6), 12)]]]]
    context = cases.context(engine, MODEL, threads=NODES)
    params = {"use_extra_bufts": False} if engine == "llama.cpp" else {}
    path = arch_models.write_model(MODEL, tiny)
    request = [cases.case("memory", path, context, ops, mmap=mmap, model_params=params)]
    got = numa.run(engine, mode, request).cases["memory"].ok
    assert got.results == numa.run(f"{engine}-stock", Mode(), request).cases["memory"].ok.results
    return got


def of_kind(report: Mapping[str, Any] | None, kind: str) -> list[Mapping[str, Any]]:
    assert report is not None
    return [span for span in report["ranges"] if span["kind"] == kind]


@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_a_mapped_file_serves_no_node(numa: Driver, tiny: Path, engine: str, mmap: bool) -> None:
    got = answer(numa, engine, Mode(MIRROR, NODES), tiny, mmap=mmap)

    spans = of_kind(got.report, "weights")
    assert spans
    for span in spans:
        assert [node["alias"] for node in span["node"]] == [not mmap, False, False], span
    # The cache is never mapped.
    for span in of_kind(got.report, "kv"):
        assert [node["alias"] for node in span["node"]] == [True, False, False], span


@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="the kernel has no transparent huge pages")
@pytest.mark.parametrize("engine", cases.ENGINES)
def test_the_buffer_has_the_pages_that_its_copies_have(numa: Driver, tiny: Path, engine: str) -> None:
    """Threads wait for each other at every barrier, so a node with small pages would slow all of them down."""
    got = answer(numa, engine, Mode(MIRROR, NODES), tiny, mmap=False)

    assert got.report is not None
    assert got.huge is not None
    # Up to two pages at the edges of a range belong to something else as well.
    wanted = sum(NODES * (span["bytes"] - 2 * PAGE) for span in got.report["ranges"])
    assert wanted > 0
    assert got.huge >= wanted


@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="the kernel has no transparent huge pages")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize(
    "mode", [Mode(OFF, NODES), Mode(SPLIT, NODES), Mode(MIRROR, NODES, 0)], ids=["off", "split", "none"]
)
def test_nothing_is_asked_of_the_kernel_without_a_mirror(numa: Driver, tiny: Path, engine: str, mode: Mode) -> None:
    """Slices of weights are placed page by page, which huge pages would undo."""
    assert answer(numa, engine, mode, tiny, mmap=False).huge == 0
