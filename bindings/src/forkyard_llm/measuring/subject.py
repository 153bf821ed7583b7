"""An engine beside others in one measurement, with its name and its devices there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dialect import Device
from .engine import Engine
from .finding import label_all


@dataclass(frozen=True, eq=False)
class Subject:
    """An engine that is measured."""

    label: str
    """Its name in the table."""
    engine: Engine
    words: tuple[str, ...] = ()
    """Arguments that name its devices."""
    devices: tuple[Device, ...] = ()

    @property
    def values(self) -> dict[str, str]:
        """What an arm of it stands for."""
        engine = self.engine
        return {"engine": engine.name, "variant": engine.variant, "build_key": engine.build_key}

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "label": self.label,
            "name": self.engine.name,
            "wheel": self.engine.wheel,
            "build_key": self.engine.build_key,
            "nccl": self.engine.nccl,
            "devices": [device.as_json() for device in self.devices],
        }


def labelled(engines: Sequence[Engine]) -> Iterator[Subject]:
    """Each engine with a name of its own."""
    return (Subject(label, engine) for label, engine in label_all(engines))


def told(subject: Subject, reason: str, model: Path) -> str:
    """A reason without folders of this machine."""
    return reason.replace(f"{subject.engine.bench.parent}/", "").replace(str(model), model.name)
