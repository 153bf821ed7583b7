"""``forkyard stack verify``: every beginning of every series, every stack alone, every pair, and all together."""

from __future__ import annotations

import click

from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.errors import EXIT_FINDINGS, UsageError
from forkyard.locking import warn_changed
from forkyard.recipes import FAMILIES, Recipe, recipe_names
from forkyard.stacks.model import load_stack
from forkyard.verifying import Level, Options, as_json, as_text
from forkyard.verifying import verify as verify_recipes
from forkyard.workshop import Workshop


@click.command()
@click.argument("stacks", nargs=-1)
@click.option("--engine", type=click.Choice(FAMILIES), help="Only recipes of this engine.")
@click.option("--recipe", "ref", help="Only this recipe, by name or path.")
@click.option("--changed", is_flag=True, help="Only what differs from the base: see --base.")
@click.option("--base", help="Revision for --changed (default: where this branch left the default branch, or HEAD).")
@click.option("--variant", help="What to build (default: the best usual variant this machine runs).")
@click.option("--no-tests", is_flag=True, help="Apply and build, run no tests.")
@click.option("--no-build", is_flag=True, help="Only apply.")
@click.option(
    "--keep-going/--first", default=True, help="Go on with other series after a bad patch (default), or stop at once."
)
@click.option("--cached-failures", is_flag=True, help="Believe recorded failures instead of running them again.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Parallel compiles.")
@click.option("--no-ccache", is_flag=True, help="Do not use ccache.")
@sources
@answers
def verify(
    console: Console,
    stacks: tuple[str, ...],
    engine: str | None,
    ref: str | None,
    changed: bool,
    base: str | None,
    variant: str | None,
    no_tests: bool,
    no_build: bool,
    keep_going: bool,
    cached_failures: bool,
    jobs: int | None,
    no_ccache: bool,
    source: str | None,
    offline: bool,
) -> int:
    """Apply, build and test every beginning of every series, so that any commit of a stack can be bisected to.

    STACKS limit it to what has to do with them. Also verified are each stack alone, every pair and the combination.
    What was found is kept: only what changed since runs again. Ends with 12 if anything is bad.
    """
    if base is not None and not changed:
        msg = "--base means nothing without --changed"
        raise UsageError(msg, next_step="add --changed")
    shop = Workshop.open()
    level: Level = "apply" if no_build else "build" if no_tests else "test"
    options = Options(
        stacks=stacks,
        variant=variant,
        level=level,
        changed=changed or base is not None,
        base=base,
        first=not keep_going,
        cached_failures=cached_failures,
        source=source,
        offline=offline,
        jobs=jobs,
        use_ccache=not no_ccache,
    )
    chosen = [shop.recipe(name) for name in ([ref] if ref else recipe_names(shop.root))]
    warn_changed(chosen, shop.root, console)
    verification = verify_recipes(shop, _meant(shop, chosen, engine, stacks), options, console)
    console.result(as_json(verification), as_text(verification))
    return 0 if verification.ok else EXIT_FINDINGS


def _meant(shop: Workshop, recipes: list[Recipe], engine: str | None, stacks: tuple[str, ...]) -> list[Recipe]:
    """The recipes of an engine that have something of every named stack."""
    meant = [recipe for recipe in recipes if engine in (None, recipe.family)]
    if not meant:
        msg = f"no recipe is for {engine}"
        raise UsageError(msg, next_step="name another --engine or --recipe")
    about = [load_stack(shop.root, name).about for name in stacks]
    having = [recipe for recipe in meant if all(recipe.series in one.engines for one in about)]
    if not having:
        msg = f"no recipe has {' and '.join(stacks)}"
        raise UsageError(
            msg,
            why="; ".join(f"{name} is for {', '.join(one.engines)}" for name, one in zip(stacks, about, strict=True)),
            next_step="name stacks of one engine",
        )
    return having
