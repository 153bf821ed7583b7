from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.benching.engine import unpacked
from forkyard.errors import BuildError, UsageError


def test_what_upstream_can_do(make_payload: Callable[..., Any], tmp_path: Path) -> None:
    with unpacked(make_payload().wheel, tmp_path / "scratch") as engine:
        assert engine.name == "llama.cpp"
        assert engine.build_key == "a" * 64
        assert engine.modes >= {"isolate", "mirror", "split"}
        assert engine.load == {True: ("-lm", "mmap"), False: ("-lm", "none")}
        folder = engine.bench
        assert folder.is_file()
    assert not folder.exists()


def test_what_ik_can_do(make_payload: Callable[..., Any], tmp_path: Path) -> None:
    payload = make_payload(engine="ik_llama.cpp", modes="distribute|isolate|numactl")
    with unpacked(payload.wheel, tmp_path / "scratch") as engine:
        assert engine.name == "ik_llama.cpp"
        assert engine.modes == {"distribute", "isolate", "numactl"}
        assert engine.load == {True: ("-mmp", "1"), False: ("-mmp", "0")}


def test_a_wheel_without_the_tool(make_payload: Callable[..., Any], tmp_path: Path) -> None:
    payload = make_payload(tool="llama-server")
    with pytest.raises(UsageError, match="holds no llama-bench"), unpacked(payload.wheel, tmp_path / "scratch"):
        pass


@pytest.mark.parametrize("data", [None, b"no zip"])
def test_what_is_no_wheel(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "x.whl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match="is no wheel"), unpacked(path, tmp_path / "scratch"):
        pass


def test_a_tool_that_does_not_run_here(make_payload: Callable[..., Any], tmp_path: Path) -> None:
    payload = make_payload(help_status=1)
    with pytest.raises(BuildError, match="does not run on this machine"), unpacked(payload.wheel, tmp_path / "scratch"):
        pass


def test_how_upstream_splits(make_split_payload: Callable[..., Any], tmp_path: Path) -> None:
    with unpacked(make_split_payload(server=True).wheel, tmp_path / "scratch") as engine:
        assert engine.splits == {"none", "layer", "row", "tensor"}
        assert engine.flash_attention == ("-fa", "on")
        assert engine.depths
        assert engine.chooses_devices
        assert engine.rpc_server == engine.bench.with_name("ggml-rpc-server")
        assert engine.takes("-ctk", "q8_0", "-ctv", "q8_0")
        assert not engine.takes("-ctk", "q7_7")


def test_how_ik_splits(make_split_payload: Callable[..., Any], tmp_path: Path) -> None:
    payload = make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph")
    with unpacked(payload.wheel, tmp_path / "scratch") as engine:
        assert engine.splits == {"none", "layer", "graph"}
        assert engine.flash_attention == ("-fa", "1")
        assert not engine.depths
        assert not engine.chooses_devices
        assert engine.rpc_server is None


def test_libraries_that_the_payload_requires_lie_beside_it(
    make_split_payload: Callable[..., Any], tmp_path: Path
) -> None:
    payload = make_split_payload(needs=("libcublas.so.13", "libnone.so.1"))
    library = tmp_path / "site" / "nvidia" / "cu13" / "lib" / "libcublas.so.13"
    library.parent.mkdir(parents=True)
    library.write_text("code")
    with unpacked(payload.wheel, tmp_path / "scratch", [tmp_path / "empty", tmp_path / "site"]) as engine:
        beside = engine.bench.parents[2] / "nvidia" / "cu13" / "lib" / "libcublas.so.13"
        assert beside.read_text() == "code"
        assert engine.missing == ("libnone.so.1",)
    assert library.read_text() == "code"
