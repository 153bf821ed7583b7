"""Which NVIDIA GPUs the GPU code of a payload cannot run on: there an engine ends at its first kernel."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..payloads import Payload

__all__ = ["Gpu", "gpus_without_code"]

DRIVER = "libcuda.so.1"
# CUdevice_attribute.
_MAJOR, _MINOR = 75, 76
# As CMake writes them: 80-real is code for the GPU, 75-virtual is PTX for the driver to compile, 86 is both.
_ARCHITECTURE = re.compile(r"(?P<major>\d+)(?P<minor>\d)(?P<only>[af]?)(?:-(?P<kind>real|virtual))?")


@dataclass(frozen=True)
class Gpu:
    """A GPU by its number in this process, with its compute capability."""

    number: int
    name: str
    major: int
    minor: int

    def __str__(self) -> str:
        return f"GPU {self.number} ({self.name}, compute capability {self.major}.{self.minor})"


def gpus_without_code(payload: Payload) -> str:
    """What to tell the user of GPUs that the driver shows to this process and no code is for; "" if there are none."""
    facts = payload.manifest.get("backend") or {}
    architectures: Sequence[str] = facts.get("architectures") or ()
    # Of other names, such as "native", nothing tells what is in the library.
    known = architectures and all(map(_ARCHITECTURE.fullmatch, architectures))
    if facts.get("driver") != DRIVER or not known:
        return ""
    unfit = [gpu for gpu in _visible() if not any(_runs(name, gpu) for name in architectures)]
    if not unfit:
        return ""
    wanted = ",".join(sorted({f"{gpu.major}{gpu.minor}-real" for gpu in unfit}))
    return (
        f"it has no code for {', '.join(map(str, unfit))}: it is built for {', '.join(architectures)}; build it for"
        f" this machine (in a Forkyard checkout: nox -s build-cuda -- {payload.engine} --architectures {wanted}), take"
        " another payload, or hide the GPU from it (CUDA_VISIBLE_DEVICES)"
    )


def _runs(architecture: str, gpu: Gpu) -> bool:
    """Whether code runs on a GPU: of its major version and no newer, or PTX that is no newer at all."""
    parts = _ARCHITECTURE.fullmatch(architecture)
    assert parts is not None
    made, there = (int(parts["major"]), int(parts["minor"])), (gpu.major, gpu.minor)
    if parts["only"] == "a":
        return made == there
    real = made[0] == there[0] and made <= there
    if parts["only"] == "f":
        return real
    return (parts["kind"] != "virtual" and real) or (parts["kind"] != "real" and made <= there)


def _visible() -> list[Gpu]:
    """The GPUs that the driver shows to this process, in the engines' order; none where it does not work."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        failed = (
            driver.cuDeviceGet(ctypes.byref(device), number)
            or driver.cuDeviceGetName(name, len(name), device)
            or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        )
        if not failed:
            found.append(Gpu(number, name.value.decode("utf-8", "replace"), major.value, minor.value))
    return found
