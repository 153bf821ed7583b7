"""What the rules look at: a stack as it is for one engine, its patches taken apart, its whole files by target."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from forkyard.errors import PatchError
from forkyard.linting.model import Finding, Level
from forkyard.linting.reading import PatchText, read_patch
from forkyard.stacks import Patch, Stack
from forkyard.stacks.patchfile import Trailers, parse_trailers


class Place(Protocol):
    """A file whose lines can be found fault with."""

    def finding(self, rule: str, level: Level, line: int | None, what: str, why: str, next_step: str) -> Finding:
        """A finding at a line of it."""


def shown(root: Path, path: Path) -> str:
    """A path below the project's folder, as messages name it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


@dataclass(frozen=True)
class LintedPatch:
    """One patch of a case."""

    stack: str
    engine: str
    patch: Patch
    file: str
    """Path of the patch below the project's folder."""
    text: PatchText
    trailers: Trailers | None
    fault: PatchError | None
    """Why there are no trailers."""

    @property
    def label(self) -> str:
        """Stack and patch."""
        return f"{self.stack}/{self.patch.name}"

    def finding(self, rule: str, level: Level, line: int | None, what: str, why: str, next_step: str) -> Finding:
        """A finding at a line of this patch."""
        return Finding(rule, level, self.stack, self.engine, self.patch.name, self.file, line, what, why, next_step)


@dataclass(frozen=True)
class OwnFile:
    """A whole file of ours that a patch of the case adds."""

    source: str
    target: str
    file: str
    """Path below the project's folder."""
    data: bytes
    patch: LintedPatch

    def finding(self, rule: str, level: Level, line: int | None, what: str, why: str, next_step: str) -> Finding:
        """A finding at a line of this file."""
        patch = self.patch
        return Finding(rule, level, patch.stack, patch.engine, patch.patch.name, self.file, line, what, why, next_step)


@dataclass(frozen=True)
class Case:
    """One stack for one engine."""

    root: Path
    stack: Stack
    engine: str
    patches: tuple[LintedPatch, ...]
    whole: tuple[OwnFile, ...]
    lost: tuple[tuple[LintedPatch, str], ...] = ()
    """Adds-Files trailers whose file is not under ``src``: the patch and the name."""
    owners: Mapping[tuple[str, str], LintedPatch] = field(default_factory=dict)
    """(patch name, path) -> the earlier patch that brought the file which the patch edits, be it of another stack."""

    def finding(self, rule: str, level: Level, file: Path, what: str, why: str, next_step: str) -> Finding:
        """A finding about the series as a whole."""
        return Finding(
            rule, level, self.stack.name, self.engine, None, shown(self.root, file), None, what, why, next_step
        )


def read_case(root: Path, stack: Stack, engine: str) -> Case:
    """Read a stack's series for an engine.

    Raises:
        PatchError: the series names a file that is not there, or a file is in no series.
        ValueError: the series is not text.
    """
    patches: list[LintedPatch] = []
    whole: list[OwnFile] = []
    lost: list[tuple[LintedPatch, str]] = []
    for patch in stack.series(engine).patches:
        linted = _linted(root, stack.name, engine, patch)
        patches.append(linted)
        for file in linted.trailers.adds_files if linted.trailers is not None else ():
            path = stack.src / file.source
            try:
                data = path.read_bytes()
            except (OSError, ValueError):
                lost.append((linted, file.source))
                continue
            whole.append(OwnFile(file.source, file.target, shown(root, path), data, linted))
    return Case(root, stack, engine, tuple(patches), tuple(whole), tuple(lost))


def _linted(root: Path, stack: str, engine: str, patch: Patch) -> LintedPatch:
    text = read_patch(patch.data)
    trailers: Trailers | None = None
    fault: PatchError | None = None
    try:
        trailers = parse_trailers(text.message, patch.name)
    except PatchError as error:
        fault = error
    return LintedPatch(stack, engine, patch, shown(root, patch.path), text, trailers, fault)


def with_owners(cases: Sequence[Case]) -> list[Case]:
    """The cases of one combination, in the order they apply, each told which edited files are ours already."""
    brought: dict[str, LintedPatch] = {}
    told: list[Case] = []
    for case in cases:
        owners: dict[tuple[str, str], LintedPatch] = {}
        for patch in case.patches:
            for file in patch.text.files:
                if file.path in brought:
                    owners[patch.patch.name, file.path] = brought[file.path]
            brought.update({file.path: patch for file in patch.text.files if file.new})
            brought.update({own.target: patch for own in case.whole if own.patch is patch})
        told.append(Case(case.root, case.stack, case.engine, case.patches, case.whole, case.lost, owners))
    return told


@functools.cache
def is_c(path: str) -> bool:
    """Whether a path is C, C++ or CUDA."""
    return PurePosixPath(path).suffix in {".c", ".h", ".cpp", ".hpp", ".cc", ".cxx", ".cu", ".cuh"}


@functools.cache
def is_cmake(path: str) -> bool:
    """Whether a path is read by CMake."""
    return PurePosixPath(path).name == "CMakeLists.txt" or path.endswith((".cmake", ".cmake.in"))
