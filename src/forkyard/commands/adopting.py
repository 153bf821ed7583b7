"""``forkyard stack from-branch``: turn a branch of somebody's fork into a stack."""

from __future__ import annotations

import click

from forkyard.adopting.adopt import adopt
from forkyard.adopting.outcome import Wish
from forkyard.adopting.report import document, text
from forkyard.cache import Cache
from forkyard.commands.answering import answers
from forkyard.console import Console
from forkyard.errors import EXIT_CONFLICTS
from forkyard.workshop import find_root


@click.command(name="from-branch")
@click.argument("repository", metavar="REPO")
@click.argument("branch")
@click.option("--engine", required=True, help="The engine the fork is of: llama.cpp or ik_llama.cpp.")
@click.option("--name", help="Name of the stack (default: made from the branch's).")
@click.option("--recipe", help="The recipe whose pin the stack goes to, if the engine has several.")
@click.option("--base", help="The commit of the branch where the fork's own work begins, if it cannot be told.")
@click.option("--upstream", help="What is upstream's: a branch of REPO, a URL, a clone.")
@click.option("--squash", is_flag=True, help="Make one patch of everything.")
@click.option("--partial", is_flag=True, help="With conflicts: write the patches before the first one.")
@click.option("--note-origin", is_flag=True, help="Name the fork's commit at the end of each message.")
@click.option("--add-to-recipe", is_flag=True, help="Also build the stack by default, after those the recipe has.")
@click.option("--dry-run", is_flag=True, help="Only tell; write nothing.")
@click.option("--offline", is_flag=True, help="Touch no network.")
@answers
def from_branch(
    console: Console,
    repository: str,
    branch: str,
    engine: str,
    name: str | None,
    recipe: str | None,
    base: str | None,
    upstream: str | None,
    squash: bool,
    partial: bool,
    note_origin: bool,
    add_to_recipe: bool,
    dry_run: bool,
    offline: bool,
) -> int:
    """Turn BRANCH of the fork at REPO into a stack on the recipe's pin.

    Finds the newest upstream state the branch contains, puts the fork's own commits into one line without merges,
    leaves out what upstream has and what the fork took back, and carries the rest to the pin. Without conflicts it
    writes patches/NAME for a person to finish; with conflicts it writes nothing there and lays the series out in
    work/from-branch-NAME.
    """
    wish = Wish(
        repository,
        branch,
        engine,
        name=name,
        recipe=recipe,
        base=base,
        upstream=upstream,
        squash=squash,
        partial=partial,
        note_origin=note_origin,
        add_to_recipe=add_to_recipe,
        dry_run=dry_run,
        offline=offline,
    )
    done = adopt(find_root(), Cache.default(), console, wish)
    console.result(document(done), text(done))
    return EXIT_CONFLICTS if done.conflicts else 0
