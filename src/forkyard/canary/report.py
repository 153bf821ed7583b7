"""What the canary found, for machines, for a terminal, and as files a nightly job keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forkyard.cache import write_atomic
from forkyard.canary.watching import Watched
from forkyard.rebasing import report as rebase_report

_TEMPLATES = Path(__file__).parent / "templates"


def as_json(found: Sequence[Watched]) -> dict[str, Any]:
    """The document of ``--json``."""
    return {"ok": all(one.state == "good" for one in found), "recipes": [_one(one) for one in found]}


def _one(watched: Watched) -> dict[str, Any]:
    result = watched.result
    return {
        "recipe": watched.recipe,
        "state": watched.state,
        "variant": watched.variant,
        "rebase": rebase_report.document(watched.rebased) if watched.rebased else None,
        "result": result.as_json() if result else None,
        "problem": asdict(result.problem) if result and result.problem else None,
        "error": watched.error.as_json() if watched.error else None,
        "seconds": {name: round(value, 3) for name, value in watched.seconds.items()},
    }


def as_text(found: Sequence[Watched]) -> str:
    """The answer for people."""
    lines = []
    for one in as_json(found)["recipes"]:
        where = ""
        if one["rebase"]:
            to = one["rebase"]["to"]
            where = f" on {to['commit'][:12]} ({to['date']})"
        times = ", ".join(f"{name} {value:.1f} s" for name, value in one["seconds"].items())
        lines.append(f"{one['recipe']}: {one['state']}{where}{f'; {times}' if times else ''}")
        if one["rebase"]:
            lines += [
                f"  {patch['stack']}/{patch['patch']}  {patch['status']}  {patch['verdict']}"
                for patch in rebase_report.conflicts_first(one["rebase"]["patches"])
            ]
        tests = (one["result"] or {}).get("tests")
        if tests:
            lines.append(f"  tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
        for problem in (one["problem"], one["error"]):
            if problem:
                lines += [f"  {problem['what']}", *(f"    {line}" for line in str(problem["why"] or "").splitlines())]
    return "\n".join(lines)


def write_reports(found: Sequence[Watched], folder: Path) -> list[Path]:
    """Write ``report.{json,md,html}`` into a folder, and each recipe's rebase report below it.

    Raises:
        StorageError: no space or permission.
    """
    facts = as_json(found)
    written = []
    for name, data in (
        ("report.json", json.dumps(facts, indent=1, sort_keys=True) + "\n"),
        ("report.md", rebase_report.render("canary.md.j2", facts, _TEMPLATES)),
        ("report.html", rebase_report.render("canary.html.j2", facts, _TEMPLATES)),
    ):
        write_atomic(folder / name, data.encode("utf-8", "surrogateescape"))
        written.append(folder / name)
    for one in found:
        if one.rebased:
            written += rebase_report.write_reports(one.rebased, folder / one.rebased.recipe.name)
    return written
