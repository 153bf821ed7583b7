"""The engine under test: a payload wheel unpacked for the length of a measurement, and what its llama-bench can do."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import explained
from forkyard.errors import BuildError, UsageError
from forkyard.process import clean_environment, run, show
from forkyard.scratch import owned_folder

TOOL = "llama-bench"
_HELP_S = 60.0
_MODES = re.compile(r"--numa\s+<([^>]*)>")


@dataclass(frozen=True)
class Engine:
    """A payload that can be measured."""

    name: str
    """``llama.cpp`` or ``ik_llama.cpp``, as its manifest says."""
    build_key: str
    wheel: str
    """File name of the wheel it is from."""
    bench: Path
    """Its llama-bench."""
    modes: frozenset[str]
    """Words it takes after ``--numa``."""
    load: Mapping[bool, tuple[str, ...]]
    """Arguments that load the model mapped (true) or read into memory (false)."""


@contextlib.contextmanager
def unpacked(wheel: Path, scratch: Path) -> Iterator[Engine]:
    """The engine of a payload wheel, for the length of the block.

    Raises:
        UsageError: the file is no payload wheel, or holds no llama-bench.
        BuildError: its llama-bench does not run here.
    """
    with owned_folder(scratch, "bench-") as folder:
        try:
            with explained("unpack the engine"), zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    path = Path(archive.extract(info, folder))
                    path.chmod((info.external_attr >> 16) & 0o777 or 0o644)
        except (zipfile.BadZipFile, FileNotFoundError) as error:
            msg = f"{wheel.name} is no wheel"
            raise UsageError(
                msg, where=str(wheel), why=str(error), next_step="name a wheel that forkyard built"
            ) from error
        yield _examine(wheel, folder)


def _examine(wheel: Path, folder: Path) -> Engine:
    manifests = [path for path in folder.glob("*/manifest.json") if (path.parent / "bin" / TOOL).is_file()]
    if len(manifests) != 1:
        msg = f"{wheel.name} holds no {TOOL}"
        raise UsageError(msg, where=str(wheel), next_step="build a payload whose recipe lists llama-bench in its tools")
    facts = json.loads(manifests[0].read_text(encoding="utf-8"))
    bench = manifests[0].parent / "bin" / TOOL
    said = _help(bench)
    modes = _MODES.search(said)
    if "--load-mode" in said:
        load = {True: ("-lm", "mmap"), False: ("-lm", "none")}
    else:
        load = {True: ("-mmp", "1"), False: ("-mmp", "0")}
    return Engine(
        name=str(facts.get("engine", "unknown")),
        build_key=str(facts.get("build_key", "")),
        wheel=wheel.name,
        bench=bench,
        modes=frozenset(modes.group(1).split("|") if modes else ()),
        load=load,
    )


def _help(bench: Path) -> str:
    command = [str(bench), "--help"]
    done = run(command, timeout_s=_HELP_S, env=clean_environment())
    if done.returncode != 0:
        msg = f"{TOOL} does not run on this machine"
        raise BuildError(
            msg,
            where=show([TOOL, "--help"]),
            why=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300],
            next_step="choose a --variant that this processor can run: `forkyard variants`",
        )
    return done.stdout + done.stderr
