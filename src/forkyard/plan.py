"""What a build would do, decided completely before anything is done; and its key: same key, same bytes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forkyard.cache import Cache
from forkyard.errors import RecipeError, ToolchainError
from forkyard.network import without_secrets
from forkyard.recipes import (
    GitSource,
    Recipe,
    RegistrySource,
    ResolvedVariant,
    Variants,
    configure_options,
    for_architectures,
    load_absent,
    resolve,
)
from forkyard.sources import Obtained, recorded
from forkyard.stacks import Stack, load_stacks
from forkyard.stacks.combining import at_home, missing_homes
from forkyard.toolchain import Toolchain, native_features
from forkyard.toolkits import ChosenToolkit, choose, compiler_for
from forkyard.trees import pin_label

KEY_SCHEMA = 1
# Tools from the registry that take part in a build: their versions are part of the key.
_BUILD_TOOLS = ("cmake", "ninja", "scikit-build-core", "libclang", "auditwheel")


@dataclass(frozen=True)
class Plan:
    """One payload to be built."""

    recipe: Recipe
    variant: ResolvedVariant
    stacks: tuple[Stack, ...]
    toolchain: Toolchain
    options: dict[str, str]
    """CMake options for the engine, all of them."""
    c_flags: tuple[str, ...]
    cxx_flags: tuple[str, ...]
    cpu_flags: tuple[str, ...]
    """Compile flags of the engine's CPU target alone."""
    workspace: str
    inputs: dict[str, Any]
    """Everything the key is computed from."""
    toolkit: ChosenToolkit | None = None
    """What the backend's code is compiled with, of a variant for GPUs; or all, of one for another machine."""
    usual: tuple[Stack, ...] | None = None
    """The recipe's own stacks, where those chosen are others and have to be carried over from where they are exact."""

    @property
    def key(self) -> str:
        """sha256 over everything that can change the wheel's bytes."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()

    @property
    def tools(self) -> tuple[str, ...]:
        """CMake targets of the tools that it carries, the recipe's first."""
        build = self.recipe.build
        return build.tools + tuple(build.tool_names.get(name, name) for name in self.variant.tools)

    @property
    def libraries(self) -> tuple[str, ...]:
        """CMake targets of the libraries that it always carries; the beginning of a series may not have its own yet."""
        whole = (stack for stack in self.stacks if stack.limit is None)
        return (*self.recipe.build.libraries, *(name for stack in whole for name in stack.about.libraries))

    @property
    def patches(self) -> list[tuple[str, list[str]]]:
        """Each stack's name and the file names of its patches, in order."""
        return [(stack["name"], [name for name, _ in stack["patches"]]) for stack in self.inputs["stacks"]]

    @property
    def slug(self) -> str:
        """The recipe's name as it appears in distribution names."""
        return _normalised(self.recipe.name)

    @property
    def distribution(self) -> str:
        """Name of the payload's distribution."""
        return f"forkyard-{self.slug}-{_normalised(self.variant.name)}"

    @property
    def package(self) -> str:
        """Name of the payload's import package: the one folder that holds all its files."""
        return self.distribution.replace("-", "_")

    @property
    def loadable(self) -> bool:
        """Whether the CPU library is loaded as a backend, and not linked to the others."""
        return self.options.get("GGML_BACKEND_DL") == "ON"

    def cpu_library(self, member: str) -> str:
        """Path in the package of the CPU library of a member of the variant.

        Where the engine searches for backends, beside its tools, each has a name of its own. Linked ones have one name,
        by which the others need it, and a folder of their own; the first lies among the others.
        """
        target, suffix = self.recipe.build.cpu_target, f"{self.slug}-{self.variant.name}"
        if self.loadable:
            return f"bin/lib{target}-{member}-{suffix}.so"
        folder = "lib" if member == self.variant.members[0].name else f"lib/{member}"
        return f"{folder}/lib{target}-{suffix}.so"

    @property
    def module(self) -> str | None:
        """Path in the package of the backend's library, where the engine loads it: by the name that it searches for."""
        return f"bin/lib{self.variant.module}.so" if self.variant.module else None

    @property
    def label(self) -> str:
        """What the build calls its commit."""
        return pin_label(self.recipe, self.stacks)

    def version(self, date: str) -> str:
        """The payload's version: the pin's date, then what makes it unique."""
        year, month, day = (int(part) for part in date.split("-"))
        return f"{year}.{month}.{day}+g{self.recipe.pin.commit[:9]}.k{self.key[:12]}"

    def as_json(self, cache: Cache) -> dict[str, Any]:
        """The plan for people and machines."""
        obtained = recorded(self.recipe, cache)
        return {
            "recipe": self.recipe.name,
            "recipe_file": str(self.recipe.path),
            "family": self.recipe.family,
            "variant": self.variant.name,
            "distribution": self.distribution,
            "key": self.key,
            "pin": self.recipe.pin.model_dump(mode="json"),
            "source": f"{obtained.kind}: {obtained.location} (in the cache)" if obtained else "to be fetched",
            "sources": [
                _without_secrets(source.model_dump(mode="json", exclude_none=True)) for source in self.recipe.sources
            ],
            "stacks": [
                {
                    "name": stack.name,
                    "title": stack.about.title,
                    "patches": [p.name for p in stack.series(self.recipe.series).patches],
                }
                for stack in self.stacks
            ],
            "cpu_features": list(self.variant.features),
            "cmake_options": self.options,
            "c_flags": list(self.c_flags),
            "cxx_flags": list(self.cxx_flags),
            "cpu_target": self.recipe.build.cpu_target,
            "cpu_flags": list(self.cpu_flags),
            "members": [
                {"name": one.name, "cpu_features": list(one.features), "cpu_flags": list(one.flags)}
                for one in self.variant.members
            ],
            "toolchain": self.toolchain.as_json(),
            "toolkit": dict(self.toolkit.identity) if self.toolkit else None,
            "requires": list(self.variant.backend.requires) if self.variant.backend else [],
            "tools": list(self.tools),
            "folders": {
                "tree": str(cache.tree(self.workspace)),
                "build": str(cache.build(self.workspace, self.variant.name)),
            },
        }


def _normalised(name: str) -> str:
    """A name as package registries compare them: file names of wheels are made from this form."""
    return re.sub(r"[-._]+", "-", name).strip("-").lower()


def origin_of(recipe: Recipe) -> dict[str, str]:
    """Where the pin lives for everybody; the mirror that happened to deliver it leaves no trace in the bytes."""
    for source in recipe.sources:
        if isinstance(source, GitSource):
            return {"kind": "git", "location": without_secrets(source.url)}
    first = recipe.sources[0]
    location = f"{first.project}=={first.version}" if isinstance(first, RegistrySource) else recipe.name
    return {"kind": first.kind, "location": location}


def workspace_of(recipe: Recipe, root: Path) -> str:
    """Folder name for a recipe in the cache; recipes outside the project cannot collide with those in it."""
    if recipe.path.parent.resolve() == (root / "recipes").resolve():
        return recipe.name
    return f"{recipe.name}-{hashlib.sha256(str(recipe.path.resolve()).encode()).hexdigest()[:10]}"


def make_plan(
    recipe: Recipe,
    variants: Variants,
    variant: str,
    root: Path,
    toolchain: Toolchain,
    *,
    stacks: Sequence[str] | Sequence[Stack] | None = None,
    architectures: Sequence[str] = (),
) -> Plan:
    """Decide everything about one payload. Reads files and asks the compiler; fetches and builds nothing.

    Args:
        stacks: instead of the recipe's own: names, or stacks as they are, say the beginning of a series.
        architectures: GPU architectures instead of the variant's own.

    Raises:
        RecipeError: names that lead nowhere, or options that contradict each other.
        ToolchainError: the compiler does not answer.
    """
    host = native_features(toolchain) if variants.get(variant).native else None
    resolved = resolve(variants, variant, recipe.family, host)
    if architectures:
        resolved = for_architectures(resolved, architectures)
    backend, toolkit = resolved.backend, None
    target = resolved.target
    if (kit := backend or target) is not None and kit.toolkit is not None and resolved.toolkit is not None:
        toolkit = choose(kit.toolkit, resolved.toolkit, backend, toolchain, Cache.default())
        if target is not None:
            toolchain = compiler_for(target, toolkit)
    chosen = _chosen(recipe, root, stacks)
    usual = None if stacks is None or not chosen else _usual(recipe, root, chosen)
    options = configure_options(recipe, resolved)
    if "GGML_OPENMP" in options and options["GGML_OPENMP"] == "ON" and toolchain.openmp is None:
        msg = "the compiler has no OpenMP library to put into the wheel"
        raise RecipeError(
            msg,
            where=recipe.location_of("build", "options", "GGML_OPENMP"),
            next_step=f"install it: {toolchain.openmp_remedy}; or set GGML_OPENMP = false in the recipe",
        )
    cxx_flags = tuple(recipe.build.cxx_flags)
    if toolchain.family == "gcc":
        # STB_GNU_UNIQUE symbols are shared across a whole process even between libraries loaded privately,
        # so two engines with inline statics of one name would use each other's.
        cxx_flags += ("-fno-gnu-unique",)
    inputs: dict[str, Any] = {
        "schema": KEY_SCHEMA,
        "recipe": {
            "name": recipe.name,
            "title": recipe.title,
            "family": recipe.family,
            "build": recipe.build.model_dump(mode="json"),
        },
        "pin": recipe.pin.model_dump(mode="json"),
        "origin": origin_of(recipe),
        "absent": _absent_digest(recipe),
        "stacks": [_stack_digest(stack, recipe.series) for stack in chosen],
        "variant": {
            "name": resolved.name,
            "title": resolved.title,
            "features": list(resolved.features),
            "rank": resolved.rank,
            "kind": resolved.kind,
            "hardware": resolved.hardware,
            "flags": list(resolved.flags),
            "members": [
                [one.name, list(one.features), one.rank, list(one.flags), dict(one.borrows)] for one in resolved.members
            ],
            **(
                {
                    "module": resolved.module,
                    "drops": list(resolved.drops),
                    "cache_types": list(resolved.cache_types),
                    "tools": list(resolved.tools),
                    "headers": list(resolved.headers),
                }
                if resolved.backend
                else {}
            ),
        },
        "options": options,
        "c_flags": list(recipe.build.c_flags),
        "cxx_flags": list(cxx_flags),
        "toolchain": {**toolchain.as_json(), "openmp": toolchain.openmp.name if toolchain.openmp else None},
        **({"toolkit": dict(toolkit.identity)} if toolkit else {}),
        **({"target": target.model_dump(mode="json")} if target else {}),
        **({"backend": backend.model_dump(mode="json", include=_BACKEND_KEY)} if backend else {}),
        # Python's zlib decides how the wheel's entries are compressed.
        "build_tools": _build_tools(),
        "logic": logic_digest(root),
    }
    if usual is not None:
        # What a patch is carried over from decides what it becomes.
        inputs["homes"] = {
            "stacks": [_stack_digest(stack, recipe.series) for stack in missing_homes(usual, chosen)],
            "logic": _combining_digest(),
        }
    return Plan(
        recipe=recipe,
        variant=resolved,
        stacks=tuple(chosen),
        toolchain=toolchain,
        options=options,
        c_flags=tuple(recipe.build.c_flags),
        cxx_flags=cxx_flags,
        cpu_flags=tuple(resolved.flags),
        workspace=workspace_of(recipe, root),
        inputs=inputs,
        toolkit=toolkit,
        usual=usual,
    )


# What of a backend decides bytes: architectures are among the options.
_BACKEND_KEY = {"remote", "requires", "libraries", "library_folders", "driver"}


@functools.lru_cache(maxsize=1)
def _build_tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _BUILD_TOOLS} | {"zlib": zlib.ZLIB_RUNTIME_VERSION}


def _chosen(recipe: Recipe, root: Path, stacks: Sequence[str] | Sequence[Stack] | None) -> list[Stack]:
    made = [stack for stack in stacks or () if isinstance(stack, Stack)]
    names = recipe.stacks if stacks is None else [name for name in stacks if isinstance(name, str)]
    return made or load_stacks(root, names, recipe.series)


def _usual(recipe: Recipe, root: Path, chosen: Sequence[Stack]) -> tuple[Stack, ...] | None:
    usual = load_stacks(root, recipe.stacks, recipe.series)
    return None if at_home(usual, chosen) else tuple(usual)


def _without_secrets(source: dict[str, Any]) -> dict[str, Any]:
    return {key: without_secrets(value) if key == "url" else value for key, value in source.items()}


def check_obtained(plan: Plan, obtained: Obtained) -> None:
    """Refuse an obtained pin that is not the plan's."""
    if obtained.commit != plan.recipe.pin.commit:
        msg = "the obtained pin is another one than the plan's"
        raise RecipeError(msg, where=plan.recipe.location_of("pin"))


def check_tools(plan: Plan) -> None:
    """Refuse what cannot compile the variant, before anything is fetched.

    Raises:
        ToolchainError: saying what would.
    """
    _check_compiler(plan)
    if plan.toolkit is not None:
        plan.toolkit.check()


def _check_compiler(plan: Plan) -> None:
    """Refuse a compiler that is too old for the variant."""
    kind, major = plan.toolchain.family, plan.toolchain.major
    wanted = {feature: needs[kind] for feature, needs in plan.variant.compilers.items() if kind in needs}
    newest = max(wanted.values(), default=0)
    if major is not None and major < newest:
        lacking = [feature for feature, needed in wanted.items() if needed > major]
        msg = f"{kind} {major} is too old for the variant {plan.variant.name}: it takes {kind} {newest} or newer"
        raise ToolchainError(
            msg,
            where=f"{plan.toolchain.cxx}: {plan.toolchain.version}",
            why=f"it does not know {', '.join(lacking)}",
            next_step="install a newer one and set CC and CXX to it, or build a variant that needs less"
            " (`forkyard build best` chooses one)",
        )


def _absent_digest(recipe: Recipe) -> str:
    whole = hashlib.sha256()
    for source in recipe.sources:
        if isinstance(source, RegistrySource):
            for entry in load_absent(recipe, source):
                whole.update(f"{entry.mode} {entry.id} {entry.path}\n".encode())
    return whole.hexdigest()


def _stack_digest(stack: Stack, engine: str) -> dict[str, Any]:
    files = sorted(path for path in stack.src.rglob("*") if path.is_file()) if stack.src.is_dir() else []
    patches = stack.series(engine).patches
    if stack.limit is not None and len(patches) < len(replace(stack, limit=None).series(engine).patches):
        # A later patch's file is not part of what is built.
        declared = [added_sources(patch.data) for patch in patches]
        if None not in declared:
            wanted = {stack.src / name for names in declared for name in names or ()}
            files = [path for path in files if path in wanted]
    return {
        "name": stack.name,
        "title": stack.about.title,
        "capability": stack.about.capability,
        "headers": list(stack.about.headers),
        "libraries": list(stack.about.libraries),
        "patches": [[patch.name, patch.sha256] for patch in patches],
        "files": [
            [
                path.relative_to(stack.src).as_posix(),
                hashlib.sha256(path.read_bytes()).hexdigest(),
                bool(path.stat().st_mode & 0o100),
            ]
            for path in files
        ],
    }


def added_sources(data: bytes) -> list[str] | None:
    """Whole files a patch may add, by path below ``src``, told without git; ``None`` if its message is encoded."""
    message = re.split(rb"^(?:---|diff --git )", data, maxsplit=1, flags=re.MULTILINE)[0]
    if re.search(rb"^Content-Transfer-Encoding:(?! *(?:8bit|7bit) *$)", message, re.MULTILINE | re.IGNORECASE):
        return None
    values = re.findall(rb"^[ \t]*Adds-Files: (.*)$", message, re.MULTILINE)
    return [value.decode("utf-8", "surrogateescape").partition("->")[0].strip() for value in values]


@functools.lru_cache(maxsize=1)
def _combining_digest() -> str:
    source = Path(__file__).parent / "stacks" / "combining.py"
    return hashlib.sha256(source.read_bytes()).hexdigest()


_DECIDING = ("building", "manifest", "packing", "process", "project", "runner", "sbom", "toolkits", "trees")


@functools.lru_cache(maxsize=4)
def logic_digest(root: Path) -> str:
    """Digest of our own code and templates that decide a wheel's content."""
    here = Path(__file__).parent
    files = [
        *(root / "wheels").glob("*.j2"),
        *(here / "abi").rglob("*"),
        *(here / "gates").rglob("*"),
        *(here / f"{name}.py" for name in _DECIDING),
    ]
    named = {
        path.relative_to(here if path.is_relative_to(here) else root): path
        for path in files
        if path.is_file() and path.suffix != ".pyc"
    }
    whole = hashlib.sha256()
    # By the names that go in: where the project lies beside forkyard must not matter.
    for name, path in sorted(named.items()):
        whole.update(f"{name.as_posix()}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()
