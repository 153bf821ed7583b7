"""``forkyard range-diff``: what changed between two revisions of a stack, or between the same stack on two bases."""

from __future__ import annotations

from pathlib import Path

import click

from forkyard.cache import Cache, write_atomic
from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.errors import EXIT_FINDINGS, UsageError
from forkyard.gitstore.comparing import CREATION_FACTOR
from forkyard.locking import warn_changed
from forkyard.rangediff.compare import Choices, compare_revisions
from forkyard.rangediff.render import as_html, as_text
from forkyard.rangediff.revisions import WORKTREE
from forkyard.recipes import FAMILIES, load_recipe, recipe_names
from forkyard.workshop import find_root


@click.command(name="range-diff")
@click.argument("stack")
@click.argument("rev1")
@click.argument("rev2", default=WORKTREE)
@click.option("--engine", type=click.Choice(FAMILIES), help="Compare the patches for this engine alone.")
@click.option("--recipe", help="The recipe whose pin the patches stand on (default: the engine's).")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with the comparison to this file.")
@click.option("--stat", is_flag=True, help="Show only which patches changed, not how.")
@click.option(
    "--creation-factor",
    type=click.IntRange(0, 100_000),
    help="Percent: how different two patches may be and still be compared as one "
    f"(default: {CREATION_FACTOR}, and more where patches of one name would be told apart).",
)
@click.option("--exit-code", is_flag=True, help="End with 12 if the stack differs.")
@sources
@answers
def range_diff(
    console: Console,
    stack: str,
    rev1: str,
    rev2: str,
    engine: str | None,
    recipe: str | None,
    html: Path | None,
    stat: bool,
    creation_factor: int | None,
    exit_code: bool,
    source: str | None,
    offline: bool,
) -> int:
    """Show what changed in STACK between REV1 and REV2, patch by patch.

    \b
    A REV is
      a commit, tag or branch of this project (HEAD~3, v1.0);
      worktree: the files as they lie there now, REV2 if none is given;
      REV@COMMIT: a revision's patches carried to another upstream commit;
      @COMMIT: REV1's patches (as REV1: the work tree's) carried to it.
    """
    if html is not None and html.is_dir():
        msg = f"{html} is a folder"
        raise UsageError(msg, next_step="give --html the name of a file")
    choices = Choices(engine, recipe, creation_factor, source, offline)
    root = find_root()
    if {WORKTREE, ""} & {rev.partition("@")[0] for rev in (rev1, rev2)}:
        warn_changed([load_recipe(name, root) for name in recipe_names(root)], root, console)
    found = compare_revisions(root, Cache.default(), console, stack, rev1, rev2, choices)
    differs = any(one.differs for one in found)
    if html is not None:
        write_atomic(html, as_html(found).encode())
        console.note(f"wrote {html}")
    document = {
        "stack": stack,
        "revisions": [rev1, rev2],
        "differs": differs,
        "comparisons": [one.as_json(lines=not stat) for one in found],
        "html": str(html) if html is not None else None,
    }
    console.result(document, as_text(found, stat=stat))
    return EXIT_FINDINGS if exit_code and differs else 0
