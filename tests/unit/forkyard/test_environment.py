from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard import environment
from forkyard.environment import EnvironmentFailure, ensure, own_variables, pip_settings, pip_variables

HARMFUL = {
    "PIP_PREFIX": "/tmp/p",
    "PIP_TARGET": "/tmp/t",
    "PIP_USER": "1",
    "PIP_ROOT": "/tmp/r",
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PIP_CONSTRAINT": "/tmp/c.txt",
    "PIP_NO_DEPS": "1",
    "PIP_DRY_RUN": "1",
    "PIP_PYTHON": "/usr/bin/python3",
    "PIP_NO_BUILD_ISOLATION": "0",
    "PYTHONPATH": "/tmp",
    "PYTHONHOME": "/usr",
    "PYTHONSTARTUP": "/tmp/x.py",
    "PYTHONWARNINGS": "error",
    "VIRTUAL_ENV": "/tmp/v",
    "CONDA_PREFIX": "/tmp/c",
    "__PYVENV_LAUNCHER__": "/tmp/l",
}
WANTED = {
    "PIP_INDEX_URL": "https://mirror.example/simple",
    "PIP_EXTRA_INDEX_URL": "https://other.example/simple",
    "PIP_TRUSTED_HOST": "mirror.example",
    "PIP_CERT": "/tmp/ca.pem",
    "PIP_PROXY": "http://proxy.example",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/tmp/wheels",
    "PIP_CACHE_DIR": "/tmp/cache",
    "PIP_TIMEOUT": "3",
    "PIP_RETRIES": "1",
    "HTTPS_PROXY": "http://proxy.example",
    "NETRC": "/tmp/netrc",
    "SSL_CERT_FILE": "/tmp/ca.pem",
    "PYTHON_KEYRING_BACKEND": "a.b",
    "HOME": "/home/somebody",
    "PATH": os.defpath,
}


def test_only_index_settings_reach_our_environments() -> None:
    assert own_variables({**HARMFUL, **WANTED}) == WANTED


def test_the_listing_of_pip() -> None:
    listing = (
        "global.index-url='https://a.example'\n:env:.index-url='https://env.example'\ninstall.prefix='/tmp/p'\n"
        "global.timeout='5'\ninstall.timeout='6'\ndownload.timeout='7'\nnonsense\nglobal.cert=broken(\n"
    )
    found = pip_settings(listing, ("global", "install", ":env:"))
    assert found == {"index-url": "https://env.example", "prefix": "/tmp/p", "timeout": "6"}


def test_a_configuration_file_gives_its_index_settings_alone(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://file.example/simple\nprefix = /tmp/p\nrequire-virtualenv = true\n"
        "[install]\nuser = true\ntarget = /tmp/t\nextra-index-url =\n    https://one.example\n    https://two.example\n"
    )
    found = pip_variables(Path(sys.executable), {**os.environ, "PIP_CONFIG_FILE": str(config), "PIP_RETRIES": "2"})
    assert found["PIP_INDEX_URL"] == "https://file.example/simple"
    assert found["PIP_EXTRA_INDEX_URL"].split() == ["https://one.example", "https://two.example"]
    assert found["PIP_RETRIES"] == "2"
    assert found["PIP_CONFIG_FILE"] == os.devnull
    assert not {"PIP_PREFIX", "PIP_TARGET", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"} & set(found)


def test_a_configuration_file_pip_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    found = pip_variables(Path(sys.executable), {**os.environ, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")})
    assert found["PIP_CONFIG_FILE"] == os.devnull


# -- the environment itself ----------------------------------------------------------------------------

Made = Callable[..., Path]


class Workbench:
    """A project that needs nothing, and counts of what was done for its environment."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.root.mkdir()
        (self.root / "pyproject.toml").write_text('[project]\nname = "forkyard"\n')
        self.folder = self.root / ".nox" / "forkyard"
        self.made = 0
        self.installed: list[str] = []
        self.runs = True
        self.pip = 0

    def create(self, folder: Path, **_: object) -> None:
        self.made += 1
        if folder.exists():
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "lib" / "python3" / "site-packages").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if command[1:4] == ["-m", "pip", "install"]:
            self.installed.append(command[-1])
            for name in ("click", "click-8.dist-info"):
                (self.folder / "lib" / "python3" / "site-packages" / name).mkdir(exist_ok=True)
            program = self.folder / "bin" / "forkyard"
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            return subprocess.CompletedProcess(command, self.pip, "", "")
        if command[-1] == "--version":
            # Before it ran, nothing says that it is installed.
            assert not (self.folder / environment._STAMP).exists()
            return subprocess.CompletedProcess(command, 0 if self.runs else 1, "", "No module named click")
        return subprocess.CompletedProcess(command, 0, "", "")

    def ensure(self, extra: str = "") -> Path:
        return ensure(self.folder, self.root, extra, lambda _: None)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    made = Workbench(tmp_path)
    monkeypatch.setattr(environment.venv, "create", made.create)
    monkeypatch.setattr(environment.subprocess, "run", made.run)
    return made


def test_it_is_made_once_and_extras_are_added(bench: Workbench) -> None:
    assert bench.ensure() == bench.folder / "bin"
    bench.ensure()
    assert (bench.made, bench.installed) == (1, [str(bench.root)])
    bench.ensure("dev")
    bench.ensure("dev")
    bench.ensure()
    assert (bench.made, bench.installed[1:]) == (1, [f"{bench.root}[dev]"])


def test_what_does_not_run_is_not_installed(bench: Workbench) -> None:
    """As with PIP_PREFIX: pip succeeded, and put the packages somewhere else."""
    bench.runs = False
    for _ in range(2):
        with pytest.raises(EnvironmentFailure, match="does not run: No module named click"):
            bench.ensure()
    bench.runs = True
    bench.ensure()
    assert bench.made == 3


def test_an_installation_that_failed_is_not_installed(bench: Workbench) -> None:
    bench.ensure()
    bench.pip = 1
    with pytest.raises(EnvironmentFailure, match="pip could not install"):
        bench.ensure("dev")
    bench.pip = 0
    # pip may have left half of it: it is made again.
    bench.ensure()
    assert bench.made == 2


def test_an_installation_that_was_cut_off(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.ensure()

    def killed(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment.subprocess, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.ensure("dev")
    bench.ensure("dev")
    assert bench.made == 2


BREAK: dict[str, Callable[[Workbench], object]] = {
    "python deleted": lambda b: (b.folder / "bin" / "python").unlink(),
    "its Python deleted": lambda b: (
        (b.folder / "bin" / "python").unlink(),
        (b.folder / "bin" / "python").symlink_to("/nonexistent/python3"),
    ),
    "forkyard deleted": lambda b: (b.folder / "bin" / "forkyard").unlink(),
    "a package deleted": lambda b: (b.folder / "lib" / "python3" / "site-packages" / "click").rmdir(),
    "a package removed": lambda b: (b.folder / "lib" / "python3" / "site-packages" / "click-8.dist-info").rmdir(),
    "other dependencies": lambda b: (b.root / "pyproject.toml").write_text("[project]\n"),
    "stamp damaged": lambda b: (b.folder / environment._STAMP).write_text("{"),
    "stamp of another kind": lambda b: (b.folder / environment._STAMP).write_text("[]"),
    "library gone": lambda b: (b.folder / environment._STAMP).write_text(
        json.dumps({**json.loads((b.folder / environment._STAMP).read_text()), "library": "/nonexistent/os.py"})
    ),
}


@pytest.mark.parametrize("case", BREAK)
def test_a_broken_environment_is_noticed_and_made_again(bench: Workbench, case: str) -> None:
    bench.ensure()
    BREAK[case](bench)
    bench.ensure()
    assert bench.made == 2


def test_another_python(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.ensure()
    monkeypatch.setattr(environment.sys, "version", "3.99.0 (another)")
    bench.ensure()
    assert bench.made == 2


def test_a_moved_clone(bench: Workbench, tmp_path: Path) -> None:
    bench.ensure()
    bench.root = bench.root.rename(tmp_path / "moved")
    bench.folder = bench.root / ".nox" / "forkyard"
    bench.ensure()
    assert bench.made == 2


def test_a_package_added_by_hand_changes_nothing(bench: Workbench) -> None:
    bench.ensure()
    (bench.folder / "lib" / "python3" / "site-packages" / "mine").mkdir()
    bench.ensure()
    assert bench.made == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Refusing to create a venv in a:b because it contains the PATH separator :."), "Move the project"),
        (subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"]), "python3-venv"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_a_python_that_makes_no_environments(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(environment.venv, "create", fail)
    with pytest.raises(EnvironmentFailure, match=said):
        bench.ensure()
