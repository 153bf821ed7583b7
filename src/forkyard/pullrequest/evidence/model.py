"""One piece of evidence, and the folder that remembers finished pieces so that a run that was cut off can go on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from forkyard.cache import write_atomic

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
NOT_RUN, NOT_APPLICABLE = "not-run", "not-applicable"
STATES = (PASS, FAIL, UNDECIDED, NOT_RUN, NOT_APPLICABLE)


@dataclass(frozen=True)
class Evidence:
    """What was run, and what came of it."""

    name: str
    title: str
    state: str
    """One of :data:`STATES`; a piece that did not run to its end is never ``pass``.

    One that did, but whose figures allow either answer, is ``undecided``.
    """
    reason: str
    """Why it has this state: one sentence."""
    commands: tuple[str, ...] = ()
    """As one would type them in the evidence folder."""
    logs: tuple[str, ...] = ()
    """Files with their output, below the evidence folder."""
    seconds: float = 0.0
    """Wall time."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Figures: JSON values."""
    key: str = ""
    reused: bool = False
    """Whether an earlier run gathered it with the same key."""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            msg = f"{self.state!r} is no state of evidence"
            raise ValueError(msg)
        if self.state == PASS and not self.commands:
            msg = f"{self.name}: nothing was run, so it cannot have passed"
            raise ValueError(msg)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        facts = asdict(self)
        return {**facts, "commands": list(self.commands), "logs": list(self.logs), "seconds": round(self.seconds, 3)}


def not_run(name: str, title: str, why: str) -> Evidence:
    """Evidence that is missing, and why."""
    return Evidence(name, title, NOT_RUN, why)


def key_of(*parts: Any) -> str:
    """A digest of everything a piece of evidence depends on: JSON values, and how evidence is gathered and judged."""
    return hashlib.sha256(json.dumps([_logic_digest(), *parts], sort_keys=True).encode()).hexdigest()


@functools.cache
def _logic_digest() -> str:
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


class Ledger:
    """Finished pieces of evidence in ``folder``, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self, name: str, key: str) -> Evidence | None:
        """A piece that passed with this key before and whose logs are still there.

        One that failed is run again: it costs time, but a fault of the moment must not stay.
        """
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            facts = json.loads((self.folder / f"{name}.json").read_bytes())
            facts |= {"commands": tuple(facts["commands"]), "logs": tuple(facts["logs"])}
            piece = Evidence(**facts)
            logs_there = all((self.folder.parent / log).is_file() for log in piece.logs)
            if piece.state == PASS and piece.key == key and logs_there:
                return replace(piece, reused=True)
        return None

    def keep(self, piece: Evidence) -> Evidence:
        """Remember a finished piece."""
        write_atomic(self.folder / f"{piece.name}.json", json.dumps(piece.as_json(), indent=1).encode())
        return piece


def tail(lines: Sequence[str], count: int = 3) -> str:
    """The last lines that say something, for a reason."""
    said = [line.strip() for line in lines if line.strip()]
    return " / ".join(said[-count:])[:400] or "it printed nothing"
