"""Which shared libraries of this machine a program needs in the guest, read from the ELF files themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.errors import ToolchainError
from forkyard.gates.elf import DamagedElfError, read_elf

SYSTEM = tuple(
    Path(folder)
    for folder in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib")
)


@dataclass(frozen=True)
class Needed:
    """What programs need beyond what lies beside them."""

    libraries: dict[str, Path]
    """File name under which it is looked for -> where it is."""
    loaders: dict[str, Path]
    """Path of a dynamic loader in the guest -> where it is here."""


def needed(programs: Iterable[Path], own: Path, folders: Sequence[Path] = SYSTEM) -> Needed:
    """Follow the NEEDED entries of programs and libraries as the dynamic loader would (ld.so(8)).

    Args:
        programs: ELF files.
        own: libraries found below this folder, by a run path, are in the guest already.
        folders: where others are looked for, in this order.

    Raises:
        ToolchainError: a library is nowhere, or a file is no ELF file.
    """
    found: dict[str, Path] = {}
    loaders: dict[str, Path] = {}
    todo, seen = list(programs), set[Path]()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            elf = read_elf(path.read_bytes())
        except (OSError, DamagedElfError) as error:
            msg = "a program for the guest cannot be read"
            raise ToolchainError(msg, where=str(path), why=str(error)) from error
        if elf.interpreter is not None:
            loaders[elf.interpreter] = Path(elf.interpreter)
        places = [
            Path(place.replace("$ORIGIN", str(path.parent))) for place in (elf.runpath or elf.rpath or "").split(":")
        ]
        for name in elf.needed:
            library = next((place / name for place in (*places, *folders) if (place / name).is_file()), None)
            if library is None:
                msg = f"the library {name} is not on this machine"
                raise ToolchainError(msg, where=str(path), why="the guest runs with the libraries of this machine")
            if not library.resolve().is_relative_to(own.resolve()):
                found.setdefault(name, library)
            todo.append(library)
    return Needed(found, loaders)
