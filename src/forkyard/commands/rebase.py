"""``forkyard rebase``: move an engine's stacks to another upstream commit."""

from __future__ import annotations

import json
from pathlib import Path

import click

from forkyard.cache import Cache
from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.errors import EXIT_CONFLICTS, UsageError
from forkyard.rebasing.report import document, text, write_reports
from forkyard.rebasing.session import Rebased, Session
from forkyard.workshop import find_root


@click.command()
@click.argument("recipe")
@click.option("--to", help="A commit, a ref of --source, or `latest`.")
@click.option("--stack", "stacks", multiple=True, help="Only this stack (repeatable); the recipe's pin stays.")
@sources
@click.option("--retire", is_flag=True, help="Leave out patches that upstream has otherwise or has superseded.")
@click.option("--dry-run", is_flag=True, help="Only tell; change no file and keep no state.")
@click.option("--out", type=click.Path(path_type=Path), help="With --stack: write the rebased patches there.")
@click.option("--report-dir", type=click.Path(path_type=Path), help="Write report.md, .json and .html there as well.")
@click.option("--continue", "resume", is_flag=True, help="Take over the conflict resolved in the work tree; go on.")
@click.option("--skip", is_flag=True, help="Leave the patch that waits out of its series; go on.")
@click.option("--abort", is_flag=True, help="Give the rebase up; the project is as it was.")
@click.option("--status", "show", is_flag=True, help="Show the rebase that is under way.")
@answers
def rebase(
    console: Console,
    recipe: str,
    to: str | None,
    stacks: tuple[str, ...],
    source: str | None,
    offline: bool,
    retire: bool,
    dry_run: bool,
    out: Path | None,
    report_dir: Path | None,
    resume: bool,
    skip: bool,
    abort: bool,
    show: bool,
) -> int:
    """Replay every patch of RECIPE's stacks on another upstream commit, all of them in one run.

    Without conflicts the patches, the recipe's pin and its lock are written together. With conflicts nothing is
    written: the first is laid out in work/rebase-RECIPE, and --continue goes on when it is resolved. What was resolved
    once is kept in the repository and never asked again.
    """
    chosen = [word for word, on in (("--continue", resume), ("--skip", skip), ("--abort", abort)) if on]
    chosen += ["--status"] if show else []
    if len(chosen) + (to is not None) != 1:
        msg = f"{' and '.join([*chosen, '--to'])} exclude each other" if chosen else "nothing says where to rebase to"
        raise UsageError(msg, next_step="give --to COMMIT, or one of --continue, --skip, --abort, --status")
    session = Session(find_root(), recipe, Cache.default(), console)
    if show:
        return _show(console, session)
    if abort:
        state = session.abort()
        console.result(
            {"recipe": recipe, "aborted": True}, f"given up: {state.recipe} stays at {state.old.commit[:12]}"
        )
        return 0
    if to is None:
        result = session.resume(skip=skip, out=out)
    else:
        result = session.start(
            to, stacks=stacks, source=source, offline=offline, retire=retire, dry_run=dry_run, out=out
        )
    return _answer(console, session, result, report_dir, keep=not dry_run)


def _answer(console: Console, session: Session, result: Rebased, report_dir: Path | None, *, keep: bool) -> int:
    folders = [folder for folder in (session.folder if keep else None, report_dir) if folder is not None]
    reports = [str(path) for folder in folders for path in write_reports(result, folder)]
    shown = text(result) + (f"\nreport: {reports[-1]}" if reports else "")
    console.result({**document(result), "reports": reports}, shown)
    return EXIT_CONFLICTS if result.replay.conflicts else 0


def _show(console: Console, session: Session) -> int:
    state = session.status()
    path = session.folder / "report.json"
    report = json.loads(path.read_bytes()) if path.is_file() else None
    waiting = f"{state.waiting.stack}/{state.waiting.patch} in {state.waiting.folder}" if state.waiting else "nothing"
    console.result(
        {"recipe": state.recipe, "from": state.old.commit, "to": state.new.commit, "report": report},
        f"{state.recipe}: {state.old.commit[:12]} -> {state.new.commit[:12]}\nwaits for: {waiting}",
    )
    return EXIT_CONFLICTS if state.waiting else 0
