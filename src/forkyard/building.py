"""Building one payload: from a plan to a wheel in the output folder, or nothing at all.

Every step leaves either what was there before or a complete result. The finished wheel is kept in the cache under
its key, and the output folder gets a copy by rename, so a killed run is simply run again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cmake
import ninja

from forkyard.abi import DEFAULT_TARGET, write_abi
from forkyard.buildlog import first_errors, known_cause, says_why, storage_errno
from forkyard.cache import Cache, explained, publish, storage_error, write_atomic
from forkyard.console import Reporter, Step
from forkyard.errors import BuildError, ForkyardError
from forkyard.gates import check_wheel, gpu_limits, limits_for
from forkyard.locking import check as check_lock
from forkyard.locks import Held, hold
from forkyard.manifest import make_manifest
from forkyard.network import sha256_of
from forkyard.packing import retag
from forkyard.places import check_output, check_own
from forkyard.plan import Plan, check_obtained, check_tools
from forkyard.process import clean_environment, stream
from forkyard.project import Project, Toolchest, cxx_license, openmp_license, openmp_name, write_project
from forkyard.quota import available_bytes, cpu_quota
from forkyard.sbom import BundledLibrary, make_sbom
from forkyard.scratch import owned_folder
from forkyard.sources import Obtained, obtain
from forkyard.toolkits import cmake_options
from forkyard.trees import Checkout, checked_out, headers_of

BUILD_TIMEOUT_S = 6 * 3600.0
_NINJA_STATUS = "[forkyard %f %t] "
_NINJA_LINE = re.compile(r"^\[forkyard (\d+) (\d+)\] (.*)$")
_COMPILE_STEP = re.compile(r"^Building \S+ object (\S+)\.o$")
_UNUSED = re.compile(r"^\s+([A-Za-z_][A-Za-z0-9_]*)\s*$")
_FAILED_LINES = 25
_STATISTICS = "ccache.log"


@dataclass(frozen=True)
class Built:
    """A payload wheel in the output folder."""

    wheel: Path
    sha256: str
    key: str
    fresh: bool
    """False if nothing had to be done."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step."""
    compiled: int = 0
    """Compile and link steps that ran."""
    units: tuple[str, ...] = ()
    """The translation units among them, as paths of their objects in the build folder, sorted."""
    ccache: dict[str, int] | None = None
    """ccache's hits and misses of this build."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "wheel": str(self.wheel),
            "sha256": self.sha256,
            "key": self.key,
            "fresh": self.fresh,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "steps": self.compiled,
            "compiled": list(self.units),
            "ccache": self.ccache,
        }


def kept_wheel(key: str, cache: Cache) -> Path | None:
    """The finished wheel of a key in the cache, its digest checked; ``None`` if there is none or it is damaged."""
    record = cache.root / "wheels" / key / "record.json"
    try:
        facts = json.loads(record.read_bytes())
        wheel = record.parent / str(facts["wheel"])
        if wheel.parent == record.parent and sha256_of(wheel) == facts["sha256"]:
            return wheel
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def build(
    plan: Plan,
    cache: Cache,
    out: Path,
    root: Path,
    reporter: Reporter,
    *,
    source: str | None = None,
    offline: bool = False,
    jobs: int | None = None,
    use_ccache: bool = True,
    locked: bool = False,
) -> Built:
    """Have the plan's wheel in ``out``.

    Args:
        out: output folder; older wheels of the same distribution are removed from it once the new one is there.
        root: the project's folder, with ``wheels/`` templates.
        source, offline: see :func:`forkyard.sources.obtain`.
        jobs: parallel compiles.
        use_ccache: use ccache.
        locked: anything that differs from the recipe's lock is an error instead of a warning.

    Raises:
        ForkyardError: any of its kinds; ``out`` is then as before.
    """
    cache.prepare()
    if (done := _already(plan, cache, out)) is not None:
        return done
    check_tools(plan)
    check_own()
    check_output(out.absolute())
    seconds: dict[str, float] = {}
    lock = cache.locks / f"build-{plan.workspace}-{plan.variant.name}.lock"
    with hold(
        lock, waiting=lambda who: reporter.note(f"waiting for another build of {plan.distribution} ({who})")
    ) as held:
        if (done := _already(plan, cache, out)) is not None:
            return done
        with _timed(seconds, "source"):
            obtained = obtain(plan.recipe, cache, reporter, source=source, offline=offline)
            check_obtained(plan, obtained)
            toolkit = plan.toolkit.folder(cache, reporter, offline=offline) if plan.toolkit else None
        with contextlib.ExitStack() as stack:
            with _timed(seconds, "tree"):
                checkout = stack.enter_context(
                    checked_out(
                        plan.recipe,
                        plan.workspace,
                        obtained,
                        plan.stacks,
                        plan.toolchain.sha256,
                        cache,
                        reporter,
                        plan.usual,
                    )
                )
            if all(stack.limit is None for stack in plan.stacks):
                # The beginning of a series is nobody's lock.
                check_lock(plan.recipe, obtained, plan.stacks, checkout.patched, reporter, strict=locked)
            launcher = _ccache(use_ccache)
            with _timed(seconds, "project"):
                chest = _toolchest(plan, cache, toolkit, jobs, launcher)
                zig = toolkit if plan.variant.target else None
                project = _prepare(plan, obtained, checkout, cache, root, jobs, launcher, chest, zig)
            with owned_folder(cache.scratch, "wheel-") as scratch:
                run_ = _Compile(plan, obtained.date, cache, reporter, launcher, jobs)
                with _timed(seconds, "compile"):
                    raw = run_.run(project, scratch, held, checkout)
                with _timed(seconds, "pack"), reporter.step("packing"):
                    wheel = retag(raw, _epoch(obtained.date))
                with _timed(seconds, "gates"), reporter.step("checking the wheel"):
                    _gates(plan, wheel, cache, root, toolkit)
                digest = _keep(plan, wheel, cache)
                use = run_.ccache_use(scratch)
        # Still under the lock: `clean` waits for it before it takes the kept wheel away.
        wheel = publish_wheel(plan, wheel.name, cache, out)
    return Built(wheel, digest, plan.key, True, seconds, run_.steps, tuple(sorted(run_.units)), use)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = time.perf_counter() - started


def _already(plan: Plan, cache: Cache, out: Path) -> Built | None:
    kept = kept_wheel(plan.key, cache)
    if kept is None:
        return None
    try:
        wheel = publish_wheel(plan, kept.name, cache, out)
        return Built(wheel, sha256_of(wheel), plan.key, False)
    except FileNotFoundError:
        # Cleaned away at this moment: whoever comes next under the lock makes it again.
        return None


def publish_wheel(plan: Plan, name: str, cache: Cache, out: Path) -> Path:
    """Copy a kept wheel to the output folder unless it is there, and remove older ones of its distribution."""
    kept = cache.root / "wheels" / plan.key / name
    target = out / name
    if not (target.is_file() and sha256_of(target) == sha256_of(kept)):
        publish(kept, target)
    for other in out.glob(f"{plan.package}-*.whl"):
        if other.name != name:
            with explained(f"remove the older {other.name}"):
                # Another build may be removing it, too.
                other.unlink(missing_ok=True)
    return target


def _keep(plan: Plan, wheel: Path, cache: Cache) -> str:
    folder = cache.root / "wheels" / plan.key
    publish(wheel, folder / wheel.name)
    digest = sha256_of(folder / wheel.name)
    # Written last: a wheel without a record does not exist.
    write_atomic(folder / "record.json", json.dumps({"wheel": wheel.name, "sha256": digest}).encode())
    return digest


def _ccache(wanted: bool) -> Path | None:
    # The one from the registry, a dependency of ours; the system's may be older or missing.
    folders = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which("ccache", path=folders) if wanted else None
    return Path(found) if found else None


def _prepare(
    plan: Plan,
    obtained: Obtained,
    checkout: Checkout,
    cache: Cache,
    root: Path,
    jobs: int | None,
    launcher: Path | None,
    chest: Toolchest | None,
    zig: Path | None,
) -> Project:
    folder = cache.build(plan.workspace, plan.variant.name)
    build = plan.recipe.build
    # The engine's own first: those of stacks are written on top of them.
    headers = [*build.headers, *plan.variant.headers]
    headers += [path for stack in plan.stacks for path in headers_of(stack, checkout.patched)]
    include_dirs = list(dict.fromkeys([*build.include_dirs, *(str(PurePosixPath(path).parent) for path in headers)]))
    abi_sha256 = write_abi(
        folder,
        headers=[checkout.folder / path for path in headers],
        include_dirs=[checkout.folder / path for path in include_dirs],
        defines=build.defines,
        target=plan.variant.target.triple if plan.variant.target else DEFAULT_TARGET,
    )
    manifest = make_manifest(plan, obtained, checkout.patched, checkout.tree, abi_sha256)
    sbom = make_sbom(manifest, bundled=_bundled(plan), source_date_epoch=_epoch(obtained.date))
    return write_project(
        plan,
        obtained,
        manifest,
        sbom,
        folder,
        checkout.folder,
        root / "wheels",
        include_dirs=include_dirs,
        jobs=jobs or default_jobs(),
        launcher=launcher,
        toolkit=chest,
        zig=zig,
    )


def _toolchest(
    plan: Plan, cache: Cache, toolkit: Path | None, jobs: int | None, launcher: Path | None
) -> Toolchest | None:
    """How the code is compiled here that a toolkit is for; ``None`` for a backend without, and without a backend."""
    backend, chosen = plan.variant.backend, plan.toolkit
    if backend is None or chosen is None or backend.unit_mib is None:
        return None
    words: list[str] = []
    if launcher is not None:
        # By its content: a toolkit that was unpacked anew is the same compiler.
        words = [str(launcher), "compiler_check=content"]
        if not os.environ.get("CCACHE_DIR"):
            # What the user keeps elsewhere has the user's limit.
            words += [f"cache_dir={cache.backend_ccache(plan.variant.name)}", f"max_size={backend.ccache}"]
    return Toolchest(
        options=cmake_options(chosen.data, backend, toolkit),
        languages=chosen.data.languages,
        launcher=words,
        jobs=jobs or jobs_in_memory(backend.unit_mib),
    )


def jobs_in_memory(unit_mib: int) -> int:
    """Parallel compiles of which each may take ``unit_mib`` MiB: as :func:`default_jobs`, as far as memory goes."""
    left = available_bytes()
    return default_jobs() if left is None else max(1, min(default_jobs(), left // (unit_mib << 20)))


def default_jobs() -> int:
    """Parallel compiles: the processors this process may use, and no more than its CPU quota keeps busy."""
    processors, quota = len(os.sched_getaffinity(0)), cpu_quota()
    return processors if quota is None else max(1, min(processors, math.ceil(quota)))


def _bundled(plan: Plan) -> list[BundledLibrary]:
    if plan.variant.target is not None:
        # Compiled with the engine, so what it will be is not known yet.
        cxx = f"libforkyard-cxx-{plan.slug}-{plan.variant.name}.so"
        made_of = f"libc++, libc++abi and libunwind of {plan.toolchain.version}"
        return [BundledLibrary(cxx, f"{plan.package}/lib/{cxx}", None, made_of, cxx_license(plan))]
    name = openmp_name(plan)
    if name is None or plan.toolchain.openmp is None:
        return []
    library = plan.toolchain.openmp
    return [BundledLibrary(name, f"{plan.package}/lib/{name}", sha256_of(library), license_id=openmp_license(plan))]


def _epoch(date: str) -> int:
    """Midnight UTC of a ``YYYY-MM-DD`` day, in seconds since 1970."""
    day = datetime.date.fromisoformat(date)
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())


def _gates(plan: Plan, wheel: Path, cache: Cache, root: Path, toolkit: Path | None) -> None:
    private = [str(cache.root), str(root), os.path.expanduser("~")]
    report = check_wheel(
        wheel,
        package=plan.package,
        limits=limits_for(plan.recipe, plan.variant),
        gpu=gpu_limits(plan.variant, plan.recipe.build.cpu_target, toolkit),
        forbidden_prefixes=[path for path in private if len(path) > 1],
    )
    report.raise_if_failed()


class _Compile:
    """One run of scikit-build-core, watched."""

    def __init__(
        self, plan: Plan, date: str, cache: Cache, reporter: Reporter, launcher: Path | None, jobs: int | None
    ) -> None:
        self._plan, self._date, self._cache, self._reporter, self._launcher = plan, date, cache, reporter, launcher
        self._jobs = jobs
        self.steps = 0
        self.units: set[str] = set()
        self._unused: list[str] = []
        self._in_unused = False
        self._tail: list[str] = []
        self._failed: list[str] = []
        self._in_cmake_error = False
        self._log = cache.logs / f"{plan.workspace}-{plan.variant.name}.log"
        self._wheel = ""

    def run(self, project: Project, out: Path, held: Held, checkout: Checkout) -> Path:
        """Configure, compile, install and pack; returns the raw wheel.

        Raises:
            BuildError: with the last error and the log's path.
        """
        self._settle(project)
        log = self._log
        with explained("start the log"):
            write_atomic(log, b"")
        command = [sys.executable, "-m", "forkyard.runner", str(project.folder), str(out), str(os.getpid())]
        title = f"compiling {self._plan.distribution}"
        with self._reporter.step(title, "steps") as step:
            status = stream(
                command,
                log=log,
                on_line=lambda line: self._line(line, step),
                timeout_s=BUILD_TIMEOUT_S,
                env=self._environment(project, out),
                keep_open=[*held.fds, checkout.lock_fd],
            )
        if self._unused:
            raise self._unknown_options()
        if status != 0 or not self._wheel:
            raise self._failure(status, log, out)
        (project.folder / "configuring").unlink(missing_ok=True)
        return out / self._wheel

    def _settle(self, project: Project) -> None:
        """Start CMake's folder afresh if its last configuring was cut off or another compiler made it."""
        marker, identity = project.folder / "configuring", project.folder / "toolchain"
        present = identity.read_text() if identity.is_file() else ""
        toolkit = self._plan.toolkit
        wanted = " ".join([self._plan.toolchain.sha256, *(toolkit.identity.values() if toolkit else ())])
        with explained("prepare the build folder"):
            if project.cmake.exists() and (marker.exists() or present != wanted):
                shutil.rmtree(project.cmake)
            write_atomic(identity, wanted.encode())
            write_atomic(marker, b"")
        self._marker = marker

    def _environment(self, project: Project, scratch: Path) -> dict[str, str]:
        folders = [str(project.shim), cmake.CMAKE_BIN_DIR, ninja.BIN_DIR, str(Path(sys.executable).parent)]
        path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
        extra = {
            "NINJA_STATUS": _NINJA_STATUS,
            "SOURCE_DATE_EPOCH": str(_epoch(self._date)),
            # The shim answers for git. Should a build reach the real one, that finds no repository at all, wherever
            # the folders are: a ceiling would be a list of paths, and a list splits names that hold its separator.
            "GIT_DIR": os.devnull,
            "PYTHONUNBUFFERED": "1",
            "CMAKE_COLOR_DIAGNOSTICS": "OFF",
        }
        if self._launcher is not None:
            extra |= {
                "CCACHE_DIR": os.path.abspath(os.environ.get("CCACHE_DIR") or self._cache.ccache),
                # Build folders of different variants then look alike, and what does not depend on the ISA is shared.
                "CCACHE_BASEDIR": str(self._cache.root),
                "CCACHE_NOHASHDIR": "1",
                "CCACHE_DEPEND": "1",
                "CCACHE_STATSLOG": str(scratch / _STATISTICS),
                "CCACHE_MAXSIZE": os.environ.get("CCACHE_MAXSIZE", "10G"),
            }
            if self._plan.variant.target is not None:
                # It sees a script, newly written for each build folder.
                extra |= {
                    "CCACHE_COMPILERTYPE": "clang",
                    "CCACHE_COMPILERCHECK": f"string:{self._plan.toolchain.sha256}",
                }
        return clean_environment(path, extra)

    def _line(self, line: str, step: Step) -> None:
        match = _NINJA_LINE.match(line)
        if match:
            if self._unused:
                # Before anything is compiled, and with the marker left: CMake says it only once for a build folder.
                raise self._unknown_options()
            if self._in_unused or self._marker.exists():
                self._marker.unlink(missing_ok=True)
            self._in_unused = False
            self.steps = int(match[1])
            if unit := _COMPILE_STEP.match(match[3]):
                self.units.add(unit[1])
            step.update(int(match[1]), int(match[2]), match[3].rsplit("/", 1)[-1][:40])
            return
        if line.startswith("forkyard-wheel: "):
            self._wheel = line.removeprefix("forkyard-wheel: ")
        elif "Manually-specified variables were not used by the project" in line:
            self._in_unused = True
        elif self._in_unused and (unused := _UNUSED.match(line)):
            self._unused.append(unused[1])
        elif self._in_unused and line.strip():
            self._in_unused = False
        if line.startswith("CMake Error"):
            self._in_cmake_error = True
        elif line and not line.startswith(" "):
            self._in_cmake_error = False
        if (self._in_cmake_error and line) or says_why(line):
            self._failed.append(line)
        self._tail = [*self._tail[-_FAILED_LINES:], line]

    def _unknown_options(self) -> ForkyardError:
        names = [name for name in self._unused if not name.startswith("FORKYARD_")]
        recipe = self._plan.recipe
        first = names[0] if names else self._unused[0]
        return BuildError(
            f"{recipe.name} does not know the CMake option{'s' if len(names) > 1 else ''} {', '.join(names)}",
            where=recipe.location_of("build", "options", first),
            why="CMake says that nothing used it; upstream may have renamed or removed it",
            next_step=f"correct the recipe or variants.toml (log: {self._log})",
        )

    def _failure(self, status: int, log: Path, out: Path) -> ForkyardError:
        shown = first_errors(self._failed) or self._tail[-6:]
        lines = self._failed + self._tail
        doing = f"build {self._plan.distribution}"
        if (full := self._cache.out_of_room(doing, shown[-1] if shown else f"see {log}")) is not None:
            return full
        if (number := storage_errno(lines)) is not None:
            known = storage_error(OSError(number, os.strerror(number), str(out)), doing)
            if known is not None:
                return known
        why = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        next_step = (
            "look at the log's first error; running again continues where it stopped, "
            "and after `forkyard clean builds` it starts afresh"
        )
        if (cause := known_cause(lines, status, self._jobs, self._plan.toolchain.version)) is not None:
            why, next_step = cause.why, cause.next_step
        return BuildError(
            f"building {self._plan.distribution} failed",
            where=f"log: {log}",
            why=why + "".join(f"\n         {line[:300]}" for line in shown),
            next_step=next_step,
        )

    def ccache_use(self, scratch: Path) -> dict[str, int] | None:
        """Hits and misses of the build, from ccache's own log in the folder given to :meth:`run`."""
        statistics = scratch / _STATISTICS
        if self._launcher is None or not statistics.is_file():
            return None
        words = statistics.read_text(errors="replace").split()
        return {
            "hits": words.count("direct_cache_hit") + words.count("preprocessed_cache_hit"),
            "misses": words.count("cache_miss"),
        }
