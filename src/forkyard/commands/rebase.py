"""``forkyard rebase``: move an engine's stacks to another upstream commit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from forkyard.cache import Cache
from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.errors import EXIT_CONFLICTS, StorageError, UsageError
from forkyard.rebasing.report import document, prepare_folder, read_report, text, write_reports
from forkyard.rebasing.session import AlreadyDoneError, Rebased, Session
from forkyard.workshop import find_root


@click.command()
@click.argument("recipe")
@click.option("--to", help="A commit, a ref of --source, or `latest`.")
@click.option("--stack", "stacks", multiple=True, help="Only this stack (repeatable); the recipe's pin stays.")
@sources
@click.option("--retire", is_flag=True, help="Leave out patches that upstream has otherwise or has superseded.")
@click.option("--additive", is_flag=True, help="Where upstream and a patch only add lines in one place, keep both.")
@click.option("--test", is_flag=True, help="With --dry-run: say what is needed, by building and testing.")
@click.option("--variant", help="With --test: what to build (default: the best usual one this machine runs).")
@click.option("--allow-dirty", is_flag=True, help="Also where files it writes have edits that are not committed.")
@click.option("--dry-run", is_flag=True, help="Only tell; change no file and keep no state.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the rebased patches there; the project stays.")
@click.option("--report-dir", type=click.Path(path_type=Path), help="Write report.md, .json and .html there as well.")
@click.option("--continue", "resume", is_flag=True, help="Take over the conflict resolved in the work tree; go on.")
@click.option("--skip", is_flag=True, help="Leave the patch that waits out of its series; go on.")
@click.option("--abort", is_flag=True, help="Give the rebase up; the project is as it was.")
@click.option("--undo", is_flag=True, help="Take back the last finished rebase: only what it wrote.")
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
    additive: bool,
    test: bool,
    variant: str | None,
    allow_dirty: bool,
    dry_run: bool,
    out: Path | None,
    report_dir: Path | None,
    resume: bool,
    skip: bool,
    abort: bool,
    undo: bool,
    show: bool,
) -> int:
    """Replay every patch of RECIPE's stacks on another upstream commit, all of them in one run.

    Without conflicts the patches, the recipe's pin and its lock are written together. With conflicts nothing is
    written: the first is laid out in work/rebase-RECIPE, and --continue goes on when it is resolved. What was resolved
    once is kept in the repository and never asked again.
    """
    chosen = [
        word for word, on in (("--continue", resume), ("--skip", skip), ("--abort", abort), ("--undo", undo)) if on
    ]
    chosen += ["--status"] if show else []
    if len(chosen) + (to is not None) != 1:
        msg = f"{' and '.join([*chosen, '--to'])} exclude each other" if chosen else "nothing says where to rebase to"
        raise UsageError(msg, next_step="give --to COMMIT, or one of --continue, --skip, --abort, --undo, --status")
    if test and not dry_run:
        msg = "--test takes long and writes nothing"
        raise UsageError(msg, next_step="add --dry-run; rebase in earnest when you know the verdicts")
    session = Session(find_root(), recipe, Cache.default(), console)
    if show:
        return _show(console, session)
    if abort:
        state = session.abort()
        stays = f"{state.recipe} stays at {state.old.commit[:12]}" if state else "its record was damaged and is deleted"
        console.result({"recipe": recipe, "aborted": True}, f"given up: {stays}")
        return 0
    if undo:
        return _undo(console, session, recipe)
    if report_dir is not None:
        # Said before anything is written and not after.
        prepare_folder(report_dir)
    if to is None:
        try:
            result = session.resume(skip=skip, out=out)
        except AlreadyDoneError as done:
            console.result({"recipe": recipe, "state": "written", "next": done.next_step}, done.describe())
            return 0
    else:
        result = session.start(
            to,
            stacks=stacks,
            source=source,
            offline=offline,
            retire=retire,
            additive=additive,
            dry_run=dry_run,
            out=out,
            allow_dirty=allow_dirty,
        )
        if test:
            # It builds and tests; whoever only rebases need not read all that.
            from forkyard.rebasing.necessity import prove

            less = partial(session.without, result)
            result = prove(find_root(), Cache.default(), console, result, less, variant=variant, offline=offline)
    return _answer(console, session, result, report_dir, keep=not dry_run)


def _answer(console: Console, session: Session, result: Rebased, report_dir: Path | None, *, keep: bool) -> int:
    folders = [folder for folder in (session.folder if keep else None, report_dir) if folder is not None]
    reports: list[str] = []
    for folder in folders:
        try:
            reports += [str(path) for path in write_reports(result, folder)]
        except StorageError as error:
            if not result.finished:
                raise
            # What matters is written; failing now would say otherwise.
            console.warn(error.describe())
    shown = text(result) + (f"\nreport: {reports[-1]}" if reports else "")
    console.result({**document(result), "reports": reports}, shown)
    return EXIT_CONFLICTS if result.replay.conflicts else 0


def _undo(console: Console, session: Session, recipe: str) -> int:
    done = session.undo()
    if done is None:
        console.result({"recipe": recipe, "undone": [], "left": []}, "given up: nothing had been written")
        return 0
    lines = [f"{recipe} is at {done.old[:12]} again: {len(done.paths)} files are as they were before the rebase"]
    lines += [f"left alone, as it was changed since: {path}" for path in done.left]
    console.result({"recipe": recipe, "undone": list(done.paths), "left": list(done.left)}, "\n".join(lines))
    return 0


def _show(console: Console, session: Session) -> int:
    state = session.status()
    report = read_report(session.folder)
    waiting = f"{state.waiting.stack}/{state.waiting.patch} in {state.waiting.folder}" if state.waiting else "nothing"
    console.result(
        {"recipe": state.recipe, "from": state.old.commit, "to": state.new.commit, "report": report},
        f"{state.recipe}: {state.old.commit[:12]} -> {state.new.commit[:12]}\nwaits for: {waiting}",
    )
    return EXIT_CONFLICTS if state.waiting else 0
