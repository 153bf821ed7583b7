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
