"""What people and programs read of a rebase."""

from __future__ import annotations

import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from forkyard.errors import StorageError
from forkyard.rebasing.report import document, next_steps, prepare_folder, read_report, text, write_reports
from forkyard.rebasing.session import Rebased
from forkyard.rebasing.state import write_state

from .lab import Lab, numbered
from .lab import text as lines

NASTY = "<script>alert(1)</script> | ``` \x1b[31m"


@pytest.fixture
def result(lab: Lab) -> Rebased:
    """A look at a rebase with a conflict, a dropped patch, and things in upstream's text that a page must not obey."""
    made = lab.history(
        {"a.c": numbered(), "b.c": lines("x")},
        {"a.c": numbered(l5=NASTY), "b.c": lines("x", "y")},
    )
    first = {"a.c": numbered(l5="mine"), "b.c": lines("x")}
    lab.series(
        made[0],
        ("one", first, "Retire-When: symbol-present a.c zzz|yyy"),
        ("two", {**first, "b.c": lines("x", "y")}),
        ("three", {**first, "b.c": lines("x", "y"), "c.c": lines("z")}),
    )
    return lab.session().start(made[1], dry_run=True)


def test_document(result: Rebased) -> None:
    facts = document(result)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["counts"] == {"clean": 1, "conflict": 1, "dropped": 1}
    assert facts["verdicts"] == {"merged": 1, "unknown": 2}
    assert facts["state"] == "conflicts"
    one, two, three = facts["patches"]
    assert one["conflicts"][0]["hunks"] == [
        {"lines": "5", "upstream": [NASTY], "before": ["line 5"], "patch": ["mine"]}
    ]
    assert one["culprits"][0]["path"] == "a.c"
    assert (two["status"], three["follows_conflict"]) == ("dropped", True)
    assert facts["next"] == [f"forkyard rebase mine --to {facts['to']['commit']}  # to resolve the conflicts"]


class Page(html.parser.HTMLParser):
    """Tags and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(result: Rebased, tmp_path: Path) -> None:
    write_reports(result, tmp_path)
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert NASTY in page.text
    # Nothing is fetched from anywhere, and links lead to what is there.
    ids = (tmp_path / "report.html").read_text()
    assert page.links
    assert all(link.startswith("#") and f'id="{link[1:]}"' in ids for link in page.links)


def test_markdown(result: Rebased, tmp_path: Path) -> None:
    write_reports(result, tmp_path)
    shown = (tmp_path / "report.md").read_text()
    assert "zzz\\|yyy" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("| part/one.patch")]
    assert row.replace("\\|", "").count("|") == 5
    assert "## part/one.patch" in shown
    assert "## part/three.patch" not in shown


def test_conflicts_come_first(lab: Lab, tmp_path: Path) -> None:
    """And say so if they follow from a patch that was left out; machines get the series' own order."""
    names = [f"f{number}.c" for number in range(6)]
    old = {name: numbered() for name in names}
    made = lab.history(old, {**old, "f4.c": numbered(l5="theirs")})
    states = [old]
    for name in names:
        states.append({**states[-1], name: numbered(l5="mine")})
    states.append({**states[-1], "f1.c": numbered(l5="mine, more")})
    lab.series(made[0], *((f"p{number}", state) for number, state in enumerate(states[1:])))
    state = lab.session().start(made[1]).state
    write_state(lab.root, state.with_dropped("part", "p1.patch"))
    result = lab.session().resume()
    expected = [f"part/p{number}.patch" for number in (4, 6, 0, 1, 2, 3, 5)]
    assert [one["patch"] for one in document(result)["patches"]] == [f"p{number}.patch" for number in range(7)]
    told = text(result)
    assert re.findall(r"^  (part/p\d\.patch)", told, re.MULTILINE) == expected
    assert "builds on part/p1.patch, which was left out" in told
    write_reports(result, tmp_path)
    markdown, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert re.findall(r"^\| (part/p\d\.patch) \|", markdown, re.MULTILINE) == expected
    assert markdown.index("## part/p6.patch") < markdown.index("| part/p4.patch |")
    assert page.index('<h2 id="p2">part/p6.patch') < page.index('<h2 id="patches">') < page.index(">part/p0.patch")
    assert "It builds on part/p1.patch, which was left out" in markdown
    assert "It builds on part/p1.patch, which was left out" in page


def test_terminal(result: Rebased) -> None:
    shown = text(result)
    assert "part/one.patch    conflict  unknown" in shown
    assert "a.c:5  contents" in shown
    assert "part/three.patch  clean     unknown (tried on a provisional tree)" in shown


def test_read_again(result: Rebased, tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    write_reports(result, tmp_path)
    assert read_report(tmp_path) == document(result)
    for data in (b"", b"[1]", b"\xff"):
        (tmp_path / "report.json").write_bytes(data)
        assert read_report(tmp_path) is None


def test_long_sides_are_cut(lab: Lab) -> None:
    made = lab.history({"a.c": lines("x")}, {"a.c": lines(*range(100))})
    lab.series(made[0], ("one", {"a.c": lines("mine")}))
    facts = document(lab.session().start(made[1], dry_run=True))
    shown = facts["patches"][0]["conflicts"][0]["hunks"][0]["upstream"]
    assert (len(shown), shown[-1]) == (41, "... 60 more")


def test_names_that_are_no_text(lab: Lab, tmp_path: Path) -> None:
    """A path in Latin-1, as old repositories have."""
    path = "caf\udce9.c"
    made = lab.history({path: numbered()}, {path: numbered(l5="x")})
    lab.series(made[0], ("one", {path: numbered(l5="mine")}))
    result = lab.session().start(made[1], dry_run=True)
    assert len(write_reports(result, tmp_path)) == 3
    assert b"caf\xe9.c" in (tmp_path / "report.md").read_bytes()


def test_next_steps_after_the_end(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="x")})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    done = lab.session().start(made[1])
    assert any("stack verify --recipe mine" in step for step in next_steps(done))
    assert "written: 2 files" in text(done)
    # Where nothing was to be changed there is nothing to look at.
    again = lab.session().start(made[1])
    assert next_steps(again) == []
    assert replace(again, finished=None).finished is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="could not write the reports"):
            prepare_folder(folder)
