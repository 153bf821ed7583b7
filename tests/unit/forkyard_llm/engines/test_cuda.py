"""GPUs that a payload has no code for: seen before the engine starts, and said with what to do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forkyard_llm.engines import cuda
from forkyard_llm.engines.cuda import gpus_without_code
from forkyard_llm.payloads import Payload, discover_all, read_payload

MakePayload = Callable[..., Path]
H200 = ("NVIDIA H200", 9, 0)
A100 = ("NVIDIA A100", 8, 0)
L4 = ("NVIDIA L4", 8, 9)
T4 = ("Tesla T4", 7, 5)
RTX_5090 = ("NVIDIA GeForce RTX 5090", 12, 0)


def facts(architectures: object, driver: str = "libcuda.so.1") -> dict[str, Any]:
    return {"library": None, "requires": [], "needs": [], "driver": driver, "architectures": architectures}


def payload(architectures: object, **other: str) -> Payload:
    return Payload("p", "ik_llama.cpp", "cuda13", Path("/nowhere"), {"backend": facts(architectures, **other)})


class FakeDriver:
    """libcuda.so.1 with some GPUs; ``fails`` is the function that does not work."""

    def __init__(self, gpus: Sequence[tuple[str, int, int]], fails: str = "") -> None:
        self.gpus, self.fails = gpus, fails

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.fails:
                return 100
            getattr(self, f"_{name}")(*arguments)
            return 0

        return call

    def _cuInit(self, flags: int) -> None: ...

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.gpus)

    def _cuDeviceGet(self, device: Any, number: int) -> None:
        # Handles are not numbers.
        device._obj.value = 1000 + number

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:
        name.value = self.gpus[device.value - 1000][0].encode()[: size - 1]

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = self.gpus[device.value - 1000][{75: 1, 76: 2}[attribute]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes this a machine with some GPUs."""

    def make(*gpus: tuple[str, int, int], fails: str = "") -> None:
        fake = SimpleNamespace(**{**vars(ctypes), "CDLL": lambda _: FakeDriver(gpus, fails)})
        monkeypatch.setattr(cuda, "ctypes", fake)

    return make


def test_a_gpu_without_code_is_named_with_what_to_do(machine: Callable[..., None]) -> None:
    machine(A100, H200, L4, RTX_5090)
    assert gpus_without_code(payload(["80-real"])) == (
        "it has no code for GPU 1 (NVIDIA H200, compute capability 9.0), GPU 3 (NVIDIA GeForce RTX 5090, compute"
        " capability 12.0): it is built for 80-real; build it for this machine (in a Forkyard checkout: nox -s"
        " build-cuda -- ik_llama.cpp --architectures 120-real,90-real), take another payload, or hide the GPU from it"
        " (CUDA_VISIBLE_DEVICES)"
    )


@pytest.mark.parametrize(
    ("architectures", "gpu", "runs"),
    [
        (["80-real"], A100, True),
        (["80-real"], L4, True),
        (["86-real"], A100, False),
        (["80-real"], T4, False),
        (["80-real"], RTX_5090, False),
        (["80-real", "120-real", "75-virtual"], H200, True),
        (["80-real", "120-real", "75-virtual"], T4, True),
        (["80-virtual"], T4, False),
        (["80"], H200, True),
        (["90a-real"], H200, True),
        (["90a-real"], ("NVIDIA GH", 9, 1), False),
        (["90a-virtual"], RTX_5090, False),
        (["100f-real"], ("NVIDIA B300", 10, 3), True),
        (["100f-real"], RTX_5090, False),
        # What is not known is not refused.
        (["native"], H200, True),
        (["all-major"], H200, True),
        ([], H200, True),
    ],
)
def test_code_runs_on_its_major_version_and_ptx_on_all_that_is_newer(
    machine: Callable[..., None], architectures: list[str], gpu: tuple[str, int, int], runs: bool
) -> None:
    machine(gpu)
    assert (gpus_without_code(payload(architectures)) == "") is runs


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_a_driver_that_does_not_work_has_no_gpus(machine: Callable[..., None], fails: str) -> None:
    machine(H200, fails=fails)
    assert gpus_without_code(payload(["80-real"])) == ""


def test_other_drivers_are_not_asked(machine: Callable[..., None]) -> None:
    machine(H200)
    assert gpus_without_code(payload(["80-real"], driver="libamdhip64.so.6")) == ""
    assert gpus_without_code(Payload("p", "llama.cpp", "avx2", Path("/nowhere"), {})) == ""


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER", "libno-such-driver.so.1")
    assert gpus_without_code(payload(["80-real"], driver="libno-such-driver.so.1")) == ""


def test_a_manifest_lists_architectures_as_texts(make_payload: MakePayload) -> None:
    root = make_payload("forkyard-llama-cpp-anygpu", kind="backend", backend=facts(["80-real"]))
    assert read_payload(root).manifest["backend"]["architectures"] == ["80-real"]
    make_payload("forkyard-llama-cpp-odd", kind="backend", backend=facts([80]))
    (broken,) = discover_all().broken
    assert "architectures" in broken.reason
