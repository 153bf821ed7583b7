"""Planning what to verify: which choices of patches there are, and which of them are one and the same build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from forkyard.errors import UsageError
from forkyard.plan import Plan, make_plan
from forkyard.recipes import Recipe, Variants, supported
from forkyard.stacks import Stack, load_stacks, stack_names
from forkyard.stacks.combining import home_of, required_by
from forkyard.stacks.model import load_stack
from forkyard.toolchain import Toolchain, native_features
from forkyard.verifying.selecting import Selection, select

# Best first, of those the README builds and the integration tests run.
_USUAL_VARIANTS = ("avx512", "avx2", "sse42")


@dataclass(frozen=True)
class Role:
    """One reason to verify a unit."""

    kind: Literal["prefix", "alone", "pair", "combination", "base"]
    stacks: tuple[str, ...]
    """The stacks it is about; those they require or stand on are applied, too."""
    patch: str | None = None
    """Of a prefix: its last patch."""
    number: int = 0
    """Of a prefix: how many patches of the series."""
    of: int = 0

    @property
    def partial(self) -> bool:
        """Whether it is the beginning of a series and not all of it."""
        return self.kind == "prefix" and self.number < self.of

    def __str__(self) -> str:
        if self.kind == "prefix":
            return f"{self.stacks[0]} {self.number}/{self.of} {(self.patch or '').removesuffix('.patch')}"
        if self.kind == "combination":
            return "combination"
        return f"{self.kind} {'+'.join(self.stacks)}"


@dataclass(frozen=True)
class Unit:
    """One choice of patches to verify."""

    roles: tuple[Role, ...]
    plan: Plan
    selection: Selection
    home: tuple[str, ...] = ()
    """Of a prefix: the stacks its series stands on."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return str(self.roles[0])

    @property
    def series(self) -> Role | None:
        """Its role as the beginning or the whole of a series."""
        return next((role for role in self.roles if role.kind == "prefix"), None)

    @property
    def complete(self) -> bool:
        """Whether all its stacks are whole."""
        return not any(role.partial for role in self.roles)


@dataclass
class Planned:
    """What there is to verify of a recipe."""

    units: list[Unit] = field(default_factory=list)
    left_out: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    """Pairs that are not verified, and why."""


class _Planner:
    def __init__(
        self, recipe: Recipe, variants: Variants, variant: str | None, root: Path, toolchain: Toolchain
    ) -> None:
        self._recipe, self._variants, self._variant = recipe, variants, variant
        self._usual_variant = variant or default_variant(variants, recipe.family, toolchain)
        self._root, self._toolchain = root, toolchain
        self._found: dict[tuple[str, Selection], Unit] = {}
        series = recipe.series
        known = [stack for name in stack_names(root) if series in (stack := load_stack(root, name)).about.engines]
        self.known = sorted(known, key=lambda stack: (stack.about.order, stack.name))
        self.usual = load_stacks(root, recipe.stacks, series)

    def wanted(self, names: Sequence[str]) -> set[str]:
        for name in names:
            if self._recipe.series not in load_stack(self._root, name).about.engines:
                msg = f"stack {name!r} has nothing for {self._recipe.series}"
                raise UsageError(msg, next_step="name another stack or another engine")
        return set(names) or {stack.name for stack in self.known}

    def prefixes(self, stack: Stack) -> None:
        patches = stack.series(self._recipe.series).patches
        home = home_of(stack, self.usual, self.known)
        for number, patch in enumerate(patches, start=1):
            part = stack if number == len(patches) else stack.first(number)
            role = Role("prefix", (stack.name,), patch.name, number, len(patches))
            self._add(role, [*home, part], [stack], tuple(one.name for one in home))

    def together(self, kind: Literal["alone", "pair", "combination"], stacks: Sequence[Stack]) -> None:
        chosen = self._with_required(stacks)
        self._add(Role(kind, tuple(stack.name for stack in stacks)), chosen, chosen)

    def conflict(self, stacks: Sequence[Stack]) -> str | None:
        """What keeps stacks from being built together by their own word."""
        names = {stack.name for stack in stacks} | required_by(stacks, self.known)
        for stack in self.known:
            if stack.name in names and (other := names.intersection(stack.about.conflicts)):
                return f"{stack.name} says that it conflicts with {min(other)}"
        return None

    def _with_required(self, stacks: Sequence[Stack]) -> list[Stack]:
        names = [*self._recipe.essential, *(stack.name for stack in stacks)]
        return load_stacks(self._root, [*names, *required_by(stacks, self.known)], self._recipe.series)

    def _add(self, role: Role, chosen: Sequence[Stack], tested: Sequence[Stack], home: tuple[str, ...] = ()) -> None:
        variant = self._variant_for(tested) if role.kind != "combination" else self._usual_variant
        plan = make_plan(self._recipe, self._variants, variant, self._root, self._toolchain, stacks=list(chosen))
        names = [name for _, patches in plan.patches for name in patches]
        selection = select(tested, names, complete=not role.partial)
        same = self._found.get((plan.key, selection))
        if same is None:
            unit = Unit((role,), plan, selection, home)
        else:
            unit = replace(same, roles=(*same.roles, role), home=same.home or home)
        self._found[plan.key, selection] = unit

    def _variant_for(self, tested: Sequence[Stack]) -> str:
        own = (dict(stack.about.test_variants).get(self._recipe.series) for stack in tested)
        return self._variant or next(filter(None, own), self._usual_variant)

    def units(self) -> list[Unit]:
        return list(self._found.values())


def plan_units(
    recipe: Recipe,
    variants: Variants,
    variant: str | None,
    root: Path,
    toolchain: Toolchain,
    *,
    names: Sequence[str] = (),
) -> Planned:
    """Everything to verify of a recipe, in the order in which little has to be recompiled from one to the next.

    Args:
        variant: what to build; for None the one that a stack's tests need, else the best usual one.
        names: only what has to do with these stacks; none for all that the engine has.

    Raises:
        RecipeError, PatchError: a stack, series or recipe does not say what it must.
        UsageError: a named stack has nothing for the engine.
    """
    planner, planned = _Planner(recipe, variants, variant, root, toolchain), Planned()
    wanted = planner.wanted(names)
    own = {stack.name for stack in planner.usual}
    order = [*planner.usual, *(stack for stack in planner.known if stack.name not in own)]
    mine = [stack for stack in order if stack.name in wanted]
    for stack in mine:
        planner.prefixes(stack)
    for stack in mine:
        planner.together("alone", [stack])
    for pair in combinations(planner.known, 2):
        names_ = tuple(stack.name for stack in pair)
        if not wanted.intersection(names_):
            continue
        why = planner.conflict(pair)
        if why is None:
            planner.together("pair", pair)
        else:
            planned.left_out.append((names_, why))
    if wanted & own:
        planner.together("combination", planner.usual)
    planned.units = planner.units()
    return planned


def base_unit(unit: Unit, root: Path, variants: Variants) -> Unit | None:
    """What a series stands on, as a unit without tests; ``None`` where that is the bare pin."""
    if not unit.home:
        return None
    plan = unit.plan
    chosen = [stack for stack in plan.stacks if stack.name in unit.home]
    below = make_plan(plan.recipe, variants, plan.variant.name, root, plan.toolchain, stacks=chosen)
    return Unit((Role("base", unit.home),), below, Selection())


def default_variant(variants: Variants, family: str, toolchain: Toolchain) -> str:
    """The best usual variant of an engine that this machine can run.

    Raises:
        UsageError: there is none.
    """
    host = set(native_features(toolchain))
    offered = supported(variants, family)
    for name in _USUAL_VARIANTS:
        if name in offered and variants.features_of(name) <= host:
            return name
    msg = f"this machine runs none of the usual variants of {family}"
    raise UsageError(msg, why=f"usual are {', '.join(_USUAL_VARIANTS)}", next_step="choose one with --variant")
