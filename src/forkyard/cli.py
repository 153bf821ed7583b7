"""The ``forkyard`` command: parses words, calls the workshop, prints its answer, ends with a documented exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from forkyard import __version__
from forkyard import doctor as doctoring
from forkyard.cache import Cache, storage_error
from forkyard.commands.answering import answers, answers_anyway, choices, sources, stack_names_of, words_of
from forkyard.commands.lazy import LazyGroup
from forkyard.console import Console
from forkyard.errors import UsageError
from forkyard.locking import lock_recipe, warn_changed
from forkyard.nextsteps import trying
from forkyard.plan import Plan
from forkyard.recipes import BEST, Choice, load_variants, recipe_names
from forkyard.recipes.lock import changed_since_lock
from forkyard.recipes.schema import SCHEMAS, schema_text
from forkyard.recipes.schema import schema as schema_document
from forkyard.workshop import Workshop, clean, find_root

_EXIT_CODES = """
\b
Exit codes:
  0  done                     7  compiler or tool missing
  1  a fault in forkyard      8  the wheel failed a gate
  2  usage                    9  compiling or packing failed
  3  recipe, lock or stack   10  disk full, read-only, no permission
  4  source is not the pin   11  another forkyard held a lock too long
  5  network                 12  a check of stacks found something
  6  a patch does not apply  13  conflicts wait for a person
                            130  interrupted
"""


# Where the commands are that a build has no use for.
_COMMANDS = {
    "stack": "stack:stack",
    "rebase": "rebase:rebase",
    "range-diff": "rangediff:range_diff",
    "pr": "pr:pr",
    "pr-status": "pr:pr_status",
    "canary": "canary:canary",
    "bench": "bench_room:bench",
    "numa-model": "numa_model:numa_model",
    "numa-guest": "numa_guest:numa_guest",
}


class _Front(LazyGroup):
    """The command itself: what it cannot write, ``--help`` among it, is an error like any other."""

    def main(self, *args: Any, **options: Any) -> Any:
        # Made first: it could not set up an output that takes no more.
        console = Console()
        try:
            return super().main(*args, **options)
        except OSError as error:
            known = storage_error(error, "write the answer")
            if known is None:
                raise
            console.failure(known)
            sys.exit(known.exit_code)


@click.group(
    cls=_Front,
    lazy=_COMMANDS,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
def main() -> None:
    """Build patched llama.cpp and ik_llama.cpp as wheels, from pinned upstreams and our own patch stacks.

    RECIPES are names (llama.cpp, ik_llama.cpp) or paths of recipe files of your own; none means all of the project.
    """


@main.command()
@click.argument("variant", default=BEST)
@choices
@answers
def plan(
    console: Console,
    variant: str,
    recipes: tuple[str, ...],
    variants_file: Path | None,
    stacks: str | None,
    architectures: str | None,
    out: Path | None,
) -> None:
    """Show what would be built, from where, with which flags and key; fetch and build nothing.

    VARIANT is a name of `forkyard variants`, or `best` (the default): the best of each engine for this machine.
    """
    shop = Workshop.open(out=out, variants_file=variants_file)
    plans, left_out = shop.plans(variant, recipes, stack_names_of(stacks), words_of(architectures))
    chosen = _chosen(console, shop, variant, plans, left_out)
    warn_changed([item.recipe for item in plans], shop.root, console)
    document = [item.as_json(shop.cache) for item in plans]
    console.result(
        {"plans": document, "chosen": chosen, "left_out": left_out},
        "\n\n".join(_plan_text(item, shop) for item in plans),
    )


def _chosen(
    console: Console, shop: Workshop, variant: str, plans: Sequence[Plan], left_out: Sequence[str]
) -> list[dict[str, Any]]:
    """Say which variant ``best`` is for each engine and why, and which engines are left out; the choices for JSON."""
    for line in left_out:
        console.note(line)
    rows: list[dict[str, Any]] = []
    for item in plans if variant == BEST else ():
        choice = shop.best(item.recipe.family)
        assert isinstance(choice, Choice)
        rows.append({"recipe": item.recipe.name, "variant": choice.variant, "reasons": list(choice.reasons)})
        console.note("\n  ".join([f"{item.recipe.name}: {choice.variant}", *choice.reasons]))
    return rows


def _plan_text(item: Plan, shop: Workshop) -> str:
    facts = item.as_json(shop.cache)
    applied = [f"{s['name']} ({', '.join(s['patches']) or 'nothing for this engine'})" for s in facts["stacks"]]
    lines = [
        f"{item.distribution}",
        f"  pin         {item.recipe.pin.commit} ({item.recipe.pin.date or 'date from the commit'})",
        f"  source      {facts['source']}",
        *(f"              {number}. {_source_text(source)}" for number, source in enumerate(facts["sources"], 1)),
        f"  stacks      {'; '.join(applied) or 'none'}",
        f"  needs CPU   {', '.join(facts['cpu_features'])}",
        *([f"  carries     {', '.join(member['name'] for member in facts['members'])}"] if facts["members"] else []),
        f"  cmake       {' '.join(f'{name}={value}' for name, value in item.options.items())}",
        f"  C flags     {' '.join(item.c_flags) or '-'}",
        f"  C++ flags   {' '.join(item.cxx_flags) or '-'}",
        f"  {item.recipe.build.cpu_target + ' flags':<11} {' '.join(item.cpu_flags) or '-'}",
        f"  compiler    {item.toolchain.version}, {item.toolchain.libc}",
        *_toolkit_text(facts),
        f"  tools       {', '.join(item.tools)}",
        f"  build key   {item.key}",
        f"  tree        {facts['folders']['tree']}",
        f"  build in    {facts['folders']['build']}",
    ]
    return "\n".join(lines)


def _toolkit_text(facts: dict[str, Any]) -> list[str]:
    toolkit = facts["toolkit"]
    if not toolkit:
        return []
    parts = [f"{key.removeprefix('package ')} {value}" for key, value in toolkit.items() if key.startswith("package ")]
    lines = [f"  toolkit     {toolkit['title']}{'' if parts else ', as it is installed'}"]
    lines += [f"              {part}" for part in parts]
    return [*lines, f"  requires    {'; '.join(facts['requires'])}"] if facts["requires"] else lines


def _source_text(source: dict[str, Any]) -> str:
    if source["kind"] == "registry":
        return f"registry {source['project']} {source['version']} sha256 {source['sha256']}"
    return f"{source['kind']} {source.get('url') or source.get('path')}"


@main.command()
@click.argument("variant", default=BEST)
@choices
@sources
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    help="Parallel compiles (default: the processors this process may use; of GPU code as many as fit into memory).",
)
@click.option("--no-ccache", is_flag=True, help="Do not use ccache.")
@click.option("--locked", is_flag=True, help="Fail if anything differs from the recipe's lock.")
@answers
def build(
    console: Console,
    variant: str,
    recipes: tuple[str, ...],
    variants_file: Path | None,
    stacks: str | None,
    architectures: str | None,
    out: Path | None,
    source: str | None,
    offline: bool,
    jobs: int | None,
    no_ccache: bool,
    locked: bool,
) -> None:
    """Build payload wheels of VARIANT and put them into the output folder, with the bindings.

    VARIANT is a name of `forkyard variants`, or `best` (the default): the best of each engine for this machine.
    """
    shop = Workshop.open(out=out, variants_file=variants_file)
    plans, left_out = shop.plans(variant, recipes, stack_names_of(stacks), words_of(architectures))
    chosen = _chosen(console, shop, variant, plans, left_out)
    built = shop.build(
        plans, console, source=source, offline=offline, jobs=jobs, use_ccache=not no_ccache, locked=locked
    )
    lines = []
    for item in built:
        how = "built" if item.fresh else "up to date"
        share = ""
        if item.ccache and sum(item.ccache.values()):
            share = f", {item.ccache['hits']} of {sum(item.ccache.values())} compiles from ccache"
        lines.append(f"{how}: {item.wheel}{share}")
    if built:
        names = [item.wheel.name.split("-")[0] for item in built]
        target = plans[0].variant.target
        there = f" on {target.title}" if target else ""
        lines += ["", f"try it{there}:", *(f"  {line}" for line in trying(shop.out, names, plans[0].recipe.family))]
    document = {"built": [item.as_json() for item in built], "chosen": chosen, "left_out": left_out}
    console.result(document, "\n".join(lines))


@main.command()
@answers
def status(console: Console) -> None:
    """Show which payloads are built, which are out of date, and which pins are in the cache."""
    shop = Workshop.open()
    warn_changed([shop.recipe(name) for name in recipe_names(shop.root)], shop.root, console)
    facts = shop.status()
    lines = [f"{row['recipe']:<14} {row['variant']:<14} {row['state']}" for row in facts["payloads"]]
    lines += [
        "",
        *(f"{row['recipe']:<14} pin {row['pin'][:12]}   {row['from'] or 'not fetched'}" for row in facts["sources"]),
    ]
    lines += ["", f"cache  {facts['cache']}", f"output {facts['out']}"]
    console.result(facts, "\n".join(lines))


@main.command()
@answers_anyway
def doctor(console: Console) -> int:
    """Say what this machine lacks for building, and the exact command that installs it."""
    root = find_root()
    checks = doctoring.examine(Cache.default(), root)
    facts = doctoring.as_json(checks, root)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8} {check.name:<9} {check.found}")
        if check.fix:
            lines.append(f"{'':<18} -> {check.fix}")
    console.result(facts, "\n".join(lines))
    return 0 if facts["ok"] else 7


@main.command(name="clean")
@click.argument("parts", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Only say what would go, and what that costs.")
@answers_anyway
def clean_command(console: Console, parts: tuple[str, ...], dry_run: bool) -> None:
    """Delete PARTS of the cache: builds, wheels, sources, ccache, logs (default: builds, wheels, logs)."""
    rows = clean(Cache.default(), parts, dry_run=dry_run, reporter=console)
    verb = "would free" if dry_run else "freed"
    lines = [f"{row['part']:<8} {verb} {row['bytes'] / 2**20:.1f} MiB; costs: {row['costs']}" for row in rows]
    console.result({"dry_run": dry_run, "parts": rows}, "\n".join(lines))


@main.command(name="lock")
@click.argument("recipes", nargs=-1)
@click.option("--check", is_flag=True, help="Only compare; exit 3 if a lock is out of date.")
@click.option("--offline", is_flag=True, help="Touch no network.")
@answers
def lock_command(console: Console, recipes: tuple[str, ...], check: bool, offline: bool) -> None:
    """Write the lock of each recipe: ids before and after patching, digests of every patch and source."""
    shop = Workshop.open()
    rows: list[dict[str, Any]] = []
    for ref in recipes or recipe_names(shop.root):
        recipe = shop.recipe(ref)
        files = [one.path for one in changed_since_lock(recipe, shop.root)]
        changed = lock_recipe(recipe, shop.root, shop.cache, console, check_only=check, offline=offline)
        rows.append(
            {"recipe": recipe.name, "lock": str(recipe.lock_path()), "changed": changed, "changed_files": files}
        )
    lines = []
    for row in rows:
        lines.append(f"{row['lock']}: {'written' if row['changed'] else 'as it was'}")
        lines += [f"  locked anew: {path}" for path in row["changed_files"]]
    console.result({"locks": rows}, "\n".join(lines))


@main.command()
@answers
def variants(console: Console) -> None:
    """List the variants, the CPU features each needs, and what each was run on."""
    known = load_variants(find_root())
    rows = [
        {
            "name": name,
            "title": item.title,
            "features": sorted(known.features_of(name)),
            "rank": item.rank,
            "hardware": item.hardware,
        }
        for name, item in sorted(known.variants.items(), key=lambda pair: -pair[1].rank)
    ]
    console.result(
        {"variants": rows}, "\n".join(f"{row['name']:<14} {row['title']}; {row['hardware']}" for row in rows)
    )


@main.command()
@click.argument("name", required=False)
@answers_anyway
def schema(console: Console, name: str | None) -> None:
    """Print the JSON schema of recipe files or variants files."""
    if name is None:
        console.result({"schemas": list(SCHEMAS)}, "\n".join(SCHEMAS))
        return
    if name not in SCHEMAS:
        msg = f"there is no schema {name!r}"
        raise UsageError(msg, next_step=f"choose from {', '.join(SCHEMAS)}")
    console.result(schema_document(name), schema_text(name))


if __name__ == "__main__":
    main()
