"""What a rebase found, as a document, as Markdown, as a page and as text for a terminal."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from forkyard.cache import explained, write_atomic
from forkyard.errors import StorageError
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.project import top_around
from forkyard.nextsteps import command, source_word
from forkyard.rebasing.carrying import OpenConflict
from forkyard.rebasing.replaying import Outcome
from forkyard.rebasing.session import Rebased

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_SIDE = 40
"""Lines shown of a side of a conflict."""


def document(result: Rebased) -> dict[str, Any]:
    """The whole result for machines."""
    done, state = result.replay, result.state
    return {
        "recipe": state.recipe,
        "family": result.recipe.family,
        "from": {"commit": state.old.commit, "date": state.old.date},
        "to": {"commit": state.new.commit, "date": state.new.date},
        "stacks": list(state.stacks),
        "history_known": done.history,
        "counts": dict(sorted(Counter(one.status for one in done.outcomes).items())),
        "verdicts": dict(sorted(Counter(one.verdict.word for one in done.outcomes).items())),
        "patches": [_patch(one) for one in done.outcomes],
        "state": _state(result),
        "worktree": str(result.worktree) if result.worktree else None,
        "waiting": [state.waiting.stack, state.waiting.patch] if state.waiting else None,
        "written": list(result.finished.paths) if result.finished else [],
        "patched_commit": result.finished.patched_commit if result.finished else None,
        "notes": [*result.notes, *(result.finished.notes if result.finished else ())],
        "next": next_steps(result),
    }


def conflicts_first(patches: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Patches of a document as people read them: those that wait for a decision first, else in the series' order."""
    return sorted(patches, key=lambda patch: patch["status"] != "conflict")


def _state(result: Rebased) -> str:
    if result.finished:
        return "written"
    if result.worktree:
        return "waiting"
    return "conflicts" if result.replay.conflicts else "not written"


def _patch(outcome: Outcome) -> dict[str, Any]:
    carried = outcome.carried
    return {
        "stack": outcome.stack,
        "patch": outcome.name,
        "subject": outcome.subject,
        "status": outcome.status,
        "verdict": outcome.verdict.word,
        "evidence": list(outcome.verdict.evidence),
        "follows_conflict": outcome.follows_conflict,
        "follows_dropped": list(outcome.follows_dropped),
        "conflicts": [_conflict(one) for one in carried.conflicts] if carried else [],
        "culprits": [
            {"path": one.path, "commit": one.commit, "subject": one.subject, "author": one.author, "date": one.date}
            for one in outcome.culprits
        ],
        "notes": list(carried.notes) if carried else [],
    }


def _conflict(one: OpenConflict) -> dict[str, Any]:
    return {
        "path": one.path,
        "kind": one.conflict.kind,
        "message": one.conflict.message,
        "resolved_by": one.known.file_name if one.known else None,
        "both_kept": one.additive,
        "hunks": [
            {
                "lines": region.span,
                "upstream": _shown(region.upstream),
                "before": _shown(region.before),
                "patch": _shown(region.patch),
            }
            for region in one.regions
        ],
        "sides": {
            name: _side(entry)
            for name, entry in (
                ("before", one.conflict.before),
                ("upstream", one.conflict.upstream),
                ("patch", one.conflict.patch),
            )
        },
    }


def _side(entry: Entry | None) -> str | None:
    return f"{entry.mode} {entry.oid}" if entry else None


def _shown(side: bytes) -> list[str]:
    lines = side.decode("utf-8", "replace").splitlines()
    return lines if len(lines) <= _LONGEST_SIDE else [*lines[:_LONGEST_SIDE], f"... {len(lines) - _LONGEST_SIDE} more"]


def next_steps(result: Rebased) -> list[str]:
    """What a person does now, one thing a line; can be pasted as a whole."""
    state, word = result.state, result.recipe.word
    if result.worktree and state.waiting:
        rebase = command("rebase", word)
        return [
            f"cd {shlex.quote(str(result.worktree))}",
            f"# resolve {state.waiting.patch}: edit the files with conflict markers, git add or git rm them",
            f"{rebase} --continue  # takes it over, keeps it for the next time, goes on",
            f"# or {rebase} --skip  (leaves this patch out of its series)",
            f"# or {rebase} --abort  (everything as it was; resolutions made so far are kept)",
        ]
    if result.finished and result.finished.out is None and result.finished.paths:
        look = f"git -C {shlex.quote(str(result.root))} diff --stat  # the pin, the patches and the lock moved together"
        return [
            *([look] if top_around(result.root) else []),
            f"{command('stack', 'verify', recipe=word)}  # every prefix builds and passes",
            f"# {command('rebase', word, undo=True)} undoes it",
        ]
    if result.finished is None and (result.replay.conflicts or state.whole or state.out):
        again = command(
            "rebase",
            word,
            to=state.new.commit,
            stack=() if state.whole else _chosen(result),
            source=source_word(state.source),
            offline=state.offline,
            retire=state.retire,
            additive=state.additive,
            out=Path(state.out) if state.out else None,
        )
        return [f"{again}  # {'to resolve the conflicts' if result.replay.conflicts else 'writes it'}"]
    return []


def _chosen(result: Rebased) -> Sequence[str]:
    """The stacks that were asked for; none if it was all of them."""
    return () if set(result.state.stacks) == set(result.recipe.stacks) else result.state.stacks


def text(result: Rebased) -> str:
    """The result for a terminal."""
    facts = document(result)
    lines = [
        f"{facts['recipe']}: {facts['from']['commit'][:12]} ({facts['from']['date']}) -> "
        f"{facts['to']['commit'][:12]} ({facts['to']['date']}), {len(facts['patches'])} patches"
    ]
    width = max((len(f"{p['stack']}/{p['patch']}") for p in facts["patches"]), default=0)
    for patch in conflicts_first(facts["patches"]):
        mark = " (tried on a provisional tree)" if patch["follows_conflict"] else ""
        lines.append(
            f"  {patch['stack'] + '/' + patch['patch']:<{width}}  {patch['status']:<8}  {patch['verdict']}{mark}"
        )
        lines += [f"      builds on {label}, which was left out" for label in patch["follows_dropped"]]
        for conflict in patch["conflicts"]:
            where = ", ".join(hunk["lines"] for hunk in conflict["hunks"])
            both = "both sides kept, upstream's lines first: read them" if conflict["both_kept"] else conflict["kind"]
            how = f"resolved from {conflict['resolved_by']}" if conflict["resolved_by"] else both
            lines.append(f"      {conflict['path']}{':' + where if where else ''}  {how}")
        lines += [
            f"      since {culprit['commit'][:12]} {culprit['subject']} ({culprit['path']})"
            for culprit in patch["culprits"]
        ]
    if not facts["history_known"] and result.replay.conflicts:
        lines.append("  upstream's commits in between are not known here: conflicts are not traced to one")
    lines += [f"  note: {note}" for note in facts["notes"]]
    if result.finished and not facts["written"]:
        lines.append("nothing had to be changed")
    elif result.finished:
        where = f" to {result.finished.out}" if result.finished.out else ""
        lines.append(f"written{where}: {len(facts['written'])} files; patched commit {facts['patched_commit'][:12]}")
    if facts["next"]:
        lines += ["", "next:", *(f"  {step}" for step in facts["next"])]
    return "\n".join(lines)


def prepare_folder(folder: Path) -> None:
    """See that reports can be written into a folder; it is made if need be.

    Raises:
        StorageError: no space or permission.
    """
    with explained("write the reports"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            msg = "could not write the reports"
            raise StorageError(msg, where=str(folder), why="a file is where a folder should be") from error
        with tempfile.TemporaryFile(dir=folder):
            pass


def read_report(folder: Path) -> dict[str, Any] | None:
    """The document that was written last into a folder; ``None`` if there is none that can be read."""
    try:
        found = json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_reports(result: Rebased, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.md`` and ``report.html`` into a folder.

    Raises:
        StorageError: no space or permission.
    """
    facts = document(result)
    written = []
    for name, data in (
        ("report.json", json.dumps(facts, indent=1, sort_keys=True) + "\n"),
        ("report.md", render("report.md.j2", facts)),
        ("report.html", render("report.html.j2", facts)),
    ):
        write_atomic(folder / name, data.encode("utf-8", "surrogateescape"))
        written.append(folder / name)
    return written


def render(template: str, facts: dict[str, Any], folder: Path = _TEMPLATES) -> str:
    """A template filled in; what ends in ``.html.j2`` is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=template.endswith(".html.j2"),
    )
    environment.filters["conflicts_first"] = conflicts_first
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(template).render(facts)
