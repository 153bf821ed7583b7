"""``forkyard range-diff`` on the toy engine, in a project that is a repository with a history."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forkyard.gitstore import EXPORT_CONFIG, EXPORT_OPTIONS

from ..toy import Answer, Toy, finish, git

ABOUT = """\
title = "{title}"
intent = "Something to patch the toy engine with."
engines = ["llama.cpp"]
since = "2026-01-02"
test = {tests}
"""
PARTS = [f"src/part{number}.cpp" for number in range(1, 5)]


@dataclass(frozen=True)
class Step:
    """A patch: its file name, and what its commit does."""

    name: str
    write: Mapping[str, str | bytes] = field(default_factory=dict)
    """Path in the engine -> whole content."""
    whole: Mapping[str, str | bytes] = field(default_factory=dict)
    """Whole files of ours it adds."""
    subject: str = ""
    status: str = "Pending"
    executable: bool = False


def code(number: int, *lines: str) -> str:
    """A file long enough for git to see that two versions of it are one."""
    body = "".join(f"    value += {one};\n" for one in range(20))
    more = "".join(f"    {line}\n" for line in lines)
    return f'#include "parts.h"\n\nint toy_part_{number}(int value) {{\n{body}{more}    return value;\n}}\n'


def as_bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def write_stack(
    toy: Toy,
    steps: Sequence[Step],
    *,
    title: str = "Changes",
    tests: Sequence[str] = (),
    onto: str = "HEAD",
    stack: str = "changes",
) -> None:
    """Write a stack whose series does ``steps`` to the engine; use it in the recipe."""
    folder = toy.root / "patches" / stack
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    (folder / "llama.cpp").mkdir(parents=True)
    (folder / "stack.toml").write_text(ABOUT.format(title=title, tests=json.dumps(list(tests))))
    (folder / "llama.cpp" / "series").write_text("".join(f"{step.name}\n" for step in steps))
    tree = toy.engine.with_name("patching")
    git(toy.engine, "worktree", "add", "--quiet", "--detach", str(tree), onto)
    try:
        for step in steps:
            message = f"{step.subject or 'toy : ' + step.name}\n\nBecause.\n\nUpstream-Status: {step.status}\n"
            for path, data in {**step.write, **step.whole}.items():
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_bytes(as_bytes(data))
            for path, data in step.whole.items():
                message += f"Adds-Files: {path}\n"
                kept = folder / "src" / path
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(as_bytes(data))
                for place in (kept, tree / path):
                    place.chmod(0o755 if step.executable else 0o644)
            git(tree, "add", "--all")
            git(tree, "commit", "--quiet", "--allow-empty", "--message", message)
            config = [word for key, value in EXPORT_CONFIG.items() for word in ("-c", f"{key}={value}")]
            excluded = [f":(exclude,literal){path}" for path in step.whole]
            done = subprocess.run(
                ["git", *config, "format-patch", "-1", "--stdout", *EXPORT_OPTIONS, "HEAD", "--", ".", *excluded],
                cwd=tree,
                env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
                capture_output=True,
                check=True,
            )
            (folder / "llama.cpp" / step.name).write_bytes(done.stdout)
    finally:
        git(toy.engine, "worktree", "remove", "--force", str(tree))
    toy.write_recipe(stacks=[stack])


def commit(toy: Toy, tag: str) -> str:
    """Commit the project and tag it."""
    if not (toy.root / ".git").exists():
        git(toy.root, "init", "--quiet", "--initial-branch=main")
    git(toy.root, "add", "--all")
    git(toy.root, "commit", "--quiet", "--allow-empty", "--message", tag)
    git(toy.root, "tag", tag)
    return git(toy.root, "rev-parse", "HEAD").strip()


def compare(toy: Toy, *words: str, status: int = 0) -> dict[str, Any]:
    """The one comparison of an answer."""
    answer = toy.run("range-diff", *words)
    assert answer.status == status, answer.stdout + answer.stderr
    (found,) = answer.json["comparisons"]
    assert found["engine"] == "llama.cpp"
    assert isinstance(found, dict)
    return found


def text_of(toy: Toy, *words: str, env: Mapping[str, str] | None = None) -> str:
    """What people get, when it is not a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "forkyard", "range-diff", *words, "--quiet"],
        cwd=toy.home,
        env=toy.env(env),
        capture_output=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def refused(toy: Toy, *words: str) -> dict[str, Any]:
    """The error of a run that must fail, as JSON; it is one for people."""
    answer: Answer = toy.run("range-diff", *words)
    assert answer.status not in (0, 1), answer.stdout
    return answer.json


def rows(comparison: Mapping[str, Any]) -> list[tuple[str | None, str, str | None]]:
    return [
        (pair["old"] and pair["old"]["name"], pair["sign"], pair["new"] and pair["new"]["name"])
        for pair in comparison["pairs"]
    ]


def long(prefix: str, count: int = 25) -> str:
    return "".join(f"{prefix} line {number}\n" for number in range(count))


A = Step("a.patch", {PARTS[0]: code(1, "value += 100;")})
B = Step("b.patch", {PARTS[1]: code(2, "value += 200;")})
C = Step("c.patch", {PARTS[2]: code(3, "value += 300;")})
D = Step("d.patch", whole={"src/whole.h": long("whole")})


@pytest.fixture
def project(toy: Toy) -> Toy:
    """A project whose revision ``v1`` has the patches a, b, c and d."""
    for number, path in enumerate(PARTS, start=1):
        (toy.engine / path).write_text(code(number))
    git(toy.engine, "commit", "--quiet", "--all", "--message", "Make the parts longer")
    write_stack(toy, [A, B, C, D])
    commit(toy, "v1")
    return toy


# -- what changed --------------------------------------------------------------------------------


def test_a_changed_stack(project: Toy) -> None:
    amended = Step("a.patch", {PARTS[0]: code(1, "value += 101;")}, status="Submitted https://example.invalid/1")
    renamed = Step("see.patch", C.write, subject="toy : c.patch")
    whole = Step("d.patch", whole={"src/whole.h": long("whole") + "one more\n"})
    added = Step("e.patch", {"docs/new.md": long("text")})
    write_stack(project, [amended, whole, renamed, added], title="Other changes", tests=["tests/x.py"])
    v2 = commit(project, "v2")

    found = compare(project, "changes", "v1", "v2")
    assert set(rows(found)) == {
        ("a.patch", "!", "a.patch"),
        ("b.patch", "<", None),
        ("c.patch", "=", "see.patch"),
        ("d.patch", "!", "d.patch"),
        (None, ">", "e.patch"),
    }
    by_name = {(pair["new"] or pair["old"])["name"]: pair for pair in found["pairs"]}
    signs = [(line["outer"], line["text"]) for line in by_name["a.patch"]["lines"]]
    assert ("-", "+    value += 100;") in signs
    assert ("+", "+    value += 101;") in signs
    assert by_name["a.patch"]["facts"] == [
        {"what": "Upstream-Status", "old": "Pending", "new": "Submitted https://example.invalid/1"}
    ]
    assert ("+", "+one more") in [(line["outer"], line["text"]) for line in by_name["d.patch"]["lines"]]
    assert by_name["see.patch"]["renamed"] is True
    # c and d changed places: it is enough to say of one of them that it moved.
    assert sum(pair["moved"] for pair in found["pairs"]) == 1
    assert found["metadata"] == [
        {"what": "title", "old": "Changes", "new": "Other changes"},
        {"what": "test", "old": None, "new": "tests/x.py"},
    ]
    assert [fact["what"] for fact in found["files"]] == ["src/whole.h"]
    assert found["differs"] is True
    assert found["new"]["project_commit"] == v2
    assert found["old"]["patches"] == found["new"]["patches"] == 4


def test_the_text_ends_with_what_git_says(project: Toy) -> None:
    write_stack(project, [C, Step("a.patch", {PARTS[0]: code(1, "value += 7;")}), B])
    text = text_of(project, "changes", "v1")
    head, _, gits = text.partition("\n\n")
    assert "new: worktree, 3 patches" in head
    assert re.search(r"^ +1 ! +2  a\.patch +changed", head, re.MULTILINE)
    found = compare(project, "changes", "v1")
    ends = {
        word: [
            pair[word]["commit"]
            for pair in sorted(found["pairs"], key=lambda p: (p[word] or {"number": 0})["number"])
            if pair[word]
        ]
        for word in ("old", "new")
    }
    store = project.cache / "store" / "llama.cpp.git"
    said = git(
        store,
        *("-c", "core.abbrev=12", "range-diff", "--no-color", f"--creation-factor={found['creation_factor']}"),
        f"{ends['old'][0]}^..{ends['old'][-1]}",
        f"{ends['new'][0]}^..{ends['new'][-1]}",
    )
    assert gits == said


def test_nothing_changed(project: Toy) -> None:
    for words in (("v1", "v1"), ("v1",), ("v1", "HEAD"), ("worktree",), ("worktree", "worktree")):
        found = compare(project, "changes", *words, "--exit-code")
        assert [sign for _, sign, _ in rows(found)] == ["="] * 4
        assert found["differs"] is False
        assert found["metadata"] == found["files"] == []


def test_the_exit_code_is_asked_for(project: Toy) -> None:
    write_stack(project, [A, B, C])
    assert compare(project, "changes", "v1", "--exit-code", status=12)["differs"] is True
    assert compare(project, "changes", "v1")["differs"] is True
    # A file's name alone is a change, too.
    write_stack(project, [A, B, C, Step("dee.patch", whole=D.whole, subject="toy : d.patch")])
    assert compare(project, "changes", "v1", "--exit-code", status=12)["differs"] is True


def test_a_rewritten_patch(project: Toy) -> None:
    other = Step("b.patch", {"docs/else.md": long("else", 60)}, subject="toy : something else")
    write_stack(project, [A, other, C, D])
    found = compare(project, "changes", "v1")
    assert {("b.patch", "<", None), (None, ">", "b.patch")} <= set(rows(found))
    assert sum(pair["rewritten"] for pair in found["pairs"]) == 2
    assert found["creation_factor"] == 60
    forced = compare(project, "changes", "v1", "--creation-factor", "9999")
    assert ("b.patch", "!", "b.patch") in rows(forced)


def test_a_small_patch_is_not_told_apart(project: Toy) -> None:
    """git's usual creation factor would call it dropped and added: its one line is most of it."""
    write_stack(project, [A, Step("b.patch", {PARTS[1]: code(2, "value = other(value);")}), C, D])
    found = compare(project, "changes", "v1")
    assert rows(found)[1] == ("b.patch", "!", "b.patch")
    assert found["creation_factor"] > 60
    usual = compare(project, "changes", "v1", "--creation-factor", "60")
    assert ("b.patch", "<", None) in rows(usual)


def test_changes_that_no_difference_shows(project: Toy) -> None:
    write_stack(project, [Step("bin.patch", whole={"data.bin": b"\0one"}), D])
    commit(project, "v2")
    write_stack(
        project, [Step("bin.patch", whole={"data.bin": b"\0two"}), Step("d.patch", whole=D.whole, executable=True)]
    )
    found = compare(project, "changes", "v2", "--exit-code", status=12)
    assert rows(found) == [("bin.patch", "!", "bin.patch"), ("d.patch", "!", "d.patch")]
    assert [[fact["what"] for fact in pair["facts"]] for pair in found["pairs"]] == [
        ["binary file data.bin"],
        ["mode of src/whole.h"],
    ]
    assert {fact["what"] for fact in found["files"]} == {"data.bin", "src/whole.h"}
    assert "    +mode of src/whole.h: 100755" in text_of(project, "changes", "v2").splitlines()


def test_a_date_is_a_change(project: Toy) -> None:
    patch = project.series / "a.patch"
    text = patch.read_text()
    assert "Date: Fri, 2 Jan 2026 12:00:00 +0000" in text
    patch.write_text(text.replace("2 Jan 2026 12:00:00", "2 Jan 2026 13:00:00"))
    (pair, *_) = compare(project, "changes", "v1", "--exit-code", status=12)["pairs"]
    assert pair["facts"] == [{"what": "Date", "old": "2026-01-02T12:00:00+00:00", "new": "2026-01-02T13:00:00+00:00"}]


# -- other bases ---------------------------------------------------------------------------------


def test_a_moved_pin(project: Toy) -> None:
    old_pin = project.commit
    changed = (project.engine / PARTS[0]).read_text().replace("value += 3;", "value += 33;")
    (project.engine / PARTS[0]).write_text(changed)
    git(project.engine, "commit", "--quiet", "--all", "--message", "Go on")
    more = changed.replace("    return value;", "    value += 100;\n    return value;")
    write_stack(project, [Step("a.patch", {PARTS[0]: more}), B, C, D])
    commit(project, "v2")

    found = compare(project, "changes", "v1", "v2", "--exit-code")
    assert (found["old"]["pin"], found["new"]["pin"]) == (old_pin, project.commit)
    assert [sign for _, sign, _ in rows(found)] == ["="] * 4
    assert old_pin[:12] in text_of(project, "changes", "v1", "v2")


def test_the_same_patches_on_another_base(project: Toy) -> None:
    pin = project.commit
    (project.engine / PARTS[0]).write_text(code(1).replace("value += 19;", "value += 190;"))
    (project.engine / "src/part4.cpp").write_text(code(4, "value += 4;"))
    git(project.engine, "commit", "--quiet", "--all", "--message", "Go on")
    # Where b's change is there already.
    (project.engine / PARTS[1]).write_text(code(2, "value += 200;"))
    git(project.engine, "commit", "--quiet", "--all", "--message", "Take b")
    head = project.commit
    conflict = project.run("range-diff", "changes", "v1", f"@{head}")
    assert conflict.status == 6
    assert conflict.json["what"].startswith(f"changes/a.patch conflicts on {head[:12]}")
    assert "forkyard rebase" in conflict.json["next"]
    assert conflict.json["where"] == PARTS[0]

    (project.engine / PARTS[0]).write_text(code(1).replace("value += 1;", "value += 10;"))
    git(project.engine, "commit", "--quiet", "--all", "--message", "Give way")
    head = project.commit
    found = compare(project, "changes", "v1", f"@{head}")
    assert (found["old"]["pin"], found["new"]["pin"]) == (pin, head)
    assert found["old"]["project_commit"] == found["new"]["project_commit"]
    signs = {(pair["new"] or pair["old"])["name"]: pair["sign"] for pair in found["pairs"]}
    assert {signs[name] for name in ("a.patch", "c.patch", "d.patch")} == {"="}
    assert found["new"]["notes"] == [f"{head[:12]} already has all that changes/b.patch does"]
    # All three ways to say it.
    assert compare(project, "changes", f"v1@{head}", f"worktree@{head}")["differs"] is False
    assert compare(project, "changes", f"@{head}", f"v1@{head}")["new"]["pin"] == head
    assert compare(project, "changes", "v1", "@latest")["new"]["pin"] == head


def test_an_unknown_base(project: Toy) -> None:
    assert "names no commit" in refused(project, "changes", "v1", "@0123456789")["what"]


def test_a_stack_after_another(project: Toy) -> None:
    """Only its own patches are compared, on what comes before it."""
    write_stack(project, [Step("upper.patch", {PARTS[3]: code(4, "value += 400;")})], stack="upper")
    (project.root / "patches" / "changes").mkdir(exist_ok=True)
    git(project.root, "checkout", "--quiet", "HEAD", "--", "patches/changes")
    project.edit_recipe('stacks = ["upper"]', 'stacks = ["changes", "upper"]')
    commit(project, "v2")
    write_stack(project, [Step("upper.patch", {PARTS[3]: code(4, "value += 401;")})], stack="upper")
    project.edit_recipe('stacks = ["upper"]', 'stacks = ["changes", "upper"]')
    found = compare(project, "upper", "v2")
    assert rows(found) == [("upper.patch", "!", "upper.patch")]
    assert found["old"]["after"] == ["changes"]
    carried = compare(project, "upper", "v2", f"@{project.commit[:10]}")
    assert rows(carried) == [("upper.patch", "=", "upper.patch")]


# -- revisions -----------------------------------------------------------------------------------


def test_a_revision_without_the_stack(project: Toy) -> None:
    subprocess.run(["rm", "-rf", str(project.root / "patches" / "changes")], check=True)
    project.write_recipe()
    commit(project, "gone")
    found = compare(project, "changes", "gone", "v1")
    assert rows(found) == [(None, ">", step.name) for step in (A, B, C, D)]
    assert found["old"]["pin"] is None
    assert found["files"][0]["old"] is None
    found = compare(project, "changes", "v1")
    assert rows(found) == [(step.name, "<", None) for step in (A, B, C, D)]
    error = refused(project, "changes", "gone")
    assert error["exit_code"] == 3
    assert "no stack 'changes' at gone" in error["what"]


def test_a_revision_before_the_project(project: Toy) -> None:
    git(project.root, "checkout", "--quiet", "--orphan", "empty")
    git(project.root, "rm", "-r", "--quiet", "--cached", ".")
    git(project.root, "commit", "--quiet", "--allow-empty", "--message", "nothing")
    assert rows(compare(project, "changes", "empty")) == [(None, ">", step.name) for step in (A, B, C, D)]


def test_an_old_file_format(project: Toy) -> None:
    recipe = project.root / "recipes" / "toy.toml"
    recipe.write_text(recipe.read_text().replace("schema = 1", "schema = 0"))
    commit(project, "old-recipe")
    project.write_recipe(stacks=["changes"])
    stack = project.root / "patches" / "changes" / "stack.toml"
    good = stack.read_text()
    stack.write_text(good + "legacy = true\n")
    commit(project, "old-stack")
    stack.write_text(good)
    patch = project.series / "a.patch"
    text = patch.read_text()
    patch.write_text(text.replace("Upstream-Status: Pending\n", ""))
    commit(project, "old-patch")
    patch.write_text(text)

    for tag, place, exit_code in (
        ("old-recipe", "recipes/toy.toml:1", 3),
        ("old-stack", "patches/changes/stack.toml:6", 3),
        ("old-patch", "patches/changes/llama.cpp/a.patch", 6),
    ):
        error = refused(project, "changes", tag)
        assert error["exit_code"] == exit_code
        assert error["what"].startswith(f"at {tag} (")
        assert re.fullmatch(r"[0-9a-f]{12}:" + re.escape(place), error["where"]), error["where"]
        assert "scratch" not in json.dumps(error)


def test_an_old_pin_that_cannot_be_had(project: Toy, tmp_path: Path) -> None:
    pin = project.commit
    git(project.engine, "commit", "--quiet", "--amend", "--message", "Another commit of the same tree")
    git(project.engine, "reflog", "expire", "--expire=now", "--all")
    git(project.engine, "gc", "--quiet", "--prune=now")
    write_stack(project, [A, B, C, D])
    error = refused(project, "changes", "v1")
    assert error["exit_code"] == 5
    assert error["what"].startswith("at v1 (")
    assert pin in error["what"]
    assert compare(project, "changes", "worktree")["differs"] is False


def test_words_that_name_nothing(project: Toy) -> None:
    assert refused(project, "changes", "nosuch")["exit_code"] == 2
    assert refused(project, "changes", "v1", "nosuch")["what"] == "the project has no revision 'nosuch'"
    assert refused(project, "change", "v1")["next"] == "did you mean 'changes'?"
    assert refused(project, "changes", "v1", "--engine", "ik_llama.cpp")["exit_code"] == 2
    assert refused(project, "changes", "v1", "--recipe", "nosuch")["exit_code"] == 3
    assert compare(project, "changes", "v1", "--recipe", "toy", "--engine", "llama.cpp")["differs"] is False


def test_a_project_without_git(project: Toy) -> None:
    subprocess.run(["rm", "-rf", str(project.root / ".git")], check=True)
    error = refused(project, "changes", "HEAD")
    assert error["exit_code"] == 2
    assert "not in a git work tree" in error["what"]
    assert compare(project, "changes", f"@{project.commit}")["differs"] is False


def test_a_project_in_a_folder_of_its_repository(project: Toy) -> None:
    subprocess.run(["rm", "-rf", str(project.root / ".git")], check=True)
    above = project.root.parent
    git(above, "init", "--quiet")
    git(above, "add", "project")
    git(above, "commit", "--quiet", "--message", "v1")
    write_stack(project, [A, B])
    assert len(rows(compare(project, "changes", "HEAD"))) == 4


# -- what people see -----------------------------------------------------------------------------


def test_content_that_would_do_harm(project: Toy, tmp_path: Path) -> None:
    evil = "\x1b[31mred\x07 </pre><script>alert(1)</script> \u202e\r\n"
    name = "src/ünï \u2713.txt"
    for tag, tail in (("e1", "one"), ("e2", "two")):
        text = long("text") + evil * 3 + tail + "\r\n"
        subject = "toy : <b>\u00fcber</b> \u2713 &amp;"
        write_stack(project, [Step("evil.patch", {name: text, "x.bin": b"\0" + tail.encode()}, subject=subject)])
        commit(project, tag)
    page = tmp_path / "page.html"
    text = text_of(project, "changes", "e1", "e2", "--html", str(page))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    assert "^[[31mred^G </pre><script>alert(1)</script> <U+202E>^M" in text
    assert "ünï ✓" in text
    written = page.read_text()
    assert "<script" not in written
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
    assert "\x1b" not in written
    found = compare(project, "changes", "e1", "e2")
    assert any("\x1b[31mred" in line["text"] for pair in found["pairs"] for line in pair["lines"])


def on_a_terminal(toy: Toy, *words: str, env: Mapping[str, str]) -> str:
    try:
        outer, inner = os.openpty()
    except OSError as error:
        pytest.skip(f"there is no pseudo-terminal here: {error}")
    child = subprocess.Popen(
        [sys.executable, "-m", "forkyard", "range-diff", *words, "--quiet"],
        env=toy.env({"TERM": "xterm-256color", **env}),
        stdout=inner,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    os.close(inner)
    said = b""
    while True:
        try:
            piece = os.read(outer, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(outer)
    assert child.wait(timeout=1800) == 0
    return said.decode().replace("\r\n", "\n")


def test_colours_are_for_terminals(project: Toy) -> None:
    write_stack(project, [Step("a.patch", {PARTS[0]: code(1, "value += 9;")}), B, C, D])
    plain = text_of(project, "changes", "v1")
    assert "\x1b" not in plain
    coloured = on_a_terminal(project, "changes", "v1", env={})
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert on_a_terminal(project, "changes", "v1", env={"NO_COLOR": "1"}) == plain


def test_only_the_table(project: Toy) -> None:
    write_stack(project, [A, Step("b.patch", {PARTS[1]: code(2, "value += 9;")}), C, D])
    assert "value += 9" not in text_of(project, "changes", "v1", "--stat")
    found = compare(project, "changes", "v1", "--stat")
    assert all("lines" not in pair for pair in found["pairs"])
    assert found["pairs"][1]["lines_added"] == found["pairs"][1]["lines_removed"] == 1


def test_a_page_that_cannot_be_written(project: Toy, tmp_path: Path) -> None:
    assert refused(project, "changes", "v1", "--html", str(tmp_path))["exit_code"] == 2
    page = tmp_path / "new" / "page.html"
    answer = project.run("range-diff", "changes", "v1", "--html", str(page))
    assert answer.json["html"] == str(page)
    assert page.read_text().startswith("<!DOCTYPE html>")


# -- at once, and killed -------------------------------------------------------------------------


def test_two_at_once(project: Toy) -> None:
    write_stack(project, [A, B])
    children = [project.start("range-diff", "changes", "v1") for _ in range(3)]
    answers = [finish(child) for child in children]
    assert [answer.status for answer in answers] == [0, 0, 0]
    assert answers[0].json == answers[1].json == answers[2].json


def test_killed_at_any_instant(project: Toy) -> None:
    expected = compare(project, "changes", "v1")
    for delay in (0.15, 0.3, 0.4, 0.5, 0.6, 0.8):
        child = project.start("range-diff", "changes", "v1")
        time.sleep(delay)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert project.wait_until_alone() == {}
    assert compare(project, "changes", "v1") == expected
    assert list((project.cache / "scratch").iterdir()) == []
    assert git(project.root, "status", "--porcelain") == ""
    project.assert_sound()


def test_a_committed_resolution_is_used(project: Toy) -> None:
    (project.engine / PARTS[0]).write_text(code(1).replace("value += 19;", "value += 190;"))
    git(project.engine, "commit", "--quiet", "--all", "--message", "Go on")
    head = project.commit
    assert project.run("range-diff", "changes", "worktree", f"@{head}").status == 6
    answer = project.run("rebase", "toy", "--to", head)
    while answer.status == 13:
        tree = project.root / "work" / "rebase-toy"
        for path in git(tree, "diff", "--name-only", "--diff-filter=U").split():
            git(tree, "checkout", "--theirs", "--", path)
        git(tree, "add", "--all")
        answer = project.run("rebase", "toy", "--continue")
    assert answer.status == 0
    assert project.run("rebase", "toy", "--undo").json["left"] == []
    kept = project.root / ".forkyard" / "resolutions" / "changes"
    shutil.copytree(
        kept / "llama.cpp", project.root / "patches" / "changes" / "llama.cpp" / "resolutions", dirs_exist_ok=True
    )
    shutil.rmtree(kept)
    found = compare(project, "changes", "worktree", f"@{head}")
    assert any("changes/a.patch conflicts there, and a record" in note for note in found["new"]["notes"])
