"""The rebase command as people use it, on the toy engine: what it says, what it writes, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..toy import REPOSITORY, TIMEOUT_S, Toy, git
from .rebasing import clean_hop, hard_hop, move_on, project_files, rebase, resolve, worktree


def test_without_conflicts(toy: Toy) -> None:
    old, new = clean_hop(toy)
    # Upstream's count of another commit is not known, so it would not come back.
    toy.edit_recipe("build-number = 7", "build-number = 0")
    assert toy.run("lock", "toy").status == 0
    before = project_files(toy)
    answer = rebase(toy, "--to", new)
    assert answer.status == 0
    report = answer.json
    assert (report["state"], report["counts"], report["history_known"]) == ("written", {"clean": 2}, True)
    assert [patch["verdict"] for patch in report["patches"]] == ["unknown", "unknown"]
    after = project_files(toy)
    assert f'commit = "{new}"' in after["recipes/toy.toml"].decode()
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == set(report["written"])
    assert {"recipes/toy.toml", "recipes/toy.lock.toml"} <= changed
    # The lock is the very one that `forkyard lock` writes, and the patched commit is the one a build makes.
    assert toy.run("lock", "toy", "--check").status == 0
    assert report["patched_commit"] in after["recipes/toy.lock.toml"].decode()
    back = rebase(toy, "--to", old)
    assert back.status == 0
    assert project_files(toy) == before


def test_conflicts_from_start_to_end(toy: Toy) -> None:
    _, new = hard_hop(toy)
    before = project_files(toy)
    answer = rebase(toy, "--to", new)
    assert answer.status == 13
    report = answer.json
    assert [patch["status"] for patch in report["patches"]] == ["conflict", "clean", "conflict"]
    assert [patch["follows_conflict"] for patch in report["patches"]] == [False, True, True]
    # Each conflict is traced to the commit of upstream's that caused it.
    subjects = [culprit["subject"] for patch in report["patches"] for culprit in patch["culprits"]]
    assert subjects == ["Change part 1", "Change part 2"]
    assert project_files(toy) == before
    assert report["next"][0] == f"cd {worktree(toy)}"
    waiting = rebase(toy, "--status")
    assert waiting.status == 13
    assert waiting.json["report"]["waiting"] == ["changes", "one.patch"]
    early = rebase(toy, "--continue")
    assert early.status == 2
    assert "one.patch is not resolved: src/part1.cpp" in early.json["what"]
    resolve(toy, 1)
    second = rebase(toy, "--continue")
    assert second.status == 13
    assert second.json["waiting"] == ["changes", "three.patch"]
    resolve(toy, 2)
    last = rebase(toy, "--continue")
    assert last.status == 0
    assert last.json["counts"] == {"clean": 1, "resolved": 2}
    assert rebase(toy, "--status").status == 2
    records = {path: data for path, data in project_files(toy).items() if path.endswith(".resolution")}
    assert len(records) == 2
    # Another clone with the records alone: no question.
    after = project_files(toy)
    for path, data in before.items():
        (toy.root / path).write_bytes(data)
    shutil.rmtree(toy.root / ".forkyard")
    again = rebase(toy, "--to", new)
    assert again.status == 0
    assert again.json["counts"] == {"clean": 1, "resolved": 2}
    assert project_files(toy) == after


def test_skip_and_abort(toy: Toy) -> None:
    _, new = hard_hop(toy)
    before = project_files(toy)
    assert rebase(toy, "--to", new).status == 13
    skipped = rebase(toy, "--skip")
    assert skipped.status == 13
    assert [patch["status"] for patch in skipped.json["patches"]] == ["dropped", "clean", "conflict"]
    answer = rebase(toy, "--abort")
    assert (answer.status, answer.json["aborted"]) == (0, True)
    assert project_files(toy) == before
    assert list((toy.root / "work").iterdir()) == []
    assert rebase(toy, "--abort").status == 2


def test_reports(toy: Toy, tmp_path: Path) -> None:
    _, new = hard_hop(toy)
    folder = tmp_path / "reports" / "here"
    answer = rebase(toy, "--to", new, "--dry-run", "--report-dir", str(folder))
    assert answer.status == 13
    assert answer.json["reports"] == [str(folder / f"report.{kind}") for kind in ("json", "md", "html")]
    assert not (toy.root / ".forkyard" / "rebase").exists()
    kept = json.loads((folder / "report.json").read_text())
    assert kept == {key: value for key, value in answer.json.items() if key != "reports"}
    markdown = (folder / "report.md").read_text()
    assert "| changes/one.patch | conflict | unknown |" in markdown
    assert re.search(r'Since upstream\'s [0-9a-f]{12} "Change part 1"', markdown)
    page = (folder / "report.html").read_text()
    assert "+ 111;" in page
    assert "http" not in page.replace("http-equiv", "")
    bad = rebase(toy, "--to", new, "--dry-run", "--report-dir", str(toy.recipe))
    assert (bad.status, bad.json["error"]) == (10, "storage")


def test_text_for_people(toy: Toy) -> None:
    _, new = hard_hop(toy)
    command = [sys.executable, "-m", "forkyard", "rebase", "toy", "--to", new]
    done = subprocess.run(command, env=toy.env(), cwd=toy.home, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 13
    assert re.search(
        r"changes/one\.patch +conflict +unknown\n +src/part1\.cpp:\d+ +contents\n +since [0-9a-f]{12} ", done.stdout
    )
    assert "forkyard rebase toy --continue" in done.stdout
    assert "(tried on a provisional tree)" in done.stdout


def test_some_stacks_into_a_folder(toy: Toy, tmp_path: Path) -> None:
    old = toy.commit
    toy.stack("first", {"one": [("src/part1.cpp", "+ 1;", "+ 11;")]}, order=1)
    toy.stack("second", {"two": [("src/part2.cpp", "+ 2;", "+ 22;")]}, on="first", order=2)
    new = move_on(toy, ("src/part4.cpp", "value + 4", "value + 44"))
    before, out = project_files(toy), tmp_path / "out"
    answer = rebase(toy, "--to", new, "--stack", "second", "--out", str(out))
    assert (answer.status, answer.json["state"]) == (0, "written")
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["series", "two.patch"]
    assert project_files(toy) == before
    told = rebase(toy, "--to", new, "--stack", "second")
    assert (told.status, told.json["state"]) == (0, "not written")
    assert old in toy.recipe.read_text()


def test_merged_and_retired(toy: Toy) -> None:
    toy.stack(
        "changes",
        {
            "merged": [("src/part1.cpp", "+ 1;", "+ 11;")],
            "kept": [("src/part3.cpp", "value + 3", "value + 33")],
        },
    )
    move_on(toy, ("src/part1.cpp", "+ 1;", "+ 11;"), subject="The same, by upstream")
    new = move_on(toy, ("src/part4.cpp", "value + 4", "value + 44"))
    answer = rebase(toy, "--to", new)
    assert answer.status == 0
    merged, kept = answer.json["patches"]
    assert (merged["status"], merged["verdict"]) == ("dropped", "merged")
    assert "same patch id" in merged["evidence"][0]
    assert (kept["status"], kept["verdict"]) == ("clean", "unknown")
    assert (toy.root / "patches/changes/llama.cpp/series").read_text() == "kept.patch\n"


def test_taken_and_taken_back_inside_a_larger_commit(toy: Toy) -> None:
    toy.stack("changes", {"fix": [("src/part1.cpp", "+ 1;", "+ 11;")]})
    taken = move_on(toy, ("src/part1.cpp", "+ 1;", "+ 11;"), subject="The same, by upstream")
    new = move_on(toy, ("src/part1.cpp", "+ 11;", "+ 1;"), ("src/part4.cpp", "value + 4", "value + 44"))
    answer = rebase(toy, "--to", new)
    assert (answer.status, answer.json["state"]) == (0, "written")
    (fix,) = answer.json["patches"]
    assert (fix["status"], fix["verdict"]) == ("clean", "unknown")
    assert f"upstream commit {taken} makes the same change" in fix["evidence"][0]
    assert f"it is not there now: {new} took it back" in fix["evidence"][0]
    assert (toy.root / "patches/changes/llama.cpp/series").read_text() == "fix.patch\n"


@pytest.mark.parametrize(
    ("words", "status", "what"),
    [
        ((), 2, "nothing says where to rebase to"),
        (("--to", "latest", "--abort"), 2, "exclude each other"),
        (("--continue", "--skip"), 2, "exclude each other"),
        (("--continue",), 2, "no rebase of toy is under way"),
        (("--to", "garbage"), 3, "'garbage' names no commit of toy"),
        (("--to", "-x"), 3, "names no commit"),
        (("--to", "abcdef0"), 3, "'abcdef0' names no commit of toy"),
        (("--to", "9" * 40), 5, "no source delivered toy"),
        (("--to", "main", "--source", "/nowhere"), 3, "'main' names no commit"),
        (("--to", "latest", "--stack", "none-such"), 3, "there is no stack 'none-such'"),
    ],
)
def test_words_that_mean_nothing(toy: Toy, words: tuple[str, ...], status: int, what: str) -> None:
    answer = rebase(toy, *words)
    assert answer.status == status, answer
    assert what in answer.json["what"]
    assert answer.json["next"] or answer.json["why"]


def test_names_of_commits(toy: Toy) -> None:
    """A ref is that ref and not one that ends alike; a tag is the commit it stands for."""
    _, new = clean_hop(toy)
    git(toy.engine, "branch", "feature/side", f"{new}^")
    git(toy.engine, "tag", "--annotate", "v2", "--message", "two", new)
    git(toy.engine, "branch", "side", new)
    for word in ("main", "v2", "side", "HEAD", "refs/heads/main", "latest"):
        answer = rebase(toy, "--to", word, "--dry-run")
        assert (answer.status, answer.json.get("to", {}).get("commit")) == (0, new), word
    given = rebase(toy, "--to", "side", "--dry-run", "--source", str(toy.engine))
    assert given.json["to"]["commit"] == new


def test_the_toy_still_builds_after_a_rebase(toy: Toy) -> None:
    _, new = clean_hop(toy)
    assert rebase(toy, "--to", new).status == 0
    built = toy.build().built
    assert built["sha256"]
    assert "value + 44" in next((toy.cache / "trees").glob("*/src/part4.cpp")).read_text()
    assert "+ 11;" in next((toy.cache / "trees").glob("*/src/part1.cpp")).read_text()


def test_the_guide_can_be_followed(toy: Toy) -> None:
    """The first block of docs/rebase.md, typed line by line."""
    _, new = hard_hop(toy)
    git(toy.root, "init", "--quiet")
    (toy.root / ".gitignore").write_text("work/\n.forkyard/\n")
    git(toy.root, "add", "--all")
    git(toy.root, "commit", "--quiet", "--message", "before")
    block = (REPOSITORY / "docs" / "rebase.md").read_text().split("```sh\n")[1].split("```")[0]
    lines = [
        line.split("#")[0].strip().replace("llama.cpp", "toy").replace("COMMIT", new) for line in block.splitlines()
    ]
    go_on = lines[2:5]
    assert go_on[2] == "forkyard rebase toy --continue"
    said = []
    for number, line in enumerate([*lines[:2], *go_on, *go_on, lines[5]]):
        if "add --all" in line:
            resolve(toy, 1 if number < 5 else 2)
        words = line.split()
        command = [sys.executable, "-m", *words] if words[0] == "forkyard" else words
        done = subprocess.run(command, env=toy.env(), cwd=toy.root, capture_output=True, text=True, timeout=TIMEOUT_S)
        said.append((done.returncode, done.stdout))
    assert [status for status, _ in said] == [13, 13, 0, 0, 13, 0, 0, 0, 0]
    assert "both modified:   src/part1.cpp" in said[2][1]
    for path in ("recipes/toy.toml", "patches/changes/llama.cpp/one.patch"):
        assert path in said[-1][1]


def test_the_guide_names_only_what_there_is() -> None:
    """Every `forkyard rebase` in docs/rebase.md has options that the command knows."""
    guide = (REPOSITORY / "docs" / "rebase.md").read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "forkyard", "rebase", "--help"], capture_output=True, text=True, timeout=1800, check=True
    ).stdout
    known = set(re.findall(r"--[a-z][a-z-]*", shown))
    commands = re.findall(r"forkyard rebase [^`\n]*", guide)
    assert len(commands) >= 8
    for command in commands:
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", command)) <= known, command
    assert {option for option in known if option not in {"--help", "--quiet"}} <= set(
        re.findall(r"--[a-z][a-z-]*", guide)
    )
