"""``forkyard canary``: do the stacks still hold on the newest upstream commit? One command for a nightly job."""

from __future__ import annotations

from pathlib import Path

import click

from forkyard.canary import as_json, as_text, watch, write_reports
from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.errors import EXIT_CONFLICTS, EXIT_FINDINGS, UsageError
from forkyard.recipes import recipe_names
from forkyard.sources.targets import LATEST
from forkyard.verifying import Level
from forkyard.workshop import Workshop


@click.command()
@click.argument("recipes", nargs=-1)
@click.option("--to", default=LATEST, show_default=True, help="Another commit than the newest.")
@sources
@click.option("--variant", help="What to build (default: the best usual variant this machine runs).")
@click.option("--no-tests", is_flag=True, help="Rebase and build, run no tests.")
@click.option("--no-build", is_flag=True, help="Only rebase.")
@click.option("--report-dir", type=click.Path(path_type=Path), help="Write report.md, .json and .html there.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Parallel compiles.")
@answers
def canary(
    console: Console,
    recipes: tuple[str, ...],
    to: str,
    source: str | None,
    offline: bool,
    variant: str | None,
    no_tests: bool,
    no_build: bool,
    report_dir: Path | None,
    jobs: int | None,
) -> int:
    """Rebase, build and test RECIPES (default: all) on the newest upstream commit; the project is only read.

    Ends with 13 if a patch conflicts, with 12 if the engine does not build or a test fails, with the error's own code
    if a recipe could not be tried.
    """
    shop = Workshop.open()
    names = recipes or tuple(recipe_names(shop.root))
    if source is not None and len(names) != 1:
        msg = "--source is the source of one recipe"
        raise UsageError(msg, next_step="name the recipe")
    level: Level = "apply" if no_build else "build" if no_tests else "test"
    found = []
    for name in names:
        found.append(
            watch(shop, name, console, to=to, source=source, offline=offline, variant=variant, level=level, jobs=jobs)
        )
    reports = write_reports(found, report_dir) if report_dir is not None else []
    shown = as_text(found) + (f"\nreport: {report_dir}/report.html" if reports else "")
    console.result({**as_json(found), "reports": [str(path) for path in reports]}, shown)
    states = {one.state for one in found}
    if "conflicts" in states:
        return EXIT_CONFLICTS
    if states & {"bad", "no test"}:
        return EXIT_FINDINGS
    return next((one.error.exit_code for one in found if one.error is not None), 0)
