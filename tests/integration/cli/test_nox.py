"""The front door on a fresh copy of the project: nox makes the environment whatever the user's pip and Python are told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ..toy import REPOSITORY

NOX = shutil.which("nox") or str(REPOSITORY / ".venv" / "bin" / "nox")


@pytest.mark.skipif(not os.access(NOX, os.X_OK), reason="nox is neither in PATH nor in .venv")
def test_settings_that_send_packages_elsewhere(tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, clone / name)

    def run(variant: str, **extra: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [NOX, "-s", "plan", "--", variant, "llama.cpp"],
            cwd=clone,
            env={**environment, "FORKYARD_CACHE": str(tmp_path / "cache"), **extra},
            capture_output=True,
            text=True,
            timeout=1800,
        )

    elsewhere = tmp_path / "elsewhere"
    harmful = {
        "PIP_PREFIX": str(elsewhere),
        "PIP_USER": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PYTHONPATH": str(tmp_path),
    }
    # Were it read, every command of forkyard would end with it.
    (tmp_path / "click.py").write_text("raise SystemExit('somebody else is imported')\n")
    for extra in (harmful, {}, {"PIP_TARGET": str(elsewhere)}):
        done = run("avx2", **extra)
        assert done.returncode == 0, done.stderr
        assert "build key" in done.stdout
    assert not elsewhere.exists()
    # What was removed is noticed.
    shutil.rmtree(next((clone / ".nox" / "forkyard").glob("lib/python*/site-packages/click")))
    done = run("best")
    assert done.returncode == 0, done.stderr
    assert "highest-ranked variant" in done.stdout
