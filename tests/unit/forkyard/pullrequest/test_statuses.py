"""What patches say of their pull requests, compared with what upstream says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forkyard.console import Silent
from forkyard.errors import NetworkError, PatchError, RecipeError
from forkyard.gitstore import Author, Store
from forkyard.pullrequest.statuses import read_statuses, status_text, upstream_status
from forkyard.stacks.model import load_stack

from .conftest import HOME

URL = "https://github.com/o/r/pull/{}"
SHA = "b" * 40


def facts(number: int, state: str, *, merged: bool = False) -> bytes:
    sha = SHA if merged else None
    return json.dumps({"number": number, "state": state, "merged": merged, "merge_commit_sha": sha}).encode()


@pytest.fixture
def project(project_root: Path, tmp_path: Path, forge_of: Any, add_stack: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three patches in a row: two submitted, one not; the engine is a clone on this disk."""
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    for name in ("FORKYARD_GITHUB_TOKEN", "GITHUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    store = Store(tmp_path / "engine.git")
    store.ensure()
    store.allow_any_fetch()
    forge = forge_of(store)
    tree = forge.tree(HOME)
    who = Author("U", "u@example.org", "2026-01-05T00:00:00+00:00")
    commit = store.commit(tree, None, who, b"upstream\n")
    store.pin_object(commit, "head")
    recipe = project_root / "recipes" / "mine.toml"
    text = recipe.read_text().replace("1" * 40, commit).replace("2" * 40, tree)
    recipe.write_text(text.replace('path = "clone"', f'path = "{store.path}"').replace("stacks = []", 'stacks = ["s"]'))
    current, patches = dict(HOME), {}
    for number, status in ((1, "Submitted " + URL.format(1)), (2, "Pending"), (3, "Submitted " + URL.format(3))):
        new = {**current, "src/other.cpp": current["src/other.cpp"] + b"%d\n" % number}
        message = f"part : {number}\n\nUpstream-Status: is not this\n\nUpstream-Status: {status}\nRetire-When: file-exists x\n"
        patches[f"p{number}.patch"] = forge.patch(current, new, message.encode())
        current = new
    about = 'title = "s"\nintent = "i"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n'
    add_stack(
        project_root, "s", patches=patches, about=about + f'answers = ["{URL.format(9)}", "https://example.org/x"]\n'
    )
    return project_root


def ask(project: Path, server: Any, reply: Any, *, write: bool = False) -> tuple[dict[str, Any], int]:
    server.replies.setdefault("/repos/o/r/pulls/9", reply(facts(9, "open")))
    return read_statuses(project, None, server.url, Silent(), write=write)


def patch(project: Path, number: int) -> bytes:
    return (project / "patches" / "s" / "llama.cpp" / f"p{number}.patch").read_bytes()


def test_what_they_should_say(project: Path, server: Any, reply: Any) -> None:
    server.replies["/repos/o/r/pulls/1"] = reply(facts(1, "closed", merged=True))
    server.replies["/repos/o/r/pulls/3"] = reply(facts(3, "closed"))

    document, status = ask(project, server, reply)

    assert status == 0
    assert [(row["patch"], row["should_be"], row["changes"]) for row in document["patches"]] == [
        ("p1.patch", f"Accepted {SHA}", True),
        ("p3.patch", f"Denied {URL.format(3)}", True),
    ]
    assert [(one["state"], bool(one["problem"])) for one in document["answers"]] == [("open", False), (None, True)]
    assert document["written"] == []
    text = status_text(document)
    assert f"s/llama.cpp/p1.patch: merged; should say `Upstream-Status: Accepted {SHA}`" in text
    assert b"Submitted" in patch(project, 1)


def test_open_ones_stay(project: Path, server: Any, reply: Any) -> None:
    for number in (1, 3):
        server.replies[f"/repos/o/r/pulls/{number}"] = reply(facts(number, "open"))
    before = [patch(project, number) for number in (1, 2, 3)]

    document, status = ask(project, server, reply, write=True)

    assert (status, document["written"]) == (0, [])
    assert [patch(project, number) for number in (1, 2, 3)] == before


def test_writing_changes_one_line(project: Path, server: Any, reply: Any) -> None:
    server.replies["/repos/o/r/pulls/1"] = reply(facts(1, "closed", merged=True))
    server.replies["/repos/o/r/pulls/3"] = reply(facts(3, "open"))
    before = [patch(project, number) for number in (1, 2, 3)]

    document, status = ask(project, server, reply, write=True)

    assert (status, document["written"]) == (0, ["s/llama.cpp/p1.patch"])
    assert patch(project, 1) == before[0].replace(f"Submitted {URL.format(1)}".encode(), f"Accepted {SHA}".encode())
    assert [patch(project, 2), patch(project, 3)] == before[1:]
    assert load_stack(project, "s").series("llama.cpp").patches[0].data == patch(project, 1)
    again, _ = ask(project, server, reply, write=True)
    assert [row["patch"] for row in again["patches"]] == ["p3.patch"]


def test_one_that_cannot_be_read_is_told_with_the_others(project: Path, server: Any, reply: Any) -> None:
    server.replies["/repos/o/r/pulls/1"] = reply(status=404)
    server.replies["/repos/o/r/pulls/3"] = reply(facts(3, "closed"))

    document, status = ask(project, server, reply, write=True)

    assert status == 12
    assert [bool(row["problem"]) for row in document["patches"]] == [True, False]
    assert document["written"] == ["s/llama.cpp/p3.patch"]
    assert b"Submitted" in patch(project, 1)


def test_a_useless_answer_writes_nothing(project: Path, server: Any, reply: Any) -> None:
    server.replies["/repos/o/r/pulls/1"] = reply(facts(1, "closed", merged=True))
    server.replies["/repos/o/r/pulls/3"] = reply(b"<html>")
    before = patch(project, 1)

    with pytest.raises(NetworkError):
        ask(project, server, reply, write=True)
    assert patch(project, 1) == before


def test_a_series_that_is_not_exact_is_not_rewritten(project: Path, server: Any, reply: Any) -> None:
    server.replies["/repos/o/r/pulls/1"] = reply(facts(1, "closed", merged=True))
    server.replies["/repos/o/r/pulls/3"] = reply(facts(3, "open"))
    path = project / "patches" / "s" / "llama.cpp" / "p1.patch"
    path.write_bytes(path.read_bytes().replace(b"@@ -3,3", b"@@ -2,3").replace(b"+3,4", b"+2,4"))
    before = patch(project, 1)

    with pytest.raises(PatchError):
        ask(project, server, reply, write=True)
    assert patch(project, 1) == before


def test_nothing_submitted(project_root: Path, server: Any) -> None:
    document, status = read_statuses(project_root, None, server.url, Silent())

    assert (document["patches"], status) == ([], 0)
    assert server.requests == []
    assert status_text(document) == "no patch says `Upstream-Status: Submitted URL`"
    with pytest.raises(RecipeError, match="no stack 'none'"):
        read_statuses(project_root, "none", server.url, Silent())


def test_the_trailer_is_read_from_the_message_alone() -> None:
    assert (
        upstream_status(b"From x\nSubject: s\n\nUpstream-Status: Pending\n\ndiff --git a b\n+Upstream-Status: x\n")
        == "Pending"
    )
    assert upstream_status(b"From x\n\ndiff --git a b\nUpstream-Status: Pending\n") is None
