"""``forkyard stack lint``: check stacks against the project's conventions and upstream's."""

from __future__ import annotations

import click

from forkyard.cache import Cache
from forkyard.commands.answering import answers
from forkyard.console import Console
from forkyard.errors import EXIT_FINDINGS
from forkyard.linting import as_text
from forkyard.linting import lint as check_stacks
from forkyard.recipes import FAMILIES
from forkyard.workshop import find_root


@click.command(name="lint")
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option("--engine", type=click.Choice(FAMILIES), help="Look at this engine alone.")
@click.option("--fetch", is_flag=True, help="Get pins that are not in the cache, over the network.")
@answers
def lint(console: Console, stacks: tuple[str, ...], engine: str | None, fetch: bool) -> int:
    """Check STACKs (default: all) by rules: metadata, hunks, text, format, needless changes, dependencies, sizes.

    Nothing is built and nothing is changed. Ends with 12 if there is an error; warnings alone end with 0.
    """
    with console.step("checking stacks"):
        report = check_stacks(find_root(), Cache.default(), console, stacks=stacks, engine=engine, fetch=fetch)
    console.result(report.as_json(), as_text(report))
    return EXIT_FINDINGS if report.errors else 0
