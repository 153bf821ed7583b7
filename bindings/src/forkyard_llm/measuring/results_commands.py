"""The commands `results ...`: look at measurements, compare them, and give them to others."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..cache import write_atomic
from ..command_options import EXIT_CODES, error_console, json_option
from ..errors import UsageError
from ..text import print_json

if TYPE_CHECKING:
    from .store import Store

__all__ = ["results"]

_OUT = click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file (default: standard output)."
)


@contextlib.contextmanager
def _store() -> Iterator[Store]:
    from .store import Store

    with contextlib.closing(Store()) as store:
        yield store


@click.group(epilog=EXIT_CODES)
def results() -> None:
    """What `bench`, `compare` and `tune` measured: every sample is kept.

    RUN is the beginning of a run's id, or `last`.
    """


@results.command(name="list", epilog=EXIT_CODES)
@json_option
def list_(as_json: bool) -> None:
    """List all runs, the newest first."""
    from .store import info_to_json

    with _store() as store:
        runs = store.runs()
    if as_json:
        print_json({"runs": [{**info_to_json(run), "finished": done, "bundle": origin} for run, done, origin in runs]})
        return
    for run, finished, origin in runs:
        when = datetime.datetime.fromtimestamp(run.created, datetime.timezone.utc)
        more = ("" if finished else ", cut off") + (", from a bundle" if origin else "")
        click.echo(f"{run.id[:8]}  {when:%Y-%m-%d %H:%M}  {run.title or run.scenario}  {run.model}{more}")


@results.command(epilog=EXIT_CODES)
@click.argument("run")
@json_option
def show(run: str, as_json: bool) -> None:
    """Show one run as a table."""
    from .exporting import as_document, as_markdown
    from .scenarios import conclusions

    with _store() as store:
        recorded = store.read(run)
    if as_json:
        print_json({**as_document(recorded), "conclusions": conclusions(recorded)})
    else:
        click.echo("\n".join([as_markdown(recorded), "", *conclusions(recorded)]))


@results.command(epilog=EXIT_CODES)
@click.argument("run")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["md", "jsonl", "llama-bench"]),
    default="md",
    show_default=True,
    help="Markdown; a line of JSON a sample; or jsonl as llama-bench writes it, for upstream's compare-llama-bench.py.",
)
@_OUT
def export(run: str, kind: str, out: Path | None) -> None:
    """Write one run for others to read."""
    from . import exporting

    with _store() as store:
        recorded = store.read(run)
    writers = {"md": exporting.as_markdown, "jsonl": exporting.as_jsonl, "llama-bench": exporting.as_llama_bench}
    text = writers[kind](recorded)
    text += "" if text.endswith("\n") else "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        write_atomic(out, text.encode())
    except OSError as error:
        msg = f"cannot write {out}: {error.strerror or error}"
        raise UsageError(msg) from error


@results.command(epilog=EXIT_CODES)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The HTML file.")
def report(runs: tuple[str, ...], out: Path) -> None:
    """Write runs as one HTML page with plots, which needs nothing else."""
    from .report import write_report

    with _store() as store:
        recorded = [store.read(run) for run in runs]
    write_report(recorded, out)
    error_console.print(f"wrote {out}", markup=False, soft_wrap=True)


@results.command(epilog=EXIT_CODES)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The zip file.")
@json_option
def bundle(runs: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Pack runs for somebody else: samples, commands, and the machine, with nothing that says whose it is."""
    from .bundle import write_bundle

    with _store() as store:
        recorded = {one.info.id: one for one in map(store.read, runs)}
    digest = write_bundle(list(recorded.values()), out)
    if as_json:
        print_json({"bundle": str(out), "sha256": digest, "runs": list(recorded)})
    else:
        click.echo(f"{out}: {len(recorded)} runs, sha256 {digest}")


@results.command(name="import", epilog=EXIT_CODES)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def import_(file: Path, as_json: bool) -> None:
    """Take over the runs of a bundle; those that are here already stay as they are."""
    from .bundle import read_bundle

    recorded, digest = read_bundle(file)
    with _store() as store:
        new = [one.info.id for one in recorded if store.take(one, digest)]
    if as_json:
        print_json({"imported": new, "known": [one.info.id for one in recorded if one.info.id not in new]})
    else:
        click.echo(f"{len(new)} of {len(recorded)} runs were new")


@results.command(epilog=EXIT_CODES)
@click.argument("first")
@click.argument("second")
@json_option
def compare(first: str, second: str, as_json: bool) -> None:
    """Compare two runs, arm by arm: is SECOND faster or slower than FIRST, or a tie?

    They were measured at different times, perhaps on different machines: `forkyard-llm compare` measures in turn.
    """
    from .statistics import compare_unpaired, summarize
    from .tables import gain_text, markdown

    with _store() as store:
        one, other = store.read(first), store.read(second)
    rows, document = [], []
    for arm in one.arms:
        for test in arm.tests:
            before, after = one.speeds(arm.name, test), other.speeds(arm.name, test)
            if before and after:
                gain = compare_unpaired(after, before)
                medians = [summarize(before).median, summarize(after).median]
                rows.append([arm.name, test, *(f"{value:.2f}" for value in medians), gain_text(gain), gain.verdict])
                document.append({"arm": arm.name, "test": test, "medians": medians, **gain.as_json()})
    if not rows:
        msg = "the two runs have no arm and test in common"
        raise UsageError(msg)
    differs = sorted(
        name
        for name in one.info.machine.keys() | other.info.machine.keys()
        if one.info.machine.get(name) != other.info.machine.get(name)
    )
    if as_json:
        print_json({"first": one.info.id, "second": other.info.id, "differs": differs, "rows": document})
        return
    click.echo("\n".join(markdown(["arm", "test", "first", "second", "factor", "verdict"], rows)))
    if differs:
        click.echo(f"The machines differ in: {', '.join(differs)}.")


@results.command(epilog=EXIT_CODES)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
def remove(runs: tuple[str, ...]) -> None:
    """Forget runs."""
    with _store() as store:
        for run in [store.find(run) for run in runs]:
            store.remove(run)
