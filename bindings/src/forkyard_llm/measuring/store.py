"""Keep measurements: one SQLite file, each group of samples on the disk at once, so that a kill loses nothing."""

from __future__ import annotations

import contextlib
import json
import shlex
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache import cache_dir
from ..errors import UsageError
from .records import Arm, Recorded, RunInfo, Sample

__all__ = [
    "Store",
    "StoreError",
    "arm_from_json",
    "arm_to_json",
    "info_from_json",
    "info_to_json",
    "number",
    "table",
    "text",
]

SCHEMA = 1
_BUSY_S = 30.0
_TABLES = """
CREATE TABLE runs (id TEXT PRIMARY KEY, created REAL NOT NULL, info TEXT NOT NULL, finished INTEGER NOT NULL DEFAULT 0,
                   origin TEXT NOT NULL DEFAULT '');
CREATE TABLE arms (run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE, name TEXT NOT NULL, arm TEXT NOT NULL,
                   failed TEXT, PRIMARY KEY (run, name));
CREATE TABLE samples (run TEXT NOT NULL, arm TEXT NOT NULL, round INTEGER NOT NULL, test TEXT NOT NULL,
                      speed REAL NOT NULL, at REAL NOT NULL, load REAL NOT NULL, base REAL, kept INTEGER NOT NULL,
                      FOREIGN KEY (run, arm) REFERENCES arms (run, name) ON DELETE CASCADE);
CREATE INDEX samples_of ON samples (run);
"""


class StoreError(UsageError):
    """The store cannot be read or written; what was written before is still there."""


class Store:
    """The measurements of this user. Several processes may use it at once.

    Args:
        path: the file (default: ``measurements.sqlite`` in the cache folder); made if it is not there.

    Raises:
        StoreError: it is damaged, of a newer forkyard-llm, or its folder cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_dir() / "measurements.sqlite"
        with self._explained("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            # A reader does not wait for a writer, and a transaction is on the disk when it is over.
            self._base.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            with self._writing():
                version = self._base.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _TABLES.split(";"):
                        self._base.execute(statement)
                    self._base.execute(f"PRAGMA user_version = {SCHEMA}")
        if version > SCHEMA:
            self.close()
            msg = f"{self.path} is of a newer forkyard-llm (schema {version}, this reads {SCHEMA}): update, or move it"
            raise StoreError(msg)

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def begin(self, info: RunInfo, arms: Sequence[Arm]) -> None:
        """Write down a run before its first sample."""
        with self._explained("write"), self._writing():
            self._begin(info, arms)

    def take(self, recorded: Recorded, origin: str) -> bool:
        """Write down a whole run of somebody else, all of it or nothing; False if it is here already.

        Args:
            origin: the sha256 of the bundle that it came with.
        """
        run = recorded.info.id
        with self._explained("write"), self._writing():
            if self._base.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone():
                return False
            self._begin(recorded.info, recorded.arms)
            self._add_samples(run, recorded.samples)
            failed = [(why, run, arm) for arm, why in recorded.failed.items()]
            self._base.executemany("UPDATE arms SET failed = ? WHERE run = ? AND name = ?", failed)
            self._base.execute("UPDATE runs SET finished = 1, origin = ? WHERE id = ?", (origin, run))
        return True

    def add_arms(self, run: str, arms: Sequence[Arm]) -> None:
        """More arms of a run; those it has already stay."""
        with self._explained("write"), self._writing():
            self._add_arms(run, arms)

    def add(self, run: str, samples: Sequence[Sample]) -> None:
        """Samples of a run, all or none; on the disk when this returns."""
        with self._explained("write"), self._writing():
            self._add_samples(run, samples)

    def fail(self, run: str, arm: str, why: str) -> None:
        """An arm of a run that could not be measured."""
        with self._explained("write"), self._writing():
            self._base.execute("UPDATE arms SET failed = ? WHERE run = ? AND name = ?", (why, run, arm))

    def update(self, run: str, info: RunInfo) -> None:
        """What is known of a run by now."""
        with self._explained("write"), self._writing():
            self._base.execute("UPDATE runs SET info = ? WHERE id = ?", (json.dumps(info_to_json(info)), run))

    def finish(self, run: str) -> None:
        """A run that was measured to its end."""
        with self._explained("write"), self._writing():
            self._base.execute("UPDATE runs SET finished = 1 WHERE id = ?", (run,))

    def end(self, recorded: Recorded) -> None:
        """What is known of a run, whose samples are here, now that it was measured to its end."""
        for arm, why in recorded.failed.items():
            self.fail(recorded.info.id, arm, why)
        self.update(recorded.info.id, recorded.info)
        self.finish(recorded.info.id)

    def remove(self, run: str) -> None:
        """Forget a run. Raises UsageError if there is none."""
        found = self.find(run)
        with self._explained("write"), self._writing():
            self._base.execute("DELETE FROM runs WHERE id = ?", (found,))

    def runs(self) -> list[tuple[RunInfo, bool, str]]:
        """Every run, the newest first: what it is, whether it was finished, and its origin."""
        with self._explained("read"):
            rows = self._base.execute("SELECT info, finished, origin FROM runs ORDER BY created DESC, id").fetchall()
            return [(info_from_json(json.loads(info)), bool(finished), origin) for info, finished, origin in rows]

    def find(self, run: str) -> str:
        """The id that begins with `run`; ``last`` is the newest. Raises UsageError if none or several do."""
        ids = [info.id for info, _, _ in self.runs()]
        found = ids[:1] if run == "last" else [one for one in ids if run and one.startswith(run.lower())]
        if len(found) == 1:
            return found[0]
        msg = f"no run is called {run!r}" if not found else f"{len(found)} runs begin with {run!r}"
        raise UsageError(f"{msg}: `forkyard-llm results list` shows them")

    def read(self, run: str) -> Recorded:
        """A run by its id or its beginning. Raises UsageError if there is none."""
        found = self.find(run)
        with self._explained("read"):
            (info,) = self._base.execute("SELECT info FROM runs WHERE id = ?", (found,)).fetchone()
            arms = self._base.execute("SELECT arm, name, failed FROM arms WHERE run = ? ORDER BY rowid", (found,))
            rows = arms.fetchall()
            samples = self._base.execute(
                "SELECT arm, round, test, speed, at, load, base, kept FROM samples WHERE run = ? ORDER BY rowid",
                (found,),
            )
            return Recorded(
                info_from_json(json.loads(info)),
                [arm_from_json(json.loads(arm)) for arm, _, _ in rows],
                [_sample(row) for row in samples],
                {name: failed for _, name, failed in rows if failed is not None},
            )

    def _begin(self, info: RunInfo, arms: Sequence[Arm]) -> None:
        self._base.execute(
            "INSERT INTO runs (id, created, info) VALUES (?, ?, ?)",
            (info.id, info.created, json.dumps(info_to_json(info))),
        )
        self._add_arms(info.id, arms)

    def _add_samples(self, run: str, samples: Sequence[Sample]) -> None:
        self._base.executemany(
            "INSERT INTO samples (run, arm, round, test, speed, at, load, base, kept) VALUES (?,?,?,?,?,?,?,?,?)",
            [(run, one.arm, one.round, one.test, one.speed, one.at, one.load, one.base, one.kept) for one in samples],
        )

    def _add_arms(self, run: str, arms: Sequence[Arm]) -> None:
        self._base.executemany(
            "INSERT OR IGNORE INTO arms (run, name, arm) VALUES (?, ?, ?)",
            [(run, arm.name, json.dumps(arm_to_json(arm))) for arm in arms],
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction; two processes take turns."""
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                msg = f"{self.path} is damaged ({error}): move it away to begin anew; it is never deleted for you"
            elif isinstance(error, (sqlite3.Error, OSError)):
                msg = f"cannot {what} the measurements in {self.path}: {error}; what was written before is still there"
            else:
                msg = f"{self.path} holds a run that cannot be understood ({type(error).__name__}: {error})"
            raise StoreError(msg) from error


def _sample(row: Sequence[Any]) -> Sample:
    arm, number, test, speed, at, load, base, kept = row
    return Sample(arm, number, test, speed, at, load, base, bool(kept))


def info_to_json(info: RunInfo) -> dict[str, Any]:
    """A run's description as JSON."""
    return {**vars(info), "remarks": list(info.remarks), "machine": dict(info.machine), "facts": dict(info.facts)}


def info_from_json(value: Mapping[str, Any]) -> RunInfo:
    """The reverse. Raises KeyError, TypeError or ValueError for what is none."""
    return RunInfo(
        id=text(value["id"]),
        scenario=text(value["scenario"]),
        created=number(value["created"]),
        model=text(value["model"]),
        model_bytes=int(number(value["model_bytes"])),
        machine=table(value["machine"]),
        anchor=None if value["anchor"] is None else text(value["anchor"]),
        title=text(value["title"]),
        model_type=text(value["model_type"]),
        remarks=tuple(text(one) for one in value["remarks"]),
        facts=table(value["facts"]),
    )


def arm_to_json(arm: Arm) -> dict[str, Any]:
    """An arm as JSON. Of paths in its command only the file names are kept: they say nothing of this machine."""
    return {
        "name": arm.name,
        "command": [_bare(word) for word in arm.command],
        "tests": list(arm.tests),
        "choice": shlex.join(_bare(word) for word in _split(arm.choice)),
        "environment": {name: _bare(word) for name, word in arm.environment.items()},
        "mapped": arm.mapped,
        "values": dict(arm.values),
    }


def arm_from_json(value: Mapping[str, Any]) -> Arm:
    """The reverse. Raises KeyError, TypeError or ValueError for what is none."""
    return Arm(
        name=text(value["name"]),
        command=tuple(text(one) for one in value["command"]),
        tests=tuple(text(one) for one in value["tests"]),
        choice=text(value["choice"]),
        environment={text(name): text(one) for name, one in table(value["environment"]).items()},
        mapped=value["mapped"] is True,
        values={text(name): text(one) for name, one in table(value["values"]).items()},
    )


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _bare(word: str) -> str:
    """A word without the folders of an absolute path."""
    head, equals, tail = word.rpartition("=")
    return f"{head}{equals}{Path(tail).name}" if tail.startswith("/") and len(tail) > 1 else word


def text(value: object) -> str:
    """`value`, which must be a text. Raises TypeError."""
    if not isinstance(value, str):
        msg = f"{value!r:.60} is no text"
        raise TypeError(msg)
    return value


def number(value: object) -> float:
    """`value`, which must be a number of a size that can be. Raises ValueError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e18:
        msg = f"{value!r:.60} is no number that can be"
        raise ValueError(msg)
    return float(value)


def table(value: object) -> Mapping[str, Any]:
    """`value`, which must be a JSON object. Raises TypeError."""
    if not isinstance(value, dict):
        msg = f"{value!r:.60} is no table"
        raise TypeError(msg)
    return value
