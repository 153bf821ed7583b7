"""An engine beside others in one measurement: its name there, and what its llama-bench can time at which depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkyard_llm.measuring.dialect import Device, at_depth
from forkyard_llm.measuring.engine import Engine
from forkyard_llm.measuring.records import tests_of


@dataclass(frozen=True, eq=False)
class Subject:
    """An engine that is measured."""

    label: str
    """Its name in the table."""
    engine: Engine
    words: tuple[str, ...] = ()
    """Arguments that name its devices."""
    devices: tuple[Device, ...] = ()

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


@dataclass(frozen=True)
class Timing:
    """Which tests are run at which depths."""

    prompt: int
    generate: int
    depths: tuple[int, ...]
    """Tokens in the KV cache before a test begins."""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of all tests, in the order of a table's columns."""
        return tuple(at_depth(test, depth) for depth in self.depths for test in tests_of(self.prompt, self.generate))

    def absent(self, subject: Subject) -> Mapping[str, str]:
        """Test -> why the engine's llama-bench cannot time it."""
        if subject.engine.depths or not self.prompt:
            return {}
        why = f"the llama-bench of {subject.label} times no prompt after another"
        return {at_depth(f"pp{self.prompt}", depth): why for depth in self.depths if depth}

    def words(self, engine: Engine) -> tuple[str, ...]:
        """The arguments for llama-bench."""
        if engine.depths:
            depths = ",".join(map(str, self.depths))
            return ("-p", str(self.prompt), "-n", str(self.generate), "-d", depths)
        at_once = 0 in self.depths
        words = ["-p", str(self.prompt if at_once else 0), "-n", str(self.generate if at_once else 0)]
        # Generation after a prompt that is not timed.
        later = [depth for depth in self.depths if depth and self.generate]
        return (*words, *(word for depth in later for word in ("-gp", f"{depth},{self.generate}")))


def labelled(engines: Sequence[Engine]) -> Iterator[Subject]:
    """Each engine with a name of its own: two builds of one recipe differ in their build key."""
    recipes = [engine.recipe for engine in engines]
    for engine in engines:
        twice = recipes.count(engine.recipe) > 1
        yield Subject(f"{engine.recipe} {engine.build_key[:8]}" if twice else engine.recipe, engine)


def told(subject: Subject, reason: str, model: Path) -> str:
    """A reason without folders of this machine."""
    return reason.replace(f"{subject.engine.bench.parent}/", "").replace(str(model), model.name)
