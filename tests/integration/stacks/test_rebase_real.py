"""The project's own stacks moved between real commits of llama.cpp, there and back; the reports are kept and compared.

`FORKYARD_TEST_UPDATE=1` writes the kept reports anew, for a person to read in `git diff`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forkyard.recipes import KnownPin, load_known_pins

REPOSITORY = Path(__file__).resolve().parents[3]
KEPT = REPOSITORY / "tests" / "resources" / "rebase"
NEWEST, MIDDLE, OLDEST = "0c1e57098bba", "4df29be4f4c3", "7d442abf5c62"
TIMEOUT_S = 1800


@dataclass
class Project:
    """A copy of this project's recipes and patches, with the stacks named alone."""

    root: Path

    def run(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run `forkyard rebase llama.cpp`; its exit status and its answer."""
        command = [sys.executable, "-m", "forkyard", "rebase", "llama.cpp", *words, "--json"]
        env = {**os.environ, "FORKYARD_ROOT": str(self.root)}
        done = subprocess.run(command, env=env, cwd=self.root, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert "Traceback" not in done.stderr, done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return done.returncode, answer

    def files(self) -> dict[str, bytes]:
        """Everything git would see."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for name in ("recipes", "patches")
            for path in sorted((self.root / name).rglob("*"))
            if path.is_file()
        }

    def restore(self, files: dict[str, bytes]) -> None:
        for name in ("recipes", "patches"):
            shutil.rmtree(self.root / name)
        for path, data in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(data)

    def edit(self, path: str, change: Callable[[str], str]) -> None:
        """Change a file in the work tree of the conflict."""
        target = self.root / "work" / "rebase-llama.cpp" / path
        target.write_text(change(target.read_text()))

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.root / "work" / "rebase-llama.cpp", check=True, timeout=1800)


def make_project(root: Path, *stacks: str, patches: Path = REPOSITORY / "patches") -> Project:
    root.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "recipes", root / "recipes")
    for stack in stacks:
        shutil.copytree(patches / stack, root / "patches" / stack)
    recipe = root / "recipes" / "llama.cpp.toml"
    text, count = re.subn(r"(?m)^stacks = .*$", f"stacks = {json.dumps(list(stacks))}", recipe.read_text())
    assert count == 1
    recipe.write_text(text)
    for path in root.rglob("resolutions"):
        shutil.rmtree(path)
    return Project(root)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The stack whose reports are kept; it has patches that conflict on the long way."""
    made = make_project(tmp_path / "project", "fixes")
    # The project's own lock is of all its stacks.
    command = [sys.executable, "-m", "forkyard", "lock", "llama.cpp"]
    subprocess.run(command, env={**os.environ, "FORKYARD_ROOT": str(made.root)}, check=True, timeout=TIMEOUT_S)
    return made


def normal(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what is another one on each machine, or with each word of a patch's own text."""
    gone = {"worktree", "reports", "patched_commit", "next", "history_known"}
    return {key: value for key, value in report.items() if key not in gone}


def compare(report: dict[str, Any], name: str) -> None:
    path, found = KEPT / f"{name}.json", json.dumps(normal(report), indent=1, sort_keys=True) + "\n"
    if os.environ.get("FORKYARD_TEST_UPDATE"):
        path.write_text(found)
    assert json.loads(found) == json.loads(path.read_text()), f"see FORKYARD_TEST_UPDATE in {__file__}"


def by_patch(report: dict[str, Any], key: str) -> dict[str, str]:
    return {patch["patch"].removesuffix(".patch"): patch[key] for patch in report["patches"]}


def test_six_weeks_back_and_forth(project: Project) -> None:
    before = project.files()
    status, back = project.run("--to", MIDDLE)
    assert (status, back["state"], back["counts"]) == (0, "written", {"clean": 7})
    assert f'commit = "{back["to"]["commit"]}"' in project.files()["recipes/llama.cpp.toml"].decode()
    assert "recipes/llama.cpp.lock.toml" in back["written"]
    compare(back, "0c1e5709-to-4df29be4")
    status, forth = project.run("--to", NEWEST)
    assert (status, forth["state"]) == (0, "written")
    compare(forth, "4df29be4-to-0c1e5709")
    assert project.files() == before


def resolve_in_turn(project: Project, report: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Resolve the three conflicts of the long way back, as a person who knows both versions would."""
    asked = []
    while report["state"] == "waiting":
        patch = report["waiting"][1].removesuffix(".patch")
        asked.append(patch)
        if patch == "kshift-null-rotation":
            # The rotation is made by another function there.
            project.edit(
                "src/llama-kv-cache.cpp", lambda text: taken(text, "llama_mul_mat_hadamard", "ggml_mul_mat_aux")
            )
        elif patch == "kshift-unrotated-keys":
            project.git("rm", "--quiet", "src/llama-kv-cache-msa.cpp")
            project.edit("src/llama-kv-cache.cpp", unrotated)
        elif patch == "kshift-indexer-keys":
            # The DSA cache is not there yet.
            project.git("rm", "--quiet", "src/llama-kv-cache-dsa.cpp")
        else:
            pytest.fail(f"{patch} conflicts, which it did not when this test was written: {report['patches']}")
        _, report = project.run("--continue")
    return asked, report


_REGION = re.compile(r"(?ms)^<{27} upstream\n(.*?)^\|{27} before\n(.*?)^={27}\n(.*?)^>{27} patch\n")


def taken(text: str, old: str, new: str) -> str:
    """The patch's side of every conflict, with one word for another."""
    text, count = _REGION.subn(lambda match: match[3].replace(old, new), text)
    assert count
    return text


def unrotated(text: str) -> str:
    """Upstream's side, and behind it what the patch adds, less the model that upstream does not know there."""

    def both(match: re.Match[str]) -> str:
        added = match[3].removesuffix(match[2])
        return match[1] + "\n" + added.replace(" && model.arch != LLM_ARCH_DEEPSEEK4", "").rstrip("\n") + "\n"

    text, count = _REGION.subn(both, text)
    assert count == 1
    return text


def test_real_conflicts_are_resolved_once(project: Project) -> None:
    before = project.files()
    status, first = project.run("--to", OLDEST)
    assert (status, first["state"]) == (13, "waiting")
    assert by_patch(first, "status") == {
        "kshift-null-rotation": "conflict",
        "kshift-whole-heads": "clean",
        "kshift-unrotated-keys": "conflict",
        "kshift-indexer-keys": "conflict",
        "kshift-bf16": "clean",
        "kshift-yarn-magnitude": "clean",
        "amx-tile-config": "clean",
    }
    compare(first, "0c1e5709-to-7d442abf")
    assert project.files() == before
    asked, last = resolve_in_turn(project, first)
    assert asked == ["kshift-null-rotation", "kshift-unrotated-keys", "kshift-indexer-keys"]
    assert (last["state"], last["counts"]) == ("written", {"clean": 4, "resolved": 3})
    compare(last, "0c1e5709-to-7d442abf-resolved")
    after = project.files()
    records = {path: data for path, data in after.items() if path.endswith(".resolution")}
    assert len(records) == 4
    for path, data in records.items():
        assert path.startswith("patches/fixes/llama.cpp/resolutions/")
        # A file that is gone there is said to be gone, and not kept here.
        assert len(data) < 4000
    # A clone of the project as it was, that got the records and nothing else.
    project.restore({**before, **records})
    assert not list((project.root / ".forkyard").rglob("*.resolution"))
    status, again = project.run("--to", OLDEST)
    assert (status, again["state"]) == (0, "written")
    assert by_patch(again, "status") == by_patch(last, "status")
    assert again["patched_commit"] == last["patched_commit"]
    assert project.files() == after


# -- what upstream took in another form ---------------------------------------------------------------


def guard_project(tmp_path: Path, stack: str) -> Project:
    """A project on the oldest pin, with a stack of one patch against a restriction that upstream lifted since."""
    project = make_project(tmp_path / "project", stack, patches=KEPT / "stacks")
    pins = {pin.commit[:12]: pin for pin in load_known_pins(REPOSITORY, "llama.cpp")}
    recipe = project.root / "recipes" / "llama.cpp.toml"
    text, new, old = recipe.read_text(), pins[NEWEST], pins[OLDEST]
    for was, will in zip(values(new), values(old), strict=True):
        assert was in text
        text = text.replace(was, will)
    recipe.write_text(text)
    (project.root / "recipes" / "llama.cpp.lock.toml").unlink()
    return project


def values(pin: KnownPin) -> tuple[str, ...]:
    return pin.commit, pin.tree, pin.date, pin.source.version, pin.source.sha256


def test_a_patch_that_upstream_took_in_another_form(tmp_path: Path) -> None:
    """The patch takes a restriction away. So did upstream, and changed what follows it: a conflict, and yet not needed."""
    project = guard_project(tmp_path, "kv-guard-gone")
    status, report = project.run("--to", MIDDLE, "--dry-run")
    assert status == 13
    (patch,) = report["patches"]
    assert (patch["status"], patch["verdict"]) == ("conflict", "merged-modified")
    assert patch["evidence"][0].startswith("no line of upstream's src/llama-context.cpp matches SPLIT_MODE_TENSOR and")
    assert patch["evidence"][1] == "this was not so on the old base"
    compare(report, "kv-guard-gone")
    status, report = project.run("--to", MIDDLE, "--retire")
    assert (status, report["state"], report["counts"]) == (0, "written", {"dropped": 1})
    folder = project.root / "patches" / "kv-guard-gone" / "llama.cpp"
    assert [path.name for path in folder.iterdir()] == ["series"]
    assert (folder / "series").read_text() == ""


def test_the_newest_pin_is_known_without_a_network(project: Project) -> None:
    status, report = project.run("--to", "latest", "--offline", "--dry-run")
    assert (status, report["to"]["commit"][:12]) == (0, NEWEST)
