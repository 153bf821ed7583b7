"""A payload wheel unpacked for the length of a measurement."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from forkyard_llm.errors import UsageError as Unfit
from forkyard_llm.measuring.child import RunFailed
from forkyard_llm.measuring.engine import MANIFEST, TOOL, Engine, examine
from forkyard_llm.measuring.finding import unpack

from forkyard.cache import explained
from forkyard.errors import BuildError, UsageError
from forkyard.scratch import owned_folder


@contextlib.contextmanager
def unpacked(wheel: Path, scratch: Path, installed: Sequence[Path] = ()) -> Iterator[Engine]:
    """The engine of a payload wheel, for the length of the block.

    Args:
        installed: folders like Python's site-packages, where libraries that the payload requires may be.

    Raises:
        UsageError: the file is no payload wheel, or holds no llama-bench.
        BuildError: its llama-bench does not run here, or a run of it failed in the block.
    """
    with owned_folder(scratch, "bench-") as folder:
        try:
            with explained("unpack the engine"):
                package = unpack(wheel, folder)
        except Unfit as error:
            msg = f"{wheel.name} cannot be measured"
            next_step = "name a payload wheel that forkyard built"
            raise UsageError(msg, where=str(wheel), why=str(error), next_step=next_step) from error
        try:
            yield _examine(wheel, package, installed)
        except RunFailed as error:
            where = None if error.log is None else str(error.log)
            next_step = "leave it out, or run the command in the log by itself"
            raise BuildError(error.what, where=where, why=error.why, next_step=next_step) from error


def _examine(wheel: Path, package: Path, installed: Sequence[Path]) -> Engine:
    backend = json.loads((package / MANIFEST).read_text(encoding="utf-8")).get("backend") or {}
    missing = _put_beside(package.parent, backend.get("needs", ()), installed)
    try:
        return examine(package, wheel=wheel.name, missing=missing)
    except Unfit as error:
        msg = f"{wheel.name} holds no {TOOL}"
        next_step = "build a payload whose recipe lists llama-bench in its tools"
        raise UsageError(msg, where=str(wheel), next_step=next_step) from error
    except RunFailed as error:
        msg = f"{TOOL} does not run on this machine"
        next_step = "choose a --variant that this processor can run: `forkyard variants`"
        raise BuildError(msg, where=wheel.name, why=error.why, next_step=None if missing else next_step) from error


def _put_beside(folder: Path, needs: Sequence[str], installed: Sequence[Path]) -> tuple[str, ...]:
    """Link the libraries that a payload finds beside it once both are installed; what is nowhere is returned.

    A library of a driver is in none of these folders either: the loader finds it, or its absence leaves no device.
    """
    missing = []
    for soname in needs:
        found = next((path for site in installed for path in site.glob(f"*/*/lib/{soname}")), None)
        if found is None:
            missing.append(soname)
            continue
        link = folder / found.parents[2].name
        if not link.exists():
            link.symlink_to(found.parents[2].absolute())
    return tuple(missing)
