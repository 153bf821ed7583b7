"""The report survives whatever stands in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forkyard.pullrequest.report import SENTENCE, summary, write_facts, write_report

NASTY = 'a | b <script>alert(1)</script> \n`c` "d" \u00fc \udcff'


@pytest.fixture
def document() -> dict[str, Any]:
    commit = {"commit": "a" * 40, "stack": "s", "patch": NASTY, "our_subject": NASTY}
    return {
        "stack": "s",
        "engine": "llama.cpp",
        "prose": "why",
        "warnings": [NASTY],
        "steps": [NASTY],
        "out": "out",
        "template": None,
        "target": {"commit": "b" * 40, "date": "2026-01-05", "how": NASTY},
        "branch": {"name": "s", "folder": "f", "below": "c" * 40, "commits": [commit], "beneath": [commit]},
        "size": {"added": 1, "removed": 2, "files": 3, "review_hours": [0.1, 0.2]},
        "evidence": [
            {
                "name": "x", "title": NASTY, "state": state, "reason": NASTY, "seconds": 1.0, "reused": True,
                "commands": [NASTY], "logs": ["logs/a b.log"],
            }
            for state in ("pass", "fail", "undecided", "not-run", "not-applicable")
        ],
        "checklist": [
            {
                "name": "x", "title": NASTY, "status": status, "reason": NASTY, "details": [NASTY], "advice": NASTY,
                "document": None, "stated_there": False,
            }
            for status in ("pass", "fail", "needs-a-person", "not-applicable")
        ],
        "duplicates": [{"what": NASTY, "query": NASTY, "url": "https://example.org/?q=%20"}],
        "counts": {"evidence": {"pass": 1, "fail": 1}, "checklist": {"needs-a-person": 4}},
    }  # fmt: skip


def test_three_reports(tmp_path: Path, document: dict[str, Any]) -> None:
    write_report(tmp_path, document)

    html, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script>" not in html
    assert "http" not in html.replace("https://example.org", "")
    assert SENTENCE in "\n".join(text.splitlines()[:4])
    assert SENTENCE in html[: html.index("<table>")]
    assert json.loads((tmp_path / "report.json").read_bytes())["stack"] == "s"
    for line in text.splitlines():
        if line.startswith("| FAIL |"):
            assert "<script>" not in line
            assert line.replace("\\|", "").count("|") in (5, 6)


def test_nothing_to_search_for(tmp_path: Path, document: dict[str, Any]) -> None:
    write_report(tmp_path, {**document, "duplicates": []})
    assert "search in your own words" in (tmp_path / "report.html").read_text()
    assert "search in your own words" in (tmp_path / "report.md").read_text()


def test_the_summary_begins_with_who_submits(document: dict[str, Any]) -> None:
    text = summary(document)
    assert text.startswith(SENTENCE)
    assert "not run" in text
    assert "FAIL" in text


def test_facts(tmp_path: Path, document: dict[str, Any]) -> None:
    write_facts(tmp_path, ["kv : mine\n\nBecause.\n"], document)
    text = (tmp_path / "description-facts.md").read_text()
    assert "Facts only" in text.splitlines()[0]
    assert "kv : mine" in text
