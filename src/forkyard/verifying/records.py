"""What became of a unit, kept in the cache under a key over everything that decides it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from forkyard.cache import Cache, write_atomic
from forkyard.verifying.selecting import TestFiles
from forkyard.verifying.units import Unit

SCHEMA = 1
Level = Literal["apply", "build", "test"]
"""How far units are taken."""
State = Literal["good", "bad", "no test"]
_SHOWN_FAILURES = 20


@dataclass(frozen=True)
class Failure:
    """A test that failed."""

    id: str
    why: str
    """The last lines of its report."""


@dataclass(frozen=True)
class Tally:
    """What a test run did."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    deselected: int = 0
    """Tests of the files that are about patches which are not there."""
    failures: tuple[Failure, ...] = ()

    @property
    def executed(self) -> int:
        """Tests that ran to a verdict."""
        return self.passed + self.failed


@dataclass(frozen=True)
class Problem:
    """Why a unit is bad, in the parts of an error message."""

    what: str
    where: str | None = None
    why: str | None = None
    next: str | None = None


@dataclass(frozen=True)
class Result:
    """What verifying a unit found."""

    state: State
    stage: Level
    """The last stage that was entered: of a bad unit the one that failed."""
    tree: str | None = None
    """Tree id of the patched engine."""
    commit: str | None = None
    problem: Problem | None = None
    tests: Tally | None = None
    """``None`` if no test run was started."""
    wheel_sha256: str | None = None
    compiled: int = 0
    """Compile and link steps that ran."""
    same_as: str | None = None
    """The unit with the same tree and tests whose result this is."""
    seconds: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For machines, and for the record."""
        document = asdict(self)
        document["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        if self.tests is not None:
            document["tests"]["failures"] = [asdict(failure) for failure in self.tests.failures[:_SHOWN_FAILURES]]
        return document


def result_from(document: Mapping[str, Any]) -> Result:
    """The result a record holds.

    Raises:
        ValueError, KeyError, TypeError: it is no such document.
    """
    values = dict(document)
    if values["state"] not in ("good", "bad", "no test") or values["stage"] not in ("apply", "build", "test"):
        msg = "not a result"
        raise ValueError(msg)
    if values["problem"] is not None:
        values["problem"] = Problem(**values["problem"])
    if (tests := values["tests"]) is not None:
        values["tests"] = Tally(**{**tests, "failures": tuple(Failure(**one) for one in tests["failures"])})
    return Result(**values)


class Records:
    """The results in a cache."""

    def __init__(self, cache: Cache, root: Path, level: Level) -> None:
        self._folder = cache.root / "verified"
        self._files = TestFiles(root)
        self._level = level

    def key(self, unit: Unit) -> str:
        """sha256 over everything that decides a unit's result."""
        inputs: dict[str, Any] = {"schema": SCHEMA, "level": self._level, "build": unit.plan.key}
        if self._level == "test":
            selection = unit.selection
            inputs |= {
                "tests": self._files.digest(selection.files),
                "selection": asdict(selection),
                "runner": runner() if selection.files else None,
            }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def read(self, key: str) -> Result | None:
        """The recorded result; ``None`` if there is none or it cannot be read."""
        try:
            document = json.loads((self._folder / f"{key}.json").read_bytes())
            if document["schema"] != SCHEMA or document["key"] != key:
                return None
            return result_from(document["result"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, key: str, unit: Unit, result: Result) -> None:
        """Record a result.

        Raises:
            StorageError: no space or permission.
        """
        document = {
            "schema": SCHEMA,
            "key": key,
            "recipe": unit.plan.recipe.name,
            "variant": unit.plan.variant.name,
            "unit": [str(role) for role in unit.roles],
            "result": result.as_json(),
        }
        write_atomic(self._folder / f"{key}.json", json.dumps(document, indent=1, sort_keys=True).encode())


@functools.lru_cache(maxsize=1)
def runner() -> dict[str, str | None]:
    """What runs tests: a change of it may change their outcome."""
    digest = hashlib.sha256((Path(__file__).parent / "child.py").read_bytes()).hexdigest()
    try:
        version = importlib.metadata.version("pytest")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {"python": sys.version, "pytest": version, "child": digest}
