"""What the gates found in a wheel, for people, for JSON and for the build that must stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forkyard.errors import GateError


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a wheel."""

    gate: str
    where: str
    """The file in the wheel, or the wheel's own name."""
    message: str

    def __str__(self) -> str:
        return f"[{self.gate}] {self.where}: {self.message}"


@dataclass(frozen=True)
class GateReport:
    """The outcome of all gates on one wheel."""

    wheel: str
    """File name of the wheel."""
    gates: tuple[str, ...]
    """The gates that were run, in order."""
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the gates measured: the glibc floor, the manylinux tag, instruction sets by file."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of each gate in seconds; not in :meth:`as_json`, which is the same for the same wheel."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON types, the same for the same wheel."""
        return {
            "wheel": self.wheel,
            "ok": self.ok,
            "gates": list(self.gates),
            "findings": [{"gate": f.gate, "where": f.where, "message": f.message} for f in self.findings],
            "facts": dict(self.facts),
        }

    def raise_if_failed(self) -> None:
        """Raise :class:`GateError` listing every finding; do nothing if there is none."""
        if self.ok:
            return
        count = len(self.findings)
        raise GateError(
            f"the wheel failed {count} check{'s' if count > 1 else ''}",
            where=self.wheel,
            why="\n         ".join(str(f) for f in self.findings),
            next_step="docs/gates.md says what each gate wants and what usually breaks it",
        )
