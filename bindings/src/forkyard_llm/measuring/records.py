"""What a measurement is made of: arms, samples, and the run that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine import Engine

__all__ = ["Arm", "Recorded", "RunInfo", "Sample"]


@dataclass(frozen=True)
class Arm:
    """One command that every round runs once."""

    name: str
    """Unique in its run."""
    command: tuple[str, ...]
    tests: tuple[str, ...]
    """What it measures, by the names of :class:`forkyard_llm.measuring.dialect.Result`."""
    choice: str
    """The arguments that make it differ from the others, for messages."""
    environment: Mapping[str, str] = field(default_factory=dict)
    mapped: bool = False
    """Whether it maps the model file, and the pages that arms before it left must go first."""
    engine: Engine | None = None
    """Whose program it runs."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What it stands for, for tables and plots: dimension -> value, as in ``{"threads": "8"}``."""


@dataclass(frozen=True)
class Sample:
    """One figure of one run of an arm."""

    arm: str
    round: int
    test: str
    speed: float
    """Tokens per second."""
    at: float
    """Seconds since 1970 when the run began."""
    load: float
    """Load average of the last minute when it began."""
    base: float | None = None
    """Tokens per second of the anchor around it, the mean of the run before and the run after; None without one."""
    kept: bool = True
    """False for what was measured while the machine drifted: it is recorded and not counted."""


@dataclass(frozen=True)
class RunInfo:
    """One call of `bench`, `compare` or `tune`."""

    id: str
    """32 hex digits."""
    scenario: str
    created: float
    """Seconds since 1970."""
    model: str
    """File name."""
    model_bytes: int
    machine: Mapping[str, Any]
    """As :func:`forkyard_llm.measuring.machine.describe` says."""
    anchor: str | None = None
    """The arm that gains are relative to."""
    title: str = ""
    """For people; empty: the scenario's name."""
    model_type: str = ""
    """What the engine calls the model."""
    remarks: tuple[str, ...] = ()
    """What has to be known to read the figures."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What only this scenario knows (KL divergences, predictions ...), as JSON."""


@dataclass(frozen=True)
class Recorded:
    """A run as it is stored."""

    info: RunInfo
    arms: Sequence[Arm]
    """Of an arm that was read from a store, `engine` is None and `values` has "engine", "variant" and "build_key"."""
    samples: Sequence[Sample]
    failed: Mapping[str, str] = field(default_factory=dict)
    """Arm -> why it could not be measured."""

    def speeds(self, arm: str, test: str) -> list[float]:
        """What counts of one arm and test, in the order of the rounds."""
        return [one.speed for one in self.samples if one.kept and (one.arm, one.test) == (arm, test)]
