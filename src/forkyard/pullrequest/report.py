"""The report: for a person in Markdown and HTML, for machines in JSON, and a few lines for the terminal."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

from forkyard.cache import write_atomic

SENTENCE = "A named person writes the pull request, answers for every line of it, and submits it. This tool does not."
_MARKS = {
    "pass": "pass",
    "fail": "FAIL",
    "needs-a-person": "needs a person",
    "undecided": "undecided",
    "not-run": "not run",
    "not-applicable": "not applicable",
}


def _environment(*, html: bool) -> jinja2.Environment:
    # Markdown is for editors and the upstream site, which escape; cells of tables go through a filter.
    return jinja2.Environment(
        loader=jinja2.PackageLoader("forkyard.pullrequest", "templates"),
        autoescape=html,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _cell(text: object) -> str:
    """A text inside a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def counts(document: dict[str, Any]) -> dict[str, dict[str, int]]:
    """How many pieces of evidence and lines of the checklist have each state."""
    return {
        "evidence": dict(Counter(piece["state"] for piece in document["evidence"])),
        "checklist": dict(Counter(item["status"] for item in document["checklist"])),
    }


def write_report(folder: Path, document: dict[str, Any]) -> None:
    """Write ``report.md``, ``report.html`` and ``report.json``.

    Raises:
        StorageError: no space or permission.
    """
    values = {**document, "sentence": SENTENCE, "marks": _MARKS}
    for name, html in (("report.md", False), ("report.html", True)):
        environment = _environment(html=html)
        environment.filters["cell"] = _cell
        write_atomic(folder / name, environment.get_template(f"{name}.j2").render(values).encode("utf-8", "replace"))
    write_atomic(folder / "report.json", (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def write_facts(folder: Path, messages: list[str], document: dict[str, Any]) -> None:
    """Write ``description-facts.md``: the patches' own messages and the evidence, where upstream takes such a text."""
    environment = _environment(html=False)
    environment.filters["cell"] = _cell
    text = environment.get_template("description-facts.md.j2").render(
        {**document, "messages": messages, "marks": _MARKS}
    )
    write_atomic(folder / "description-facts.md", text.encode("utf-8", "replace"))


def summary(document: dict[str, Any]) -> str:
    """What the terminal shows."""
    branch = document["branch"]
    lines = [
        SENTENCE,
        "",
        f"{document['stack']} for {document['engine']} on {document['target']['commit'][:12]}"
        f" ({document['target']['date']}): {len(branch['commits'])} commits, {document['size']['added']} lines added",
        f"  branch     {branch['name']} in {branch['folder']}",
        f"  report     {document['out']}/report.md (also .html and .json)",
        f"  template   {document['template'] or 'upstream has none'}",
        "",
        "evidence",
        *(f"  {_MARKS[piece['state']]:<15} {piece['title']}: {piece['reason']}" for piece in document["evidence"]),
        "",
        "checklist",
        *(f"  {_MARKS[item['status']]:<15} {item['title']}: {item['reason']}" for item in document["checklist"]),
    ]
    if document["warnings"]:
        lines += ["", "look at this", *(f"  {text}" for text in document["warnings"])]
    return "\n".join(lines)
