"""What a variants file may say, and what a variant means for one engine: its CMake options and compile flags.

Five tables, so that each fact is written once:

- ``[features.NAME]``: an instruction set as /proc/cpuinfo names it, with the compiler flags that allow it and
  the names the disassembler gives its instructions;
- ``[engines.FAMILY]``: upstream's CMake options, each with the features its ON state lets the compiler use;
- ``[toolkits.NAME]``: what a GPU backend, or all code for another machine, is compiled with, and where that comes from;
- ``[targets.NAME]``: a machine other than x86-64;
- ``[variants.NAME]``: a set of features, or a GPU backend.

:func:`resolve` derives the rest: an engine's option is ON exactly if every feature behind it is in the
variant, and what no option covers becomes an extra flag for the engine's CPU target.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, StringConstraints, model_validator

from forkyard.errors import RecipeError
from forkyard.recipes.model import (
    Family,
    Guarded,
    InstructionSet,
    KeyPath,
    Line,
    Lines,
    Name,
    Names,
    OptionName,
    Options,
    OptionValue,
    Recipe,
    RelativePath,
    RelativePaths,
    Sha256,
    Table,
    locate,
    to_tuple,
    unique,
)
from forkyard.recipes.suggest import did_you_mean
from forkyard.recipes.validation import Problem

FeatureName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]*$")]
FeatureNames: TypeAlias = Annotated[tuple[FeatureName, ...], BeforeValidator(to_tuple), AfterValidator(unique)]
InstructionSets: TypeAlias = Annotated[tuple[InstructionSet, ...], BeforeValidator(to_tuple), AfterValidator(unique)]


CompilerKind: TypeAlias = Literal["gcc", "clang"]
PackageManager: TypeAlias = Literal["apt", "dnf", "pacman", "zypper", "apk"]

X86_64 = "x86_64"
"""The machine of variants without a target."""
BEST = "best"
"""Asked for instead of a variant's name: the best one for this machine, see :func:`best`."""


class Feature(Table):
    """One CPU feature, named as /proc/cpuinfo names it."""

    flags: Lines = Field(
        description="gcc and clang flags that let the compiler use it; for a target, what is added to its `cpu-flag`."
    )
    instruction_sets: InstructionSets = Field(
        description="Names the disassembler gives the CPU features of its instructions: iced_x86.CpuidFeature, or for "
        "64-bit ARM capstone's groups without Has."
    )
    compilers: dict[CompilerKind, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="First major version of each compiler that knows the flags."
    )


class EngineIsa(Table):
    """How one engine family spells instruction sets."""

    native: OptionName = Field(description="CMake option that makes upstream compile for the build machine.")
    options: dict[OptionName, FeatureNames] = Field(
        description="Every ISA option upstream has for x86, with the features its ON state allows."
    )
    needs: FeatureNames = Field(default=(), description="CPU features without which the engine does not compile.")
    why: Line | None = Field(default=None, description="Why it needs them.")
    defaults: Options = Field(
        default_factory=dict, description="Options that some variants set, with their values in all others."
    )


class ToolkitPackage(Table):
    """A wheel of the package registry that holds a part of a toolkit."""

    project: Name
    version: Name
    sha256: Sha256 = Field(description="sha256 of the wheel: of several that the version has it names one.")


class SystemPart(Table):
    """Something that a toolkit takes from the system: a program, or a header."""

    program: Name | None = Field(default=None, description="A program on PATH.")
    header: RelativePath | None = Field(default=None, description="A header that the compiler finds.")
    least: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$")] | None = Field(
        default=None, description="Oldest version of the program that will do."
    )
    why: Line = Field(description="What it is for.")
    install: dict[PackageManager, Line] = Field(
        default_factory=dict, description="Package manager -> the names of the packages that have it."
    )

    @model_validator(mode="after")
    def _one_thing(self) -> SystemPart:
        if (self.program is None) == (self.header is None) or (self.least and self.header):
            msg = "names exactly one of `program` and `header`; `least` is a program's"
            raise ValueError(msg)
        return self


class Toolkit(Table):
    """What a backend, or all for a target, is compiled with: wheels of the registry, parts of the system, or both."""

    title: Line = Field(description="One line for people.")
    packages: Annotated[tuple[ToolkitPackage, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="Wheels that are unpacked over each other."
    )
    folder: RelativePath | None = Field(default=None, description="The toolkit's folder in what they unpack to.")
    proof: RelativePaths = Field(
        default=(), description="Files of that folder which an installed toolkit must have, too; they identify it."
    )
    system: Annotated[tuple[SystemPart, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="What the system must have."
    )
    options: Options = Field(
        default_factory=dict,
        description="CMake options; {root} stands for the toolkit's folder, {lib} for that of its libraries.",
    )
    languages: Names = Field(default=(), description="CMake's names of the languages that its compilers are for.")

    @property
    def replaceable(self) -> bool:
        """Whether a toolkit that is installed on the machine can stand in for the registry's."""
        return bool(self.packages and self.proof)


class TargetEngine(Table):
    """How one engine family is built for a target."""

    unsupported: Line | None = Field(default=None, description="Why it is not built for it.")
    needs: FeatureNames = Field(default=(), description="CPU features without which the engine does not compile.")
    why: Line | None = Field(default=None, description="Why it needs them.")
    score: RelativePath | None = Field(
        default=None,
        description="Source, in the engine's tree, of the recipe's `cpu-score-target`, which the engine has not.",
    )
    score_definitions: dict[OptionName, FeatureNames] = Field(
        default_factory=dict, description="Definitions it is compiled with, each with the features it stands for."
    )


class Target(Table):
    """A machine other than x86-64, which all is compiled for by a toolkit with a C and C++ compiler of its own."""

    title: Line = Field(description="What people call it.")
    toolkit: Name = Field(description="Zig, as the registry has it.")
    triple: Name = Field(description="What the compiler calls it.")
    glibc: Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+$")] = Field(
        description="Oldest version of the C library that will do."
    )
    cpu_flag: Line = Field(description="Compile flag for the CPU, to which the flags of features are added.")
    options: Options = Field(default_factory=dict, description="CMake options instead of the recipe's.")
    guarded: Annotated[tuple[Guarded, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="Code of the carried C++ library that asks the CPU first."
    )
    engines: dict[Family, TargetEngine] = Field(default_factory=dict)


class Backend(Table):
    """What makes a variant one for GPUs, or for devices of other machines."""

    toolkit: Name | None = Field(
        default=None, description="What its code is compiled with, if that is not the compiler of all else."
    )
    remote: bool = Field(default=False, description="It computes on devices of other machines, and on no GPU of this.")
    architectures: Names = Field(default=(), description="GPU architectures, as the toolkit's compiler names them.")
    architectures_option: OptionName | None = Field(default=None, description="CMake option that takes them.")
    requires: Lines = Field(default=(), description="Python distributions with the libraries it needs at run time.")
    libraries: Lines = Field(
        default=(), description="Sonames of libraries that it needs and that are not in the wheel."
    )
    library_folders: RelativePaths = Field(
        default=(), description="Folders of `requires`, beside the payload's package, in which they are found."
    )
    driver: Line | None = Field(default=None, description="Soname of a library that is there where its driver is.")
    unit_mib: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Memory that the largest compile of its code takes, MiB."
    )
    ccache: Annotated[str, StringConstraints(pattern=r"^[0-9]+[MG]$")] | None = Field(
        default=None, description="Size limit of its own ccache folder."
    )

    @model_validator(mode="after")
    def _compiled_apart(self) -> Backend:
        if not (self.toolkit is None) == (self.unit_mib is None) == (self.ccache is None):
            msg = "`unit-mib` and `ccache` are for code that a `toolkit` compiles: give all three, or none"
            raise ValueError(msg)
        return self


class VariantEngine(Table):
    """What differs for one engine family in one variant."""

    unsupported: Line | None = Field(default=None, description="Why this engine has no such variant.")
    gains: Line | None = Field(default=None, description="What the variant gives this engine that those below lack.")
    options: Options = Field(default_factory=dict, description="CMake options besides the derived ISA options.")
    flags: Lines = Field(default=(), description="Compile flags besides the derived ones, for the CPU target.")
    members: Names = Field(default=(), description="Instead of the variant's members.")
    module: Name | None = Field(
        default=None, description="CMake target of the backend's library, where the engine loads it by its path."
    )
    tools: Names = Field(default=(), description="CMake targets of tools besides the recipe's.")
    headers: RelativePaths = Field(default=(), description="Headers that the bindings need besides the recipe's.")
    architectures: Names = Field(default=(), description="GPU architectures instead of the backend's.")
    cache_types: Names = Field(default=(), description="KV cache types whose attention the GPU computes, all of them.")
    drops: Lines = Field(
        default=(), description="Flags that upstream gives the backend's target, and which are left out."
    )
    borrows: dict[Name, Lines] = Field(
        default_factory=dict,
        description="A lower variant -> parts of paths of sources that ask for nothing this variant adds to it: in a "
        "wheel that carries both they are compiled once.",
    )


class Variant(Table):
    """One build of an engine for one class of CPUs."""

    title: Line = Field(description="One line for people.")
    kind: Literal["isa", "cpu", "backend"] = Field(
        description="What the variant is about: one instruction set, several of which one is chosen at load, or a GPU."
    )
    target: Name | None = Field(default=None, description="The machine it is for, if that is not x86-64.")
    members: Names = Field(default=(), description="The variants whose CPU libraries it carries.")
    backend: Backend | None = Field(default=None, description="What a `backend` variant is compiled with.")
    extends: Name | None = Field(default=None, description="Variant whose features, or members, this one has, too.")
    native: bool = Field(default=False, description="Compile for the build machine: its features are the variant's.")
    features: FeatureNames = Field(default=(), description="CPU features the variant adds; all are required to run.")
    proof: FeatureNames = Field(
        default=(),
        description="Features of which the built CPU library must hold at least one instruction each.",
    )
    rank: Annotated[int, Field(ge=0, le=1000)] = Field(description="Higher is preferred when the CPU can run it.")
    hardware: Line = Field(default="compiled only", description="What the variant was run on.")
    engines: dict[Family, VariantEngine] = Field(default_factory=dict)


class Variants(Table):
    """The whole of a variants file, or several merged."""

    schema_: Literal[1] = Field(alias="schema", description="Version of this file format.")
    features: dict[FeatureName, Feature] = Field(default_factory=dict)
    engines: dict[Family, EngineIsa] = Field(default_factory=dict)
    toolkits: dict[Name, Toolkit] = Field(default_factory=dict)
    targets: dict[Name, Target] = Field(
        default_factory=dict, description="Machines other than x86-64, named as `uname -m` names them."
    )
    variants: dict[Name, Variant] = Field(default_factory=dict)

    _places: Mapping[KeyPath, tuple[Path, int]] = PrivateAttr(default_factory=dict)
    _path: Path = PrivateAttr(default_factory=lambda: Path("<variants>"))

    def location_of(self, *key: str | int) -> str:
        """Return ``file:line`` of *key* or of the nearest enclosing table."""
        place: KeyPath = key
        while place:
            if place in self._places:
                path, line = self._places[place]
                return f"{path}:{line}"
            place = place[:-1]
        return locate(self._path, {}, ())

    def get(self, name: str) -> Variant:
        """Return the variant called *name*; raises :class:`RecipeError` if there is none."""
        if name not in self.variants:
            raise RecipeError(
                f"there is no variant {name!r}",
                where=str(self._path),
                why=f"known variants: {', '.join(sorted(self.variants))}",
                next_step=did_you_mean(name, self.variants) or "use one of those, or define it in a variants file",
            )
        return self.variants[name]

    def features_of(self, name: str) -> frozenset[str]:
        """Return every feature of variant *name*, inherited ones too; none of the host's for a native one."""
        return frozenset(feature for step in _lineage(self, name) for feature in self.get(step).features)

    def target_of(self, name: str) -> str | None:
        """Return the target of variant *name*, of its own or inherited; None if it is for x86-64."""
        return next((target for step in _lineage(self, name) if (target := self.get(step).target)), None)


@dataclass(frozen=True)
class Member:
    """One of the instruction sets of a variant that carries several."""

    name: str
    features: tuple[str, ...]
    """As :attr:`ResolvedVariant.features`."""
    rank: int
    flags: tuple[str, ...]
    """Compile flags besides the variant's own."""
    options: tuple[str, ...]
    """The engine's ISA options that would be ON in a variant of this instruction set alone; for a target, its score
    definitions."""
    instruction_sets: frozenset[str]
    proof: Mapping[str, frozenset[str]]
    borrows: Mapping[str, tuple[str, ...]]
    """Another member -> parts of paths of sources whose objects are taken from it."""


@dataclass(frozen=True)
class ResolvedVariant:
    """A variant as one engine is built for it."""

    name: str
    title: str
    family: str
    native: bool
    features: tuple[str, ...]
    """Sorted; as /proc/cpuinfo writes them; a CPU must have all of them."""
    rank: int
    kind: str
    hardware: str
    options: Mapping[str, OptionValue]
    """Every ISA option of the engine, explicitly ON or OFF, its native option, and the variant's own."""
    flags: tuple[str, ...]
    """Extra compile flags for the engine's CPU target: what its options do not turn on."""
    instruction_sets: frozenset[str]
    """The disassembler's names of what the code may use beside the machine's baseline."""
    proof: Mapping[str, frozenset[str]]
    """Feature -> the disassembler's names, one instruction of which must be in the CPU library."""
    compilers: Mapping[str, Mapping[CompilerKind, int]]
    """Feature -> compiler -> its first major version that knows the feature's flags; empty for a native variant."""
    members: tuple[Member, ...] = ()
    """Lowest rank first; the first is what the variant itself is compiled for."""
    backend: Backend | None = None
    toolkit: Toolkit | None = None
    """The backend's, or the target's."""
    machine: str = X86_64
    """As ``uname -m`` names it."""
    target: Target | None = None
    """How it is built for a machine that is not x86-64."""
    module: str | None = None
    """As :attr:`VariantEngine.module`."""
    tools: tuple[str, ...] = ()
    """As :attr:`VariantEngine.tools`."""
    headers: tuple[str, ...] = ()
    """As :attr:`VariantEngine.headers`."""
    drops: tuple[str, ...] = ()
    cache_types: tuple[str, ...] = ()
    """As :attr:`VariantEngine.cache_types`."""


def resolve(
    variants: Variants, name: str, family: str, host_features: Collection[str] | None = None
) -> ResolvedVariant:
    """Resolve variant *name* for engine *family*.

    Args:
        variants: what :func:`forkyard.recipes.load.load_variants` read.
        name: the variant.
        family: the engine family.
        host_features: the build machine's, as /proc/cpuinfo names them; only a native variant needs them.

    Raises:
        RecipeError: the variant or family is unknown, the engine does not have the variant, or a native
            variant is asked for without host features.
    """
    variant = variants.get(name)
    if family not in variants.engines:
        raise RecipeError(
            f"no ISA options are known for engine family {family!r}",
            where=variants.location_of("engines"),
            next_step=did_you_mean(family, variants.engines) or "add an [engines] table for it",
        )
    engine = variants.engines[family]
    own = _own(variant, family)
    machine = variants.target_of(name)
    target = variants.targets[machine] if machine else None
    lack = unsupported(variants, name, family)
    if lack is not None:
        raise RecipeError(
            f"variant {name!r} does not exist for {family}",
            where=variants.location_of("variants", name, "engines", family, "unsupported"),
            why=lack,
            next_step=f"choose one of: {', '.join(supported(variants, family))}",
        )
    members = _members(variants, name, family)
    features = set(variants.features_of(members[0] if members else name))
    proof_names = variants.get(members[0]).proof if members else variant.proof
    if variant.native:
        if host_features is None:
            raise RecipeError(
                f"variant {name!r} is compiled for the build machine, whose CPU features were not given",
                where=variants.location_of("variants", name),
            )
        features.update(f for f in host_features if f in variants.features)
        proof_names = proof_names or _best_proof(variants, family, features)
    options: dict[str, OptionValue] = {option: set(needed) <= features for option, needed in engine.options.items()}
    options[engine.native] = variant.native
    covered = {f for option, needed in engine.options.items() if options[option] for f in needed}
    # A native build gets everything from the compiler's own detection; flags would only repeat it.
    extra = [] if variant.native else [f for f in variants.features if f in features and f not in covered]
    flags = [flag for f in extra for flag in variants.features[f].flags]
    if target is not None:
        # Its compiler takes one flag for all of them.
        flags = [target.cpu_flag + "".join(dict.fromkeys(flags))]
    options.update({**engine.defaults, **own.options})
    sets = {f: frozenset(variants.features[f].instruction_sets) for f in features}
    return ResolvedVariant(
        name=name,
        title=variant.title,
        family=family,
        native=variant.native,
        features=tuple(sorted(features)),
        rank=variant.rank,
        kind=variant.kind,
        hardware=variant.hardware,
        options=dict(sorted(options.items())),
        flags=tuple(dict.fromkeys([*flags, *own.flags])),
        instruction_sets=frozenset().union(*sets.values()),
        proof={f: sets[f] for f in proof_names},
        # A compiler that detects the machine's features knows them.
        compilers={
            f: variants.features[f].compilers
            for f in sorted(features.union(*(variants.features_of(member) for member in members)))
            if not variant.native
        },
        members=tuple(_member(variants, member, name, family, features, members, engine) for member in members),
        backend=variant.backend.model_copy(update={"architectures": own.architectures or variant.backend.architectures})
        if variant.backend
        else None,
        toolkit=variants.toolkits[kit.toolkit] if (kit := variant.backend or target) and kit.toolkit else None,
        machine=machine or X86_64,
        target=target,
        module=own.module,
        tools=own.tools,
        headers=own.headers,
        drops=own.drops,
        cache_types=own.cache_types,
    )


def _members(variants: Variants, name: str, family: str) -> list[str]:
    """The members of a variant that an engine has, lowest rank first."""
    steps = [variants.get(step) for step in _lineage(variants, name)]
    lists = (members for step in steps for members in (_own(step, family).members, step.members))
    chosen = next((members for members in lists if members), ())
    return [n for n in reversed(supported(variants, family)) if n in chosen]


def _member(
    variants: Variants,
    name: str,
    owner: str,
    family: str,
    base: Collection[str],
    others: Collection[str],
    engine: EngineIsa,
) -> Member:
    alone = resolve(variants, name, family)
    more = set(alone.features) - set(base)
    flags = [flag for f, feature in variants.features.items() if f in more for flag in feature.flags]
    flags = list(dict.fromkeys([*flags, *_own(variants.get(name), family).flags]))
    options = [option for option in sorted(engine.options) if alone.options[option] is True]
    if alone.target is not None:
        flags = list(alone.flags)
        scores = _target_engine(alone.target, family).score_definitions
        options = [definition for definition, needed in scores.items() if set(needed) <= set(alone.features)]
    return Member(
        name=name,
        features=alone.features,
        rank=variants.get(owner).rank + alone.rank,
        flags=tuple(flags),
        options=tuple(options),
        instruction_sets=alone.instruction_sets,
        proof=alone.proof,
        borrows={
            lender: paths for lender, paths in _own(variants.get(name), family).borrows.items() if lender in others
        },
    )


def supported(variants: Variants, family: str) -> list[str]:
    """Return the names of the variants engine *family* has, highest rank first."""
    names = [name for name in variants.variants if unsupported(variants, name, family) is None]
    return sorted(names, key=lambda n: (-variants.variants[n].rank, n))


def unsupported(variants: Variants, name: str, family: str) -> str | None:
    """Why engine *family* has no variant *name*; None if it has it."""
    variant = variants.get(name)
    floor: EngineIsa | TargetEngine | None = next(
        (one for known, one in variants.engines.items() if known == family), None
    )
    machine = variants.target_of(name)
    if machine is not None:
        floor = _target_engine(variants.targets[machine], family)
        if floor.unsupported:
            return floor.unsupported
    # What several carry, or the machine has, is looked at one by one.
    if floor is not None and variant.kind == "isa" and not variant.native:
        lacking = set(floor.needs) - variants.features_of(name)
        if lacking:
            return floor.why or f"the engine needs {', '.join(sorted(lacking))}"
    return _own(variant, family).unsupported


@dataclass(frozen=True)
class Choice:
    """The best variant of one engine for one machine."""

    variant: str
    reasons: tuple[str, ...]
    """What the engine gains from it, why each better one is not it, and what runs elsewhere as well; a sentence each,
    without a full stop."""


def best(variants: Variants, family: str, host_features: Collection[str]) -> Choice | str:
    """Choose the variant of *family* with the highest rank among those a CPU with *host_features* runs.

    Native variants do not take part: their wheels are for one machine only. The ranks and what a variant gives an
    engine are data in the variants file; the bindings choose among installed payloads by the same ranks.

    Returns:
        the choice; why there is none, if the CPU runs no variant of the engine.
    """
    passed: list[str] = []
    # Builds run on x86-64.
    here = {name: one for name, one in variants.variants.items() if variants.target_of(name) is None}
    for name in sorted(here, key=lambda n: (-here[n].rank, n)):
        variant = here[name]
        if variant.native or variant.kind != "isa":
            continue
        lack = unsupported(variants, name, family)
        lacking = sorted(variants.features_of(name) - set(host_features))
        if lacking:
            passed.append(f"not {name}: this CPU, or what the compiler knows of it, lacks {', '.join(lacking)}")
        elif lack is not None:
            passed.append(f"not {name}: {lack}")
        else:
            gains = (_own(variants.variants[n], family).gains for n in _lineage(variants, name))
            found = [text for text in gains if text is not None]
            many = [n for n in supported(variants, family) if n in here and here[n].kind == "cpu"]
            others = [f"for other machines as well: {n}, one wheel for {variants.variants[n].title}" for n in many]
            reasons = (f"the highest-ranked variant this CPU can run: {variant.title}", *found, *passed, *others)
            return Choice(name, reasons)
    return f"this CPU runs no variant of {family}: {'; '.join(passed)}"


def _lineage(variants: Variants, name: str) -> list[str]:
    """The variant and all it extends, nearest first."""
    found, step = [name], variants.get(name).extends
    while step is not None:
        found.append(step)
        step = variants.get(step).extends
    return found


def _own(variant: Variant, family: str) -> VariantEngine:
    return next((own for name, own in variant.engines.items() if name == family), VariantEngine())


def _target_engine(target: Target, family: str) -> TargetEngine:
    return next((one for name, one in target.engines.items() if name == family), TargetEngine())


def score_source(resolved: ResolvedVariant) -> str | None:
    """Return :attr:`TargetEngine.score` of a resolved variant; None if the engine has its score target itself."""
    return _target_engine(resolved.target, resolved.family).score if resolved.target else None


def configure_options(recipe: Recipe, resolved: ResolvedVariant) -> dict[str, str]:
    """Return the CMake options of *recipe* built as *resolved*, by name, values as CMake writes them.

    Raises :class:`RecipeError` if the recipe sets an option that belongs to the variant.
    """
    both = sorted(set(recipe.build.options) & set(resolved.options))
    if both:
        raise RecipeError(
            f"the recipe sets {', '.join(both)}, which the variant {resolved.name!r} decides",
            where=recipe.location_of("build", "options", both[0]),
            next_step="remove it from the recipe; instruction sets and backends belong in a variants file",
        )
    merged = {**recipe.build.options, **resolved.options, **(resolved.target.options if resolved.target else {})}
    backend = resolved.backend
    if backend is not None and backend.architectures_option is not None:
        merged[backend.architectures_option] = ";".join(backend.architectures)
    return {option: cmake_value(merged[option]) for option in sorted(merged)}


def for_architectures(resolved: ResolvedVariant, architectures: Sequence[str]) -> ResolvedVariant:
    """Return *resolved* for other GPU architectures; raises :class:`RecipeError` if it is for none."""
    backend = resolved.backend
    if backend is None or backend.architectures_option is None:
        raise RecipeError(
            f"the variant {resolved.name!r} has no GPU architectures to choose from",
            next_step="leave --architectures out, or build a variant that has: `forkyard variants` lists them",
        )
    return replace(resolved, backend=backend.model_copy(update={"architectures": tuple(architectures)}))


def cmake_value(value: OptionValue) -> str:
    """Return *value* as CMake writes it: booleans are ON and OFF."""
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    return str(value)


def inconsistencies(variants: Variants) -> list[Problem]:
    """Return what does not fit together: names that lead nowhere, loops, proofs of absent features."""
    found: list[Problem] = []
    known = variants.features
    for family, engine in variants.engines.items():
        for option, needed in engine.options.items():
            key: KeyPath = ("engines", family, "options", option)
            found += [_unknown_feature((*key, i), f, known) for i, f in enumerate(needed) if f not in known]
        key = ("engines", family, "needs")
        found += [_unknown_feature((*key, i), f, known) for i, f in enumerate(engine.needs) if f not in known]
    for name, target in variants.targets.items():
        key = ("targets", name)
        if target.toolkit not in variants.toolkits:
            advice = did_you_mean(target.toolkit, variants.toolkits) or "define it under [toolkits]"
            found.append(Problem((*key, "toolkit"), f"no toolkit {target.toolkit!r} is defined", advice))
        for family, one in target.engines.items():
            key = ("targets", name, "engines", family)
            found += [_unknown_feature((*key, "needs", i), f, known) for i, f in enumerate(one.needs) if f not in known]
            found += [
                _unknown_feature((*key, "score-definitions", definition, i), f, known)
                for definition, needed in one.score_definitions.items()
                for i, f in enumerate(needed)
                if f not in known
            ]
    for name, variant in variants.variants.items():
        key = ("variants", name)
        if variant.target is not None and variant.target not in variants.targets:
            advice = did_you_mean(variant.target, variants.targets) or "define it under [targets]"
            found.append(Problem((*key, "target"), f"no target {variant.target!r} is defined", advice))
        if variant.target is not None and (variant.native or variant.backend):
            found.append(Problem((*key, "target"), "a native variant, and one for GPUs, is for x86-64", None))
        if name == BEST:
            found.append(Problem(key, f"{BEST!r} asks for the best variant, it cannot be one's name", "rename it"))
        for field, names in (("features", variant.features), ("proof", variant.proof)):
            found += [_unknown_feature((*key, field, i), f, known) for i, f in enumerate(names) if f not in known]
        if (variant.kind == "backend") != (variant.backend is not None):
            found.append(Problem((*key, "backend"), "a `backend` variant has this table, and no other has", None))
        elif variant.backend and (kit := variant.backend.toolkit) is not None and kit not in variants.toolkits:
            advice = did_you_mean(kit, variants.toolkits) or "define it under [toolkits]"
            unknown = f"no toolkit {kit!r} is defined"
            found.append(Problem((*key, "backend", "toolkit"), unknown, advice))
        broken = _broken_chain(variants, name)
        if broken is not None:
            hint = did_you_mean(variant.extends or "", variants.variants)
            found.append(Problem((*key, "extends"), broken, hint))
            continue
        if not variant.native:
            missing = [f for f in variant.proof if f in known and f not in variants.features_of(name)]
            found += [Problem((*key, "proof"), f"{f!r} is no feature of the variant", None) for f in missing]
        for family, own in variant.engines.items():
            found += [
                Problem((*key, "engines", family, "borrows", n), f"{n!r} is no variant that it extends", None)
                for n in own.borrows
                if n not in _lineage(variants, name)[1:]
            ]
            isa = variants.engines.get(family)
            derived = set() if isa is None else {*isa.options, isa.native}
            place: KeyPath = (*key, "engines", family, "options")
            found += [
                Problem((*place, option), f"{option} follows from the features", None)
                for option in own.options
                if option in derived
            ]
    # Which members an engine has follows from features, and those from names that lead somewhere.
    return found or [problem for name in variants.variants for problem in _wrong_members(variants, name)]


def _wrong_members(variants: Variants, name: str) -> list[Problem]:
    variant, key = variants.variants[name], ("variants", name, "members")
    many = any(variants.variants[step].members for step in _lineage(variants, name))
    if (variant.kind != "isa") != many:
        return [Problem(key, "`cpu` and `backend` variants have members, and no others have", None)]
    if not many:
        return []
    found: list[Problem] = []
    lists: list[tuple[KeyPath, tuple[str, ...]]] = [(key, variant.members)]
    lists += [(("variants", name, "engines", f, "members"), own.members) for f, own in variant.engines.items()]
    for i, member, place in ((i, member, place) for place, members in lists for i, member in enumerate(members)):
        if member not in variants.variants:
            found.append(
                Problem((*place, i), f"there is no variant {member!r}", did_you_mean(member, variants.variants))
            )
        elif variants.variants[member].kind != "isa" or variants.variants[member].native:
            found.append(Problem((*place, i), f"{member!r} is not one instruction set", None))
        elif variants.target_of(member) != variants.target_of(name):
            found.append(Problem((*place, i), f"{member!r} is for another machine", None))
    if variants.features_of(name):
        found.append(Problem(("variants", name), "its features are those of its members", "leave them out"))
    if found:
        return found
    for family in variants.engines:
        names = _members(variants, name, family)
        if not names and unsupported(variants, name, family):
            continue
        if not names:
            found.append(Problem(key, f"{family} has none of these variants", None))
        for member in names[1:]:
            lacking = variants.features_of(names[0]) - variants.features_of(member)
            if lacking:
                lost = ", ".join(sorted(lacking))
                found.append(Problem(key, f"{member} lacks {lost} of {names[0]}, for which all else is compiled", None))
    return found


def _unknown_feature(key: KeyPath, name: str, known: Collection[str]) -> Problem:
    hint = did_you_mean(name, known) or "define it under [features]"
    return Problem(key, f"no feature {name!r} is defined", hint)


def _broken_chain(variants: Variants, name: str) -> str | None:
    seen = [name]
    step = variants.variants[name].extends
    while step is not None:
        if step not in variants.variants:
            return f"there is no variant {step!r} to extend"
        if step in seen:
            return f"variants extend each other in a loop: {' -> '.join([*seen, step])}"
        seen.append(step)
        step = variants.variants[step].extends
    return None


def _best_proof(variants: Variants, family: str, features: Collection[str]) -> tuple[str, ...]:
    """Return the proof of the best fixed variant a machine with *features* runs: native must reach it too."""
    for name in supported(variants, family):
        variant = variants.variants[name]
        if variant.kind == "isa" and not variant.native and variants.features_of(name) <= set(features):
            return variant.proof
    return ()
