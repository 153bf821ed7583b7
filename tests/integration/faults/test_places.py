"""Odd places to build in: folders with odd names, somebody's repository around them, a user the system does not know."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..toy import TIMEOUT_S, Answer, Toy, git, make_toy

NOBODY = 12345


def repository_around(toy: Toy, name: str) -> tuple[Path, str]:
    """Put the toy's cache into a folder of somebody's repository; returns the repository and its commit."""
    around = toy.home / "theirs"
    (around / name).mkdir(parents=True)
    git(around, "init", "--quiet")
    git(around, "commit", "--quiet", "--allow-empty", "--message", "Not ours")
    toy.cache = around / name / "cache"
    return around, git(around, "rev-parse", "--short", "HEAD").strip()


@pytest.mark.parametrize("name", ["run 12:30", "a;b", "a$HOME"])
def test_a_cache_with_a_name_that_programs_take_apart(toy: Toy, name: str) -> None:
    repository_around(toy, name)
    answer = toy.build()
    assert answer.status == 10, answer.stderr
    assert "cache folder" in answer.json["what"]
    assert "FORKYARD_CACHE" in answer.json["next"]
    # Nothing was fetched, and no tree checked out.
    assert not (toy.cache / "store").exists()
    assert not (toy.cache / "trees").exists()


def test_names_that_arrive_whole(toy: Toy, undisturbed: Answer) -> None:
    """All characters the list lets through, at once, for every folder a build has."""
    name = " #%=,`()&!~@^+-é日 "
    _, theirs = repository_around(toy, name)
    toy.out = toy.home / name / "out"
    temporary = toy.home / name / "tmp"
    temporary.mkdir(parents=True)
    (toy.home / name / "in").mkdir()
    toy.root = toy.root.rename(toy.home / name / "in" / "project")
    built = toy.build(env={"TMPDIR": str(temporary)}).built
    assert built["sha256"] == undisturbed.built["sha256"]
    assert theirs.encode() not in Path(built["wheel"]).read_bytes()


def test_a_build_that_passes_by_what_answers_for_git(toy: Toy) -> None:
    """The real git finds no repository around the build, so the id is missing, and a gate says so."""
    repository_around(toy, "inside")
    real = shutil.which("git")
    assert real
    toy.change_engine("CMakeLists.txt", "${GIT_EXECUTABLE} rev-parse", f"{real} rev-parse")
    answer = toy.build()
    assert answer.status == 8, answer.stderr
    assert "[identity]" in answer.json["why"]
    assert toy.wheels() == []


# -- a user without a name or a home -------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[Toy]:
    """A toy that belongs to a user id the system does not know; skips where nobody can become that user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user the system does not know")
    tried = subprocess.run(
        [sys.executable, "-c", "import forkyard"], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False
    )
    if tried.returncode != 0:
        pytest.skip("this Python or this checkout lies where other users cannot read it")
    # Not tmp_path: pytest keeps that from other users.
    with tempfile.TemporaryDirectory(prefix="forkyard-stranger-") as name:
        toy = make_toy(Path(name))
        for path in [Path(name), *Path(name).rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        yield toy


def as_stranger(toy: Toy, *words: str, cwd: Path | None = None, **extra: str) -> Answer:
    """Run forkyard as that user with a bare environment."""
    kept = {name: value for name, value in toy.env().items() if name in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        toy.command(*words),
        cwd=cwd or toy.root,
        env={**kept, "FORKYARD_ROOT": str(toy.root), **extra},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


def test_looking_without_a_home(stranger: Toy) -> None:
    assert as_stranger(stranger, "status").status == 0
    assert as_stranger(stranger, "plan", "sse42").status == 0
    answer = as_stranger(stranger, "doctor")
    assert answer.status == 7
    (cache,) = (check for check in answer.json["checks"] if check["name"] == "cache")
    assert cache["state"] == "missing"
    assert "FORKYARD_CACHE" in cache["fix"]


def test_building_without_a_home(stranger: Toy, undisturbed: Answer) -> None:
    """At once a message about the cache, and with FORKYARD_CACHE the same wheel as everybody's; ccache wants a home, too."""
    words = ("build", "sse42", "--out", str(stranger.out))
    refused = as_stranger(stranger, *words)
    assert refused.status == 10
    assert "FORKYARD_CACHE" in refused.json["next"]
    for environment in ({}, {"HOME": ""}, {"HOME": "relative"}, {"HOME": "/nonexistent"}):
        folder = stranger.home / f"cache-{environment.get('HOME', 'unset').strip('/')}"
        built = as_stranger(stranger, *words, FORKYARD_CACHE=str(folder), **environment).built
        assert built["sha256"] == undisturbed.built["sha256"]


def test_an_output_folder_of_somebody_else(stranger: Toy) -> None:
    """Said at once, not after everything was compiled."""
    with tempfile.TemporaryDirectory() as theirs:
        words = ("build", "sse42", "--out", f"{theirs}/dist", "--no-ccache")
        refused = as_stranger(stranger, *words, FORKYARD_CACHE=str(stranger.cache))
    assert refused.status == 10
    assert "output folder" in refused.json["what"]
    assert "--out" in refused.json["next"]
    assert not (stranger.cache / "store").exists()


def test_building_where_one_may_not_look(stranger: Toy, undisturbed: Answer) -> None:
    with tempfile.TemporaryDirectory() as closed:
        words = ("build", "sse42", "--out", str(stranger.out), "--no-ccache")
        built = as_stranger(stranger, *words, cwd=Path(closed), FORKYARD_CACHE=str(stranger.cache)).built
        assert built["sha256"] == undisturbed.built["sha256"]
