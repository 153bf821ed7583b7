"""What a lint says: findings, how much each stack is, and which pins it could look at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or doubtful, and what to do about it."""

    rule: str
    """Identifier of the rule, as docs/stack-lint.md lists them."""
    level: Level
    stack: str | None
    """``None`` where a whole engine is concerned."""
    engine: str | None
    """``None`` where the stack is concerned, whatever the engine."""
    patch: str | None
    file: str
    """Path below the project's folder."""
    line: int | None
    what: str
    why: str
    next: str

    @property
    def where(self) -> str:
        """``file:line``, or just the file."""
        return f"{self.file}:{self.line}" if self.line is not None else self.file

    def as_json(self) -> dict[str, Any]:
        """The finding for machines."""
        return {**asdict(self), "where": self.where}


@dataclass(frozen=True)
class Size:
    """How much one stack is for one engine, counted over its patches as they are written."""

    stack: str
    engine: str
    patches: int
    upstream_files: int
    """Files of upstream's that the series touches."""
    added: int
    """Lines added to upstream's files."""
    removed: int
    """Lines removed from upstream's files."""
    whole_files: int
    """Whole files of ours."""
    whole_lines: int
    """Lines in them."""

    @property
    def ratio(self) -> float | None:
        """Share of our lines that lie in whole files of ours, where no rebase meets them; ``None`` without lines."""
        ours = self.added + self.whole_lines
        return round(self.whole_lines / ours, 3) if ours else None

    def as_json(self) -> dict[str, Any]:
        """The size for machines."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Pin:
    """The pin of a recipe that stacks were checked on."""

    recipe: str
    engine: str
    commit: str
    checked: bool
    """Whether it was at hand; otherwise only the patch files themselves were looked at."""


@dataclass(frozen=True)
class Report:
    """Everything one lint found."""

    findings: tuple[Finding, ...]
    sizes: tuple[Size, ...]
    pins: tuple[Pin, ...]
    stacks: tuple[str, ...]
    patches: int
    seconds: float

    @property
    def errors(self) -> int:
        """Number of findings that must be mended."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of findings that should be looked at."""
        return len(self.findings) - self.errors

    def as_json(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "ok": self.errors == 0,
            "errors": self.errors,
            "warnings": self.warnings,
            "seconds": round(self.seconds, 3),
            "stacks": list(self.stacks),
            "patches": self.patches,
            "pins": [asdict(pin) for pin in self.pins],
            "findings": [finding.as_json() for finding in self.findings],
            "sizes": [size.as_json() for size in self.sizes],
        }
