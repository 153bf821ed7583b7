"""Building the engine before and after: upstream as it is, and the same commit with the branch's changes."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from forkyard_llm.measuring.finding import unpack

from forkyard.building import Built, build
from forkyard.cache import Cache, explained, publish
from forkyard.console import Reporter
from forkyard.errors import ForkyardError
from forkyard.places import expanded
from forkyard.plan import Plan, make_plan
from forkyard.pullrequest.evidence.model import FAIL, PASS, Evidence, Ledger, key_of, not_run
from forkyard.recipes import LocalSource, Recipe, Variants
from forkyard.scratch import owned_folder
from forkyard.stacks import Stack
from forkyard.stacks.exporting import Exported
from forkyard.toolchain import Toolchain

BEFORE, AFTER = "before", "after"
SIDES = (BEFORE, AFTER)
TITLES = {BEFORE: "Build of upstream as it is", AFTER: "Build of the branch"}
BACKEND_OPS = "test-backend-ops"


@dataclass(frozen=True)
class Engine:
    """A built engine, unpacked in the evidence folder."""

    side: str
    key: str
    """The payload's build key."""
    package: Path
    """Its package folder."""
    wheel: Path
    variant: str

    def tool(self, name: str) -> Path:
        """A command line tool of it."""
        return self.package / "bin" / name


def derived_recipe(target: Recipe, *, backend_ops: bool, source: str | None) -> Recipe:
    """The recipe of the two builds.

    Args:
        backend_ops: build upstream's test of operators as well.
        source: where the target came from, for a recipe that has no source left.
    """
    build_table = target.build
    if backend_ops and BACKEND_OPS not in build_table.tools:
        build_table = build_table.model_copy(
            update={
                "tools": (*build_table.tools, BACKEND_OPS),
                "options": {**build_table.options, "LLAMA_BUILD_TESTS": True},
            }
        )
    sources = target.sources
    if not sources and source is not None:
        sources = (LocalSource(kind="local", path=str(expanded(source).absolute())),)
    derived = target.model_copy(update={"build": build_table, "sources": sources})
    # There is no such file: its lock is nobody's, its work tree and build folder are its own, and what the recipe names
    # relative to its folder is still found.
    derived._path = target.path.with_name(f"{target.path.stem}.pull-request.toml")
    return derived


@contextlib.contextmanager
def derived_project(
    root: Path, cache: Cache, family: str, series: Mapping[str, tuple[Stack, Exported]]
) -> Iterator[Path]:
    """A project folder whose stacks are the branch's, exact at the target; for the length of the block.

    Args:
        series: stack name -> the stack, and its patches as exported at the target.
    """
    with owned_folder(cache.scratch, "pr-") as folder:
        shutil.copytree(root / "wheels", folder / "wheels")
        (folder / "patches").mkdir()
        chosen: list[str] = []
        for order, (name, (stack, exported)) in enumerate(series.items()):
            place = folder / "patches" / name
            (place / family).mkdir(parents=True)
            (place / family / "series").write_text("".join(f"{patch.name}\n" for patch in exported.patches))
            for patch in exported.patches:
                (place / family / patch.name).write_bytes(patch.data)
            for path, (data, executable) in exported.files.items():
                target = place / "src" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(0o755 if executable else 0o644)
            (place / "stack.toml").write_text(_about(stack, family, chosen, order), encoding="utf-8")
            chosen.append(name)
        yield folder


def _about(stack: Stack, family: str, requires: list[str], order: int) -> str:
    """A stack.toml without what only the project's own needs (what it answers, how it is tested)."""
    facts = {
        "title": stack.about.title,
        "intent": stack.about.intent,
        "engines": [family],
        "requires": requires,
        **({"capability": stack.about.capability} if stack.about.capability else {}),
        "since": stack.about.since,
        "order": order,
    }
    # A JSON string without escaped surrogates is a TOML string.
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in facts.items())


@dataclass(frozen=True)
class BuildSetting:
    """What both builds have in common."""

    recipe: Recipe
    variants: Variants
    variant: str
    toolchain: Toolchain
    cache: Cache
    out: Path
    """The evidence folder."""
    beneath: tuple[str, ...]
    """Stacks the branch stands on: part of the build before, too."""
    stacks: tuple[str, ...]
    """All stacks of the build after, in order."""
    offline: bool
    jobs: int | None
    use_ccache: bool

    def plan(self, side: str, project: Path) -> Plan:
        """The plan of one of the two builds."""
        chosen = self.beneath if side == BEFORE else self.stacks
        recipe = self.recipe.model_copy(update={"stacks": chosen})
        return make_plan(recipe, self.variants, self.variant, project, self.toolchain)


def gather_builds(
    setting: BuildSetting, project: Path, ledger: Ledger, reporter: Reporter
) -> tuple[list[Evidence], dict[str, Engine]]:
    """Build both; what fails does not keep the other from being built."""
    pieces: list[Evidence] = []
    engines: dict[str, Engine] = {}
    for side in SIDES:
        piece, engine = _gather(setting, side, project, ledger, reporter)
        pieces.append(piece)
        if engine is not None:
            engines[side] = engine
    return pieces, engines


def _gather(
    setting: BuildSetting, side: str, project: Path, ledger: Ledger, reporter: Reporter
) -> tuple[Evidence, Engine | None]:
    name, started = f"build-{side}", time.perf_counter()
    command = (
        f"forkyard build {setting.variant} (recipe {setting.recipe.name} at {setting.recipe.pin.commit}, stacks: "
        f"{', '.join(setting.beneath if side == BEFORE else setting.stacks) or 'none'}, "
        f"tools: {' '.join(setting.recipe.build.tools)})"
    )
    log = setting.out / "logs" / f"{name}.log"
    plan: Plan | None = None
    built: Built | None = None
    try:
        plan = setting.plan(side, project)
        reporter.note(f"{TITLES[side]}: {setting.variant}")
        wheels = setting.out / "wheels" / side
        built = build(
            plan,
            setting.cache,
            wheels,
            project,
            reporter,
            offline=setting.offline,
            jobs=setting.jobs,
            use_ccache=setting.use_ccache,
        )
        package = _unpacked(built.wheel, setting.out / "engines" / side, plan.package)
        failure = None
    except ForkyardError as error:
        if error.kind not in ("build", "gate", "patch"):
            # A full disk or a missing compiler says nothing about the branch.
            raise
        failure = error
    said = setting.cache.logs / f"{plan.workspace}-{setting.variant}.log" if plan is not None else None
    if said is not None and said.is_file() and (failure is not None or (built is not None and built.fresh)):
        publish(said, log)
    logs = (log.relative_to(setting.out).as_posix(),) if log.is_file() else ()
    seconds = time.perf_counter() - started
    if failure is not None or plan is None or built is None:
        assert failure is not None
        why = failure.describe().splitlines()
        piece = Evidence(
            name, TITLES[side], FAIL, " ".join(line.strip() for line in why)[:600], (command,), logs, seconds
        )
        return ledger.keep(piece), None
    data = {"wheel": built.wheel.name, "sha256": built.sha256, "build_key": built.key, "variant": setting.variant}
    reason = "built and passed the wheel's gates" + ("" if built.fresh else ", by an earlier run with the same key")
    piece = Evidence(
        name, TITLES[side], PASS, reason, (command,), logs, seconds, data, key_of(built.key), reused=not built.fresh
    )
    return ledger.keep(piece), Engine(side, built.key, package, built.wheel, setting.variant)


def _unpacked(wheel: Path, folder: Path, package: str) -> Path:
    """Unpack a wheel as an installer does, unless that was done to its end before."""
    stamp = folder / "unpacked"
    with explained("unpack the engine"):
        if stamp.is_file() and stamp.read_text() == wheel.name:
            return folder / package
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = unpack(wheel, folder)
        stamp.write_text(wheel.name)
    return found


def missing_engine(
    name: str, title: str, engines: Mapping[str, Engine], sides: tuple[str, ...] = SIDES
) -> Evidence | None:
    """Evidence that cannot be gathered because an engine was not built; ``None`` if all are there."""
    lacking = [side for side in sides if side not in engines]
    return not_run(name, title, f"there is no build {' and '.join(lacking)}") if lacking else None
