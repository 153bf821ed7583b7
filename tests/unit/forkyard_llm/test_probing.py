"""The probing child's protocol, and that a payload that computes nonsense is found out."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forkyard_llm import probing
from forkyard_llm.engines.devices import Device
from forkyard_llm.payloads import Payload


class FakeGgml:
    """Just enough of ggml to multiply f32 matrices, rightly or wrongly."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.freed = 0

    def ggml_init(self, params: object) -> object:
        return object()

    def ggml_free(self, context: object) -> None:
        self.freed += 1

    def ggml_new_tensor_2d(self, context: object, kind: int, width: int, rows: int) -> Any:
        return SimpleNamespace(width=width, rows=rows, data=(ctypes.c_float * (width * rows))())

    def ggml_nbytes(self, tensor: Any) -> int:
        return ctypes.sizeof(tensor.data)

    def ggml_get_data(self, tensor: Any) -> int:
        return ctypes.addressof(tensor.data)

    def ggml_quantize_chunk(self, kind: int, source: Any, target: int, *_: object) -> int:
        ctypes.memmove(target, source, ctypes.sizeof(source))
        return ctypes.sizeof(source)

    def ggml_mul_mat(self, context: object, left: Any, right: Any) -> Any:
        width = left.width
        values = [
            self.factor * sum(left.data[row * width + i] * right.data[column * width + i] for i in range(width))
            for column in range(right.rows)
            for row in range(left.rows)
        ]
        return SimpleNamespace(data=(ctypes.c_float * len(values))(*values))

    def ggml_new_graph(self, context: object) -> object:
        return object()

    def ggml_build_forward_expand(self, graph: object, tensor: object) -> None: ...

    def ggml_graph_compute_with_ctx(self, context: object, graph: object, threads: int) -> int:
        return 0


def engine(factor: float) -> Any:
    abi = SimpleNamespace(ggml_init_params=lambda *_: None, GGML_TYPE_F32=0, GGML_TYPE_F16=1, GGML_TYPE_Q4_0=2)
    devices = (Device("CPU", "a processor", "cpu", 1, 2),)
    return SimpleNamespace(
        abi=abi,
        api=FakeGgml(factor),
        start=lambda: None,
        no_gpu=None,
        system_info=lambda: " A = 1 |  B = 0 ",
        devices=lambda: devices,
    )


def payload(*features: str) -> Payload:
    return Payload("p", "llama.cpp", "v", Path("/nowhere"), {"cpu_features": list(features)})


def test_a_right_product_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = engine(1.0)
    monkeypatch.setattr(probing, "load", lambda _: fake)
    verdict = probing.probe(payload())
    assert verdict["usable"] is True
    assert verdict["reason"] == "loads, and multiplies f16, q4_0 matrices correctly"
    assert verdict["system_info"] == "A = 1 | B = 0"
    assert [device["name"] for device in verdict["devices"]] == ["CPU"]
    assert fake.api.freed == 2


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, float("nan"), float("inf")])
def test_a_wrong_product_is_not(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(probing, "load", lambda _: engine(factor))
    verdict = probing.probe(payload())
    assert verdict["usable"] is False
    assert verdict["reason"] == "multiplies f16, q4_0 matrices wrongly on this CPU"


def test_features_are_checked_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "load", lambda _: pytest.fail("loaded"))
    assert probing.probe(payload("avx512_4fmaps"))["reason"] == "this CPU lacks avx512_4fmaps"


def test_a_refused_amx_permission_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "load", lambda _: pytest.fail("loaded"))
    monkeypatch.setattr(probing.cpu, "missing", lambda _: [])
    monkeypatch.setattr(probing.cpu, "request_amx_permission", lambda: "the kernel refuses")
    assert probing.probe(payload("amx_tile")) == {"usable": False, "reason": "the kernel refuses"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "usage: python -m forkyard_llm.probing"), (["/nowhere"], "is no payload folder")],
)
def test_by_hand(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forkyard_llm.probing", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert verdict["usable"] is False
    assert said in verdict["reason"]
