"""What an empty machine is told comes from the README and from this machine's apt, not from our memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forkyard.errors import ToolchainError, UsageError

from ..newcomer import SETTINGS, mirror, readme_command

ROOT = Path(__file__).resolve().parents[2]


def test_the_commands_are_the_readmes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_command("build", text).endswith("nox -s build")
    assert readme_command("tests", text).endswith("nox -s tests")
    with pytest.raises(UsageError, match="'cure'"):
        readme_command("cure", text)


def test_ci_runs_the_same_test_command() -> None:
    # It takes it from the README itself, and installs nothing from the system.
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- command: tests -->" in script
    assert not re.search(r"apt|dnf|install", script)


def test_the_mirror_is_of_this_release_and_of_its_main_part() -> None:
    listed = "http://a/debian-security bookworm-security main\nhttp://b/debian bookworm contrib\nhttp://b/debian bookworm main"
    assert mirror(listed, "bookworm") == "http://b/debian"
    with pytest.raises(ToolchainError, match="no Debian mirror"):
        mirror(listed, "trixie")


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "https_proxy", "HTTPS_PROXY", "SSL_CERT_FILE", "PIP_CERT"])
def test_a_newcomer_reaches_the_registry(name: str) -> None:
    assert SETTINGS.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["PIP_PREFIX", "PIP_FIND_LINKS", "PYTHONPATH", "FORKYARD_CACHE", "GITHUB_TOKEN", "PIP_TARGET"]
)
def test_a_newcomer_has_nothing_else(name: str) -> None:
    assert not SETTINGS.fullmatch(name)
