"""What this machine has and lacks for building, with the exact command that installs what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkyard.cache import Cache
from forkyard.errors import ForkyardError, StorageError
from forkyard.installing import install_command, this_package_manager
from forkyard.journal import unfinished
from forkyard.places import check_own
from forkyard.process import run
from forkyard.recipes import load_variants
from forkyard.toolchain import detect, native_features
from forkyard.toolkits import choose, remedy, shown

_GIT_FLOOR = (2, 30)
# `git merge-tree --write-tree`, which carries patches over to another commit.
_MERGING_FLOOR = (2, 38)
_SPACE_WANTED = 8 << 30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: str
    """``ok``, ``advice`` (works without) or ``missing`` (cannot build)."""
    found: str
    fix: str | None = None


def examine(cache: Cache, root: Path | None = None) -> list[Check]:
    """Look at everything a build needs. Raises nothing for what is missing: that is the answer.

    Args:
        root: a project, to see whether a change of it was cut off.
    """
    manager = this_package_manager()
    checks = [_python(), _machine(), _git(manager), *_compiler(cache, manager), _cache(cache)]
    if root is not None:
        checks += [_project(root), *_toolkits(root, cache)]
    return checks


def _toolkits(root: Path, cache: Cache) -> list[Check]:
    """What variants for GPUs and other machines are compiled with: only advice, as nobody needs all of them."""
    checks = []
    try:
        variants, toolchain = load_variants(root), detect(cache)
    except ForkyardError:
        # The checks of the compiler say so, and any other command does of the file.
        return []
    backends = [(name, one.backend, one.backend.toolkit) for name, one in variants.variants.items() if one.backend]
    targets = [(name, None, one.toolkit) for name, one in variants.targets.items()]
    for name, backend, kit in [*backends, *targets]:
        if kit is None:
            checks.append(Check(name, "ok", "can be built, with the compiler of all else"))
            continue
        toolkit = variants.toolkits[kit]
        try:
            chosen = choose(kit, toolkit, backend, toolchain, cache)
        except ForkyardError as error:
            checks.append(Check(name, "advice", f"{error.what}: {error.why}", error.next_step))
            continue
        if chosen.missing:
            lacking = "; ".join(f"{shown(part)} is missing: {part.why}" for part in chosen.missing)
            checks.append(Check(name, "advice", lacking, remedy(chosen.missing)))
            continue
        where = str(chosen.installed) if chosen.installed else "the system"
        if not chosen.installed and toolkit.packages:
            where = "the package registry" + (" and the system" if toolkit.system else "")
        checks.append(Check(name, "ok", f"can be built, with {toolkit.title} from {where}"))
    return checks


def _project(root: Path) -> Check:
    """Reports only: whoever asks what is wrong does not want it changed under their hands."""
    try:
        waiting = unfinished(root)
    except ForkyardError as error:
        why = f": {error.why}" if error.why else ""
        return Check("project", "missing", f"{error.what} ({error.where}){why}", error.next_step)
    if waiting is None:
        return Check("project", "ok", str(root))
    found = f"`{waiting.command}` was cut off while it changed {len(waiting.paths) + len(waiting.left)} files of {root}"
    if waiting.left:
        found += f"; changed by somebody since, and left alone: {', '.join(waiting.left)}"
    return Check("project", "advice", found, "run any other command, as `forkyard status`: it finishes the change")


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info < (3, 11):
        return Check("python", "missing", version, "install Python 3.11 or newer")
    try:
        check_own()
    except StorageError as error:
        return Check("python", "missing", f"{version}: {error.what}", error.next_step)
    return Check("python", "ok", version)


def _machine() -> Check:
    name = f"{platform.system()} {platform.machine()}"
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        return Check("machine", "ok", name)
    return Check("machine", "missing", f"{name}: payloads are built on Linux on x86-64 only so far")


def _git(manager: str | None) -> Check:
    if shutil.which("git") is None:
        return Check("git", "missing", "not installed", install_command("git", manager))
    said = run(["git", "--version"], timeout_s=30).stdout.strip()
    match = re.search(r"(\d+)\.(\d+)", said)
    version = (int(match[1]), int(match[2])) if match else _MERGING_FLOOR
    if version < _GIT_FLOOR:
        return Check("git", "missing", f"{said}: older than 2.30", install_command("git", manager))
    if version < _MERGING_FLOOR:
        return Check("git", "advice", f"{said}: rebase needs 2.38 or newer", install_command("git", manager))
    return Check("git", "ok", said)


def _compiler(cache: Cache, manager: str | None) -> list[Check]:
    try:
        toolchain = detect(cache)
        features = native_features(toolchain)
    except ForkyardError as error:
        found = error.what + (f": {error.why}" if error.why else "")
        chosen = any(os.environ.get(name) for name in ("CC", "CXX"))
        fix = error.next_step if chosen else install_command("compiler", manager)
        return [Check("compiler", "missing", found, fix)]
    checks = [
        Check("compiler", "ok", f"{toolchain.version} ({toolchain.target}, {toolchain.libc})"),
        Check("cpu", "ok", f"can run builds that need: {', '.join(features)}"),
    ]
    if toolchain.openmp is None:
        checks.append(
            Check(
                "openmp",
                "missing",
                f"{toolchain.family} has no OpenMP library ({'libomp' if toolchain.family == 'clang' else 'libgomp'})",
                toolchain.openmp_remedy,
            )
        )
    return checks


def _cache(cache: Cache) -> Check:
    try:
        cache.prepare()
    except ForkyardError as error:
        return Check("cache", "missing", error.describe(), "export FORKYARD_CACHE=/a/folder/you/may/write")
    free = shutil.disk_usage(cache.root).free
    text = f"{cache.root} ({free / 2**30:.1f} GiB free)"
    if free < _SPACE_WANTED:
        return Check(
            "cache",
            "advice",
            f"{text}; both engines with a few variants want about 8 GiB",
            "free some space or set FORKYARD_CACHE",
        )
    return Check("cache", "ok", text)


def as_json(checks: list[Check], root: Path) -> dict[str, Any]:
    """For machines."""
    return {
        "ok": all(check.state != "missing" for check in checks),
        "root": str(root),
        "checks": [{"name": c.name, "state": c.state, "found": c.found, "fix": c.fix} for c in checks],
    }
