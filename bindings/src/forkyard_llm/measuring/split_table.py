"""The answer of the scenario ``split``: the table that owners of two GPUs know, and the same for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .numa_table import SCHEMA
from .running import Measured
from .statistics import Gain, Summary
from .subject import Subject
from .tables import figures, markdown, speed_text

BASELINE = ("layer", "f16")
"""The row, of the first engine, that ratios are relative to."""
_LOOPBACK = (
    "The devices are RPC servers on this machine's processor: the figures prove that the harness works, "
    "and are no speeds of GPUs."
)
_SOFTWARE = "{} is a device in software: the figures prove that the harness works, and are no speeds of GPUs."
_VIRTUAL = "{} is set: several devices may be one GPU, and then the figures say nothing of several GPUs."
_NO_NCCL = "{} is built without NCCL: tensor and graph split move data between GPUs in slower ways."
_SEVERAL_OF_ONE = ("GGML_CUDA_DEVICES", "GGML_VK_VISIBLE_DEVICES")


@dataclass(frozen=True, eq=False)
class Row:
    """One way to share the model, with one KV type."""

    subject: Subject
    mode: str
    cache_type: str
    absent: Mapping[str, str]
    """Test -> why this engine cannot measure it."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.subject.label}, {self.mode}, {self.cache_type}"

    @property
    def choice(self) -> tuple[str, ...]:
        """The arguments that make it differ from the others."""
        return ("-sm", self.mode, "-ctk", self.cache_type, "-ctv", self.cache_type)


@dataclass(frozen=True)
class Line:
    """A row of the table with its figures."""

    row: Row
    tests: Mapping[str, Summary] = field(default_factory=dict)
    gains: Mapping[str, Gain] = field(default_factory=dict)
    """Test -> against the baseline; empty for the baseline itself, and without one."""
    refused: str | None = None
    """Why it could not be measured."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "engine": self.row.subject.label,
            "split_mode": self.row.mode,
            "cache_type": self.row.cache_type,
            "tests": {name: one.as_json() for name, one in self.tests.items()},
            "gains": {name: one.as_json() for name, one in self.gains.items()},
            "not_measurable": dict(self.row.absent),
            "refused": self.refused,
        }


@dataclass(frozen=True)
class Answer:
    """Everything that is known after a measurement."""

    subjects: tuple[Subject, ...]
    lines: tuple[Line, ...]
    baseline: str | None
    """The name of the row that gains are relative to, if it was measured."""
    measured: Measured
    machine: Mapping[str, Any]
    model: str
    """File name."""
    tests: tuple[str, ...]
    remarks: tuple[str, ...]
    """What has to be known to read the figures."""
    loopback: bool

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "schema": SCHEMA,
            "scenario": "split",
            "engines": [subject.as_json() for subject in self.subjects],
            "machine": dict(self.machine),
            "model": {"file": self.model, "type": self.measured.model},
            "rounds": self.measured.rounds,
            "rpc_loopback": self.loopback,
            "baseline": self.baseline,
            "tests": list(self.tests),
            "commands": self.measured.commands,
            "rows": [line.as_json() for line in self.lines],
            "remarks": list(self.remarks),
        }


def answer(
    rows: Sequence[Row],
    refused: Mapping[Row, str],
    measured: Measured,
    *,
    machine: Mapping[str, Any],
    model: str,
    tests: tuple[str, ...],
    loopback: bool,
    notes: Sequence[str],
) -> Answer:
    """Turn samples into an answer."""
    subjects = tuple(dict.fromkeys(row.subject for row in rows))
    base = next((row for row in rows if (row.mode, row.cache_type) == BASELINE), None)
    if base is not None and (base in refused or base.subject.label != subjects[0].label):
        base = None
    against = measured.speeds[base.name] if base else {}
    lines = []
    for row in rows:
        speeds = measured.speeds.get(row.name, {}) if row not in refused else {}
        measures, gains = figures(speeds, {} if row is base else against)
        lines.append(Line(row, measures, gains, refused.get(row)))
    return Answer(
        subjects,
        tuple(lines),
        base.name if base else None,
        measured,
        machine,
        model,
        tests,
        (
            *_pretences(subjects, machine, loopback),
            *(_NO_NCCL.format(subject.label) for subject in subjects if subject.engine.nccl is False),
            *notes,
        ),
        loopback,
    )


def as_text(found: Answer) -> str:
    """A Markdown table and what has to be known to read it."""
    text = [
        f"{found.model} ({found.measured.model}), {found.machine.get('cpu', 'unknown')}; "
        f"medians of {found.measured.rounds} rounds",
        *(
            f"{subject.label} ({subject.engine.wheel}) on {len(subject.devices)} devices: "
            + ", ".join(device.shown for device in subject.devices)
            for subject in found.subjects
        ),
        "",
        *markdown(
            ["engine", "split", "KV", *(f"{test} t/s" for test in found.tests)],
            [
                [
                    line.row.subject.label,
                    line.row.mode,
                    line.row.cache_type,
                    *(_cell(found, line, test) for test in found.tests),
                ]
                for line in found.lines
            ],
            left=3,
        ),
        "",
        "In brackets where the median lies at 95 %.",
    ]
    if found.baseline:
        text.append(f"Factors are relative to {found.baseline}, round by round.")
    text += [f"{line.row.name} was refused: {line.refused}" for line in found.lines if line.refused]
    absent = {(test, why): None for line in found.lines for test, why in line.row.absent.items()}
    text += [f"{test} could not be measured: {why}" for test, why in absent]
    return "\n".join([*text, *found.remarks])


def _cell(found: Answer, line: Line, test: str) -> str:
    """``56.12 (55.80 to 56.40) 1.40x``; a word where there is no figure."""
    if line.refused:
        return "refused"
    if test not in line.tests:
        return "not measurable"
    return speed_text(line.tests[test], line.gains.get(test), base=line.row.name == found.baseline)


def _pretences(subjects: Sequence[Subject], machine: Mapping[str, Any], loopback: bool) -> list[str]:
    """What keeps the figures from being those of several GPUs."""
    if loopback:
        return [_LOOPBACK]
    software = [one.name for subject in subjects for one in subject.devices if "llvmpipe" in one.about]
    said = [_SOFTWARE.format(", ".join(dict.fromkeys(software)))] if software else []
    return said + [_VIRTUAL.format(name) for name in _SEVERAL_OF_ONE if name in machine["environment"]]
