"""The same recipe gives the same wheel, whatever the machine, the folder, the environment and the way there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..toy import TIMEOUT_S, Answer, Toy, git

ELSEWHERE = {
    "TZ": "Asia/Kathmandu",
    "LANG": "tr_TR.UTF-8",
    "LC_ALL": "C",
    "LANGUAGE": "de",
    "CFLAGS": "-O0 -g3",
    "CXXFLAGS": "-O0",
    "CPPFLAGS": "-DTOY",
    "LDFLAGS": "-Wl,-O2",
    "CPATH": "/usr/include",
    "CMAKE_ARGS": "-DTOY=1",
    "CMAKE_GENERATOR": "Unix Makefiles",
    "CMAKE_BUILD_PARALLEL_LEVEL": "7",
    "SKBUILD_CMAKE_DEFINE": "A=B",
    "SOURCE_DATE_EPOCH": "1",
    "PYTHONHASHSEED": "7",
    "GIT_DIR": "/nowhere",
    "GIT_AUTHOR_NAME": "Somebody",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.autocrlf",
    "GIT_CONFIG_VALUE_0": "true",
    "USER": "somebody",
    "LOGNAME": "somebody",
    "TERM": "xterm-256color",
}


def test_another_machine(toy: Toy, undisturbed: Answer) -> None:
    """Another host name, umask, locale, time zone, and an environment full of compiler flags."""
    words = toy.command(*toy.build_arguments())
    named = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    allowed = shutil.which("unshare") and subprocess.run([*named, "true"], capture_output=True).returncode == 0
    command = ["sh", "-c", 'umask 077 && exec "$@"', "sh", *(named if allowed else []), *words]
    done = subprocess.run(
        command, cwd=toy.home, env=toy.env(ELSEWHERE), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.built["sha256"] == undisturbed.built["sha256"]
    # What is published may be read by everybody, whoever's umask it was.
    assert Path(answer.built["wheel"]).stat().st_mode & 0o777 == 0o644


def test_another_number_of_jobs(toy: Toy, undisturbed: Answer) -> None:
    jobs = "1" if len(os.sched_getaffinity(0)) > 1 else "2"
    assert toy.build("--jobs", jobs).built["sha256"] == undisturbed.built["sha256"]


def test_with_ccache_cold_and_warm(toy: Toy, undisturbed: Answer) -> None:
    cold = toy.build("--with-ccache").built
    assert cold["sha256"] == undisturbed.built["sha256"]
    toy.run("clean", "builds", "wheels")
    warm = toy.build("--with-ccache").built
    assert warm["ccache"]["misses"] == 0
    assert warm["sha256"] == undisturbed.built["sha256"]


def test_other_folders(toy: Toy, undisturbed: Answer) -> None:
    """Long, short, with spaces and letters beyond ASCII; inside somebody's repository; the project moved."""
    around = toy.home / "a parent répository with a long name"
    around.mkdir()
    git(around, "init", "--quiet")
    (around / "CMakeLists.txt").write_text("this is not ours\n")
    git(around, "add", "--all")
    git(around, "commit", "--quiet", "--message", "Not ours")
    git(around, "tag", "b99999")
    toy.cache = around / "the cache"
    toy.out = around / "out put"
    toy.root = toy.root.rename(around / "the project")
    built = toy.build().built
    assert built["sha256"] == undisturbed.built["sha256"]


def test_a_recipe_outside_the_project(toy: Toy, undisturbed: Answer) -> None:
    mine = toy.home / "my recipe.toml"
    shutil.copy(toy.recipe, mine)
    toy.recipe.unlink()
    assert toy.build(str(mine)).built["sha256"] == undisturbed.built["sha256"]


def test_after_another_tree_in_the_same_folders(toy: Toy, undisturbed: Answer) -> None:
    """Nothing of what was built there before is left in the wheel."""
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"), ("src/parts.h", "value * 3", "value * 4"))
    toy.build()
    toy.edit_recipe('stacks = ["changes"]', "stacks = []")
    assert toy.build().built["sha256"] == undisturbed.built["sha256"]


def test_the_command_from_anywhere(toy: Toy, undisturbed: Answer) -> None:
    """Found from inside the project, with relative paths, by the installed command."""
    script = Path(sys.executable).with_name("forkyard")
    command = [script if script.exists() else sys.executable, *([] if script.exists() else ["-m", "forkyard"])]
    env = {name: value for name, value in toy.env().items() if name != "FORKYARD_ROOT"}
    done = subprocess.run(
        [*command, "build", "sse42", "--out", "../out", "--no-ccache", "--json"],
        cwd=toy.root / "recipes",
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.built["sha256"] == undisturbed.built["sha256"]
    assert list((toy.root / "out").glob("forkyard_toy_*.whl"))
