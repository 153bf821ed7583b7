"""What an engine can compute on: its devices, by the names it prints, and how much of a model fits on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CPU", "GPU_KINDS", "KINDS", "REMOTE", "Device", "fitting_layers"]

CPU = "cpu"
# enum ggml_backend_dev_type, less its prefix.
KINDS = {"CPU": CPU, "GPU": "gpu", "IGPU": "igpu", "ACCEL": "accelerator", "META": "meta"}
REMOTE = "remote"
# What layers can be kept on.
GPU_KINDS = ("gpu", "igpu", REMOTE)
# Left free for the KV cache, the graphs' own buffers and others: a quarter, as nothing tells before all is loaded.
_SHARE = 0.75


@dataclass(frozen=True)
class Device:
    """One device: ``kind`` is ``cpu``, ``gpu``, ``igpu`` (shares the system's memory), ``accelerator`` or ``meta``.

    It is ``remote`` for any device of an RPC server, whose address the ``description`` is.

    ``free_bytes`` and ``total_bytes`` are of its memory, None where the engine does not say.
    """

    name: str
    description: str
    kind: str
    free_bytes: int | None
    total_bytes: int | None


def fitting_layers(devices: Sequence[Device], model_bytes: int, layers: int) -> int:
    """How many of a model's ``layers`` (its output counted as one more) fit into the free memory of GPUs.

    Layers are taken for equal parts of the model's bytes. Memory that is not known counts as enough.
    """
    gpus = [device for device in devices if device.kind in GPU_KINDS]
    if not gpus:
        return 0
    free = [device.free_bytes for device in gpus]
    if any(one is None for one in free):
        return layers + 1
    return min(layers + 1, int(sum(one or 0 for one in free) * _SHARE * (layers + 1) / max(model_bytes, 1)))
