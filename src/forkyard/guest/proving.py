"""Running an engine through the cases: a boot for each topology, its cases judged as soon as it ends."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import explained
from forkyard.console import Reporter
from forkyard.errors import SourceError, UsageError
from forkyard.guest.cases import CASES, SERVERS, TOPOLOGIES, Case
from forkyard.guest.image import Parts, contents, write_image
from forkyard.guest.intake import Observation
from forkyard.guest.judging import Verdict, judge
from forkyard.guest.machine import Boot, boot
from forkyard.guest.script import guest_s, init_script, runs
from forkyard.guest.topology import Topology

BEYOND_TCG = ("avx512", "amx")
"""Beginnings of CPU features that QEMU 7.2 does not translate."""


@dataclass(frozen=True)
class Proved:
    """One case and what came of it."""

    case: Case
    verdict: Verdict
    seen: Observation | None
    twin: Observation | None
    command: tuple[str, ...]


@dataclass(frozen=True)
class Guest:
    """One boot."""

    topology: Topology
    boot: Boot
    seconds: float
    cases: tuple[Proved, ...]


@dataclass(frozen=True)
class Proof:
    """Everything about one engine."""

    engine: str
    wheel: str
    wheel_sha256: str
    guests: tuple[Guest, ...]

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return not any(guest.boot.problem or any(one.verdict.findings for one in guest.cases) for guest in self.guests)


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """The cases of some names, of their own or of their topologies; without names all.

    Raises:
        UsageError: there is no such case.
    """
    for name in names:
        if not any(name in (case.name, case.topology.name) for case in CASES):
            msg = f"there is no case or topology {name!r}"
            raise UsageError(msg, next_step=f"choose from {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if not names or case.name in names or case.topology.name in names]


def unpack_payload(wheel: Path, target: Path) -> Path:
    """Unpack a payload wheel.

    Returns:
        its package folder.

    Raises:
        SourceError: it is no payload wheel.
        UsageError: it is for CPUs that a guest does not have.
    """
    try:
        with explained("unpack the payload"), zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                archive.extract(info, target)
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        msg = "the payload wheel cannot be read"
        raise SourceError(msg, where=str(wheel), why=str(error)) from error
    packages = [path.parent for path in target.glob("*/bin")]
    if len(packages) != 1:
        msg = "this is no payload wheel"
        raise SourceError(msg, where=str(wheel), why="it holds no package with programs")
    _check_features(wheel, packages[0] / "manifest.json")
    return packages[0]


def _check_features(wheel: Path, manifest: Path) -> None:
    try:
        features = json.loads(manifest.read_text(encoding="utf-8"))["cpu_features"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        msg = "the payload's manifest cannot be read"
        raise SourceError(msg, where=str(wheel), why=f"{type(error).__name__}: {error}") from error
    beyond = [name for name in features if name.startswith(BEYOND_TCG)]
    if beyond:
        msg = "the payload cannot run in a guest"
        raise UsageError(
            msg,
            where=str(wheel),
            why=f"it needs {', '.join(beyond)}, which QEMU's translation of x86 does not have",
            next_step="name a wheel of the variant avx2, or leave out --wheel",
        )


def prove(engine: str, cases: Sequence[Case], parts: Parts, scratch: Path, reporter: Reporter) -> list[Guest]:
    """Boot every topology that the cases need, and judge them.

    Args:
        engine: family name.
        scratch: a folder for images; left as it is found.

    Raises:
        ToolchainError, SourceError, StorageError: a guest cannot be made.
    """
    guests = []
    for topology in TOPOLOGIES:
        mine = [case for case in cases if case.topology == topology]
        if mine:
            guests.append(_guest(engine, topology, mine, parts, scratch, reporter))
    return guests


def _guest(
    engine: str, topology: Topology, cases: Sequence[Case], parts: Parts, scratch: Path, reporter: Reporter
) -> Guest:
    todo = runs(cases, SERVERS[engine])
    image = scratch / "image"
    write_image(image, contents(parts, init_script(todo)))
    started, done = time.perf_counter(), 0
    with reporter.step(f"{engine} in {topology.name}", "runs") as step:
        step.update(0, len(todo), "booting")

        def advance(name: str) -> None:
            nonlocal done
            done += 1
            step.update(done, len(todo), name)

        try:
            # A minute more than the guest gives itself.
            booted = boot(topology, parts.kernel, image, scratch, guest_s(len(todo)) + 60, advance)
        finally:
            image.unlink(missing_ok=True)
    seen = booted.intake.observations
    commands = {one.name: one.command for one in todo}
    return Guest(
        topology,
        booted,
        time.perf_counter() - started,
        tuple(
            Proved(
                case,
                judge(case, seen.get(case.name), seen.get(case.twin)),
                seen.get(case.name),
                seen.get(case.twin),
                commands[case.name],
            )
            for case in cases
        ),
    )
