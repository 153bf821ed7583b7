"""A payload wheel unpacked for the length of a measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from forkyard_llm.errors import UsageError as Unfit
from forkyard_llm.measuring.child import RunFailed
from forkyard_llm.measuring.engine import Engine, examine, read_manifest
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
            needs = (read_manifest(package).get("backend") or {}).get("needs", ())
            missing = _put_beside(folder, needs, installed)
            engine = examine(package, wheel=wheel.name, missing=missing)
        except Unfit as error:
            msg = f"{wheel.name} cannot be measured"
            next_step = "name a payload wheel that forkyard built, with llama-bench among the tools of its recipe"
            raise UsageError(msg, where=str(wheel), why=str(error), next_step=next_step) from error
        except RunFailed as error:
            other = None if missing else "choose a --variant that this processor can run: `forkyard variants`"
            raise BuildError(error.what, where=wheel.name, why=error.why, next_step=other) from error
        try:
            yield engine
        except RunFailed as error:
            where = None if error.log is None else str(error.log)
            next_step = "leave it out, or run the command in the log by itself"
            raise BuildError(error.what, where=where, why=error.why, next_step=next_step) from error


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
