"""Workflows of the hosted CI: what they run is what anybody can run, and they may do no more than they must."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from forkyard.cache import Cache

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
CANARY = FOLDER / "canary.yml"


def read(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    # YAML 1.1 takes the word `on` for a truth value.
    document["on"] = document.pop(True, document.get("on"))
    return document


def jobs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from document["jobs"].values()


def steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in jobs(document) for step in job["steps"]]


def using(document: dict[str, Any], action: str) -> list[dict[str, Any]]:
    return [step for step in steps(document) if str(step.get("uses", "")).partition("@")[0] == action]


@pytest.fixture(params=sorted(FOLDER.glob("*.yml")), ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


@pytest.fixture
def canary() -> dict[str, Any]:
    return read(CANARY)


# -- every workflow ------------------------------------------------------------------------------


def test_it_may_only_read(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in jobs(workflow))


def test_every_action_has_an_exact_version(workflow: dict[str, Any]) -> None:
    used = [str(step["uses"]) for step in steps(workflow) if "uses" in step]
    assert used
    for name in used:
        assert re.fullmatch(r"[\w./-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})", name), name


def test_it_knows_no_secret_and_echoes_none(workflow: dict[str, Any]) -> None:
    text = str(workflow)
    assert "secrets." not in text
    assert "github.token" not in text.lower()
    for step in steps(workflow):
        # What a workflow expression puts into a script is code.
        assert "${{" not in step.get("run", "")
        assert not re.search(r"\b(printenv|env|set -x|set -o xtrace)\b", step.get("run", ""))
    for step in using(workflow, "actions/checkout"):
        assert step["with"]["persist-credentials"] is False


def test_it_ends_and_does_not_pile_up(workflow: dict[str, Any]) -> None:
    assert workflow["concurrency"]["group"]
    assert all(0 < job["timeout-minutes"] <= 360 for job in jobs(workflow))


def test_its_scripts_are_shell(workflow: dict[str, Any]) -> None:
    for step in steps(workflow):
        if "run" in step:
            subprocess.run(["bash", "-n", "-c", step["run"]], check=True, timeout=1800)


# -- the canary ----------------------------------------------------------------------------------


def test_the_canary_runs_every_night_and_when_asked(canary: dict[str, Any]) -> None:
    assert set(canary["on"]) == {"schedule", "workflow_dispatch"}
    (schedule,) = canary["on"]["schedule"]
    minute, hour, *days = schedule["cron"].split()
    assert (minute.isdigit(), hour.isdigit(), days) == (True, True, ["*", "*", "*"])


def test_the_canary_runs_one_session(canary: dict[str, Any]) -> None:
    (job,) = jobs(canary)
    assert job["timeout-minutes"] == 330
    assert [step["run"].strip() for step in steps(canary) if "nox -s" in step.get("run", "")] == ["nox -s canary"]
    # It fails the job: nothing swallows its exit code.
    (step,) = [step for step in steps(canary) if step.get("run", "").strip() == "nox -s canary"]
    assert not {"continue-on-error", "if", "shell"} & set(step)
    assert "continue-on-error" not in job


def test_the_session_is_there() -> None:
    names = {
        node.value for node in ast.walk(ast.parse((ROOT / "noxfile.py").read_text())) if isinstance(node, ast.Constant)
    }
    assert "canary" in names


def test_python_is_new_enough(canary: dict[str, Any]) -> None:
    (step,) = using(canary, "actions/setup-python")
    # A number would make 3.1 of 3.10.
    assert isinstance(step["with"]["python-version"], str)
    assert tuple(map(int, step["with"]["python-version"].split("."))) >= (3, 11)


def test_the_cache_is_forkyards(canary: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Restored before, saved whatever came of it, and the folders are those forkyard uses on that runner."""
    monkeypatch.delenv("FORKYARD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/runner")
    (restore,) = using(canary, "actions/cache/restore")
    (save,) = using(canary, "actions/cache/save")
    assert save["if"] == "always()"
    assert restore["with"]["path"] == save["with"]["path"]
    assert restore["with"]["key"] == save["with"]["key"]
    assert restore["with"]["key"].startswith(restore["with"]["restore-keys"])
    cache = Cache.default()
    paths = {Path(line.replace("~", "/home/runner")) for line in restore["with"]["path"].split()}
    assert paths == {cache.store("x").parent, cache.downloads, cache.ccache}
    order = steps(canary)
    assert order.index(restore) < next(n for n, step in enumerate(order) if step.get("run") == "nox -s canary")
    assert "FORKYARD_CACHE" not in CANARY.read_text()


def test_the_report_is_always_kept_and_shown(canary: dict[str, Any]) -> None:
    (upload,) = using(canary, "actions/upload-artifact")
    assert upload["if"] == "always()"
    assert upload["with"]["path"].rstrip("/") == "canary-report"
    (shown,) = [step for step in steps(canary) if "GITHUB_STEP_SUMMARY" in step.get("run", "")]
    assert shown["if"] == "always()"


@pytest.mark.parametrize("written", [True, False])
def test_the_summary_holds_the_report(canary: dict[str, Any], tmp_path: Path, *, written: bool) -> None:
    (shown,) = [step for step in steps(canary) if "GITHUB_STEP_SUMMARY" in step.get("run", "")]
    if written:
        (tmp_path / "canary-report").mkdir()
        (tmp_path / "canary-report" / "report.md").write_text("# All is well\n")
    summary = tmp_path / "summary"
    subprocess.run(
        ["bash", "-e", "-c", shown["run"]],
        cwd=tmp_path,
        env={"GITHUB_STEP_SUMMARY": str(summary), "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=1800,
    )
    assert summary.read_text() == (
        "# All is well\n" if written else "The canary ended before it could write a report; its log says why.\n"
    )
