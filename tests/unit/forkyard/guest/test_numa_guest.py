"""The command itself, short of a boot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forkyard.cli import main
from forkyard.guest.cases import CASES


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["numa-guest", *words])


def test_the_list_needs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = call("--list", "--json")
    assert done.exit_code == 0
    assert [row["case"] for row in json.loads(done.stdout)["cases"]] == [case.name for case in CASES]


def test_a_case_that_does_not_exist() -> None:
    done = call("nonsense", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"] == "usage"


def test_a_wheel_belongs_to_an_engine(tmp_path: Path) -> None:
    (tmp_path / "x.whl").touch()
    assert call("--wheel", str(tmp_path / "x.whl")).exit_code == 2


def test_without_qemu_the_answer_is_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = call("--json")
    assert done.exit_code == 7
    assert "qemu-system-x86" in json.loads(done.stdout)["next"]
