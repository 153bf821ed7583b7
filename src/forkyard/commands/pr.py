"""``forkyard pr`` and ``forkyard pr-status``: prepare a pull request, and read where those that were made stand."""

from __future__ import annotations

from pathlib import Path

import click

from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.locking import warn_changed
from forkyard.pullrequest.preparing import Wish, prepare
from forkyard.pullrequest.report import summary
from forkyard.pullrequest.states import DEFAULT_API
from forkyard.pullrequest.statuses import read_statuses, status_text
from forkyard.recipes import load_recipe, recipe_names
from forkyard.workshop import Workshop, find_root


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


@click.command()
@click.argument("stack")
@click.argument("engine")
@click.option("--patches", help="Only these of the stack's patches, separated by commas.")
@click.option("--to", default="latest", show_default=True, help="The upstream commit the branch begins at.")
@click.option("--on-top-of", help="Required stacks, separated by commas, that are to be beneath the branch.")
@click.option("--quick", is_flag=True, help="Short measurements.")
@click.option("--no-build", is_flag=True, help="Branch and checklist only; all evidence that needs a build is not run.")
@click.option("--describe", is_flag=True, help="Facts for a description, where upstream takes one from a tool.")
@click.option("--variant", help="What is built (default: the best common one this machine can run).")
@click.option("--model", type=click.Path(path_type=Path), help="A GGUF file to measure with instead of SmolLM2.")
@click.option("--out", type=click.Path(path_type=Path), help="Evidence folder (default: beside the branch in work/).")
@click.option("--jobs", "-j", type=click.IntRange(1), help="Parallel compiles.")
@click.option("--no-ccache", is_flag=True, help="Do not use ccache.")
@sources
@answers
def pr(
    console: Console,
    stack: str,
    engine: str,
    patches: str | None,
    to: str,
    on_top_of: str | None,
    quick: bool,
    no_build: bool,
    describe: bool,
    variant: str | None,
    model: Path | None,
    out: Path | None,
    jobs: int | None,
    no_ccache: bool,
    source: str | None,
    offline: bool,
) -> int:
    """Prepare a pull request for STACK's patches on ENGINE; never submit one.

    Makes a branch on the newest upstream commit in work/, gathers evidence by running it before and after, goes through
    upstream's rules, and puts upstream's own empty template beside the report. A named person writes and submits.

    Exit code 12: prepared, but a rule or a piece of evidence failed.
    """
    wish = Wish(
        stack=stack,
        engine=engine,
        patches=_names(patches),
        to=to,
        source=source,
        offline=offline,
        quick=quick,
        build=not no_build,
        describe=describe,
        on_top_of=_names(on_top_of),
        variant=variant,
        model=model.absolute() if model else None,
        out=out,
        jobs=jobs,
        use_ccache=not no_ccache,
    )
    document, status = prepare(wish, Workshop.open(), console)
    console.result(document, summary(document))
    return status


@click.command("pr-status")
@click.argument("stack", required=False)
@click.option("--write", is_flag=True, help="Rewrite the Upstream-Status of patches whose pull request has ended.")
@click.option("--api", default=DEFAULT_API, show_default=True, help="Where states are read.")
@answers
def pr_status(console: Console, stack: str | None, write: bool, api: str) -> int:
    """Read where the pull requests of the stacks' patches stand, and what their Upstream-Status should become.

    Reads only. A token in FORKYARD_GITHUB_TOKEN or GITHUB_TOKEN raises the number of requests allowed; it is sent to
    the API alone and never shown. Exit code 12: a state could not be read.
    """
    root = find_root()
    warn_changed([load_recipe(name, root) for name in recipe_names(root)], root, console)
    document, status = read_statuses(root, stack, api, console, write=write)
    console.result(document, status_text(document))
    return status
