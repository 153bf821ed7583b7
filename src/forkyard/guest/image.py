"""The first file system of a guest: busybox, numactl, an engine's server, the host's libraries, a model, the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import explained
from forkyard.errors import SourceError
from forkyard.guest import cpio
from forkyard.guest.libraries import SYSTEM, needed
from forkyard.guest.script import LIBRARIES, MODEL, question

_NUMACTL = "usr/bin/numactl"
_BUSYBOX = "bin/busybox"


@dataclass(frozen=True)
class Parts:
    """What images are made of."""

    system: Path
    """Folder with the unpacked packages."""
    engine: Path
    """The payload's package folder."""
    programs: tuple[str, ...]
    """Names of programs in its bin folder."""
    model: Path

    @property
    def kernel(self) -> Path:
        """The kernel.

        Raises:
            SourceError: the packages hold none, or several.
        """
        found = sorted((self.system / "boot").glob("vmlinuz-*"))
        if len(found) != 1:
            msg = "the guest's packages do not hold one kernel"
            raise SourceError(msg, where=str(self.system), why=f"found {len(found)}")
        return found[0]


def contents(parts: Parts, script: str) -> list[cpio.Entry]:
    """Everything in an image.

    Raises:
        ToolchainError: a library is missing.
        SourceError: a package or the payload lacks a file.
    """
    programs = [parts.engine / "bin" / name for name in parts.programs]
    # Also those that a program only opens: the CPU libraries of a payload for every CPU lie beside the programs.
    own = sorted(path for path in parts.engine.rglob("*.so*") if path.is_file())
    numactl = parts.system / _NUMACTL
    for path in (*programs, numactl, parts.system / _BUSYBOX, parts.model):
        if not path.is_file():
            msg = f"there is no {path.name} for the guest"
            raise SourceError(msg, where=str(path))
    folders = (*sorted((parts.system / "usr/lib").glob("*-linux-gnu")), *SYSTEM)
    host = needed([*programs, *own, numactl], parts.engine, folders)
    return [
        cpio.console("dev/console"),
        *map(cpio.folder, ("proc", "sys", "tmp", "out")),
        cpio.file("init", script.encode(), program=True),
        cpio.file("question", question()),
        cpio.file("bin/busybox", (parts.system / _BUSYBOX).read_bytes(), program=True),
        cpio.link("bin/sh", "busybox"),
        cpio.file("bin/numactl", numactl.read_bytes(), program=True),
        *(cpio.file(f"engine/bin/{path.name}", path.read_bytes(), program=True) for path in programs),
        *(_own(path, parts.engine) for path in own),
        *(_of_host(f"{LIBRARIES}/{name}", path) for name, path in sorted(host.libraries.items())),
        *(_of_host(name, path) for name, path in sorted(host.loaders.items())),
        cpio.file(MODEL.lstrip("/"), parts.model.read_bytes()),
    ]


def write_image(target: Path, entries: Sequence[cpio.Entry]) -> None:
    """Write an image.

    Raises:
        StorageError: no space.
    """
    with explained("write the guest's file system"), target.open("wb") as sink:
        for piece in cpio.archive(entries):
            sink.write(piece)


def _own(path: Path, engine: Path) -> cpio.Entry:
    return cpio.file(f"engine/{path.relative_to(engine)}", path.read_bytes(), program=True)


def _of_host(name: str, path: Path) -> cpio.Entry:
    return cpio.file(name.lstrip("/"), path.read_bytes(), program=True)
