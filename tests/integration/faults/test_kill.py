"""Killed at any moment, built again: the same bytes, nothing half-made, no compiler left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest

from ..toy import Answer, Toy, assert_complete_wheels, assert_sound_cache, finish, make_toy

MOMENTS = 20
SEED = int(os.environ.get("FORKYARD_TEST_SEED", "20260102"))


@pytest.fixture(scope="module")
def duration_s(undisturbed: Answer, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a build that nothing disturbs takes now, from the command's start to its end, in seconds."""
    toy = make_toy(tmp_path_factory.mktemp("measured"))
    started = time.perf_counter()
    assert toy.build().built["sha256"] == undisturbed.built["sha256"]
    return time.perf_counter() - started


def moments() -> list[float]:
    """One random moment in each twentieth of a build: together they cover all of it."""
    numbers = random.Random(SEED)
    return [(number + numbers.random()) / MOMENTS for number in range(MOMENTS)]


def kill(pid: int, *, group: bool) -> None:
    """Kill one process, or its group, as the kernel does when memory is short."""
    (os.killpg if group else os.kill)(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "moment"), list(enumerate(moments())), ids=lambda value: f"{value:.3g}")
def test_killed_at_a_random_moment(
    toy: Toy, undisturbed: Answer, duration_s: float, number: int, moment: float
) -> None:
    group = number % 2 == 1
    print(f"seed {SEED}: SIGKILL to the {'group' if group else 'process'} after {moment * duration_s:.3f} s")
    child = toy.start_build()
    time.sleep(moment * duration_s)
    kill(child.pid, group=group)
    finish(child)
    assert toy.wait_until_alone() == {}
    assert_complete_wheels(toy.out, hidden_allowed=True)
    assert_sound_cache(toy.cache)
    again = toy.build()
    assert again.built["sha256"] == undisturbed.built["sha256"]
    toy.assert_sound()
    assert list((toy.cache / "scratch").iterdir()) == []
    assert [path.name for path in toy.out.iterdir() if path.name.startswith(".")] == []


def test_killed_in_the_middle_of_compiling(toy: Toy, undisturbed: Answer) -> None:
    child = toy.start_build("--jobs", "1")
    toy.wait_for_compiling(child)
    kill(child.pid, group=False)
    finish(child)
    assert toy.wait_until_alone() == {}
    again = toy.build()
    assert again.built["sha256"] == undisturbed.built["sha256"]
    # It went on where it was: what was compiled stays compiled.
    assert 0 < len(again.built["compiled"]) <= len(undisturbed.built["compiled"])


def test_killed_again_and_again(toy: Toy, undisturbed: Answer, duration_s: float) -> None:
    for moment in (0.35, 0.5, 0.65, 0.8):
        child = toy.start_build()
        time.sleep(moment * duration_s)
        kill(child.pid, group=False)
        finish(child)
    assert toy.build().built["sha256"] == undisturbed.built["sha256"]
    toy.assert_sound()


def test_interrupted(toy: Toy, undisturbed: Answer) -> None:
    child = toy.start_build("--jobs", "1")
    toy.wait_for_compiling(child)
    child.send_signal(signal.SIGINT)
    answer = finish(child)
    assert answer.status == 130
    assert "running the same command again continues" in answer.stderr
    assert toy.wait_until_alone(within_s=1.0) == {}
    assert not toy.wheels()
    assert list((toy.cache / "scratch").iterdir()) == []
    assert toy.build().built["sha256"] == undisturbed.built["sha256"]
    toy.assert_sound()


def test_terminated(toy: Toy, undisturbed: Answer) -> None:
    child = toy.start_build("--jobs", "1")
    toy.wait_for_compiling(child)
    child.terminate()
    assert finish(child).status == -signal.SIGTERM
    assert toy.wait_until_alone() == {}
    assert not toy.wheels()
    assert toy.build().built["sha256"] == undisturbed.built["sha256"]
    toy.assert_sound()


def test_a_git_that_outlives_its_forkyard_keeps_the_tree_locked(toy: Toy, undisturbed: Answer) -> None:
    """Killed while git checks out: the next build must wait for that git, which would write below its compilers."""
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"))
    slow = toy.home / "slow"
    slow.mkdir()
    real = shutil.which("git")
    (slow / "git").write_text(
        f'#!/bin/sh\ncase "$*" in *read-tree*-u*) touch {toy.home}/began; sleep 2;; esac\nexec {real} "$@"\n'
    )
    (slow / "git").chmod(0o755)
    child = toy.start(*toy.build_arguments(), env={"PATH": f"{slow}:{os.environ['PATH']}"})
    deadline = time.monotonic() + 60
    while not (toy.home / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill(child.pid, group=False)
    toy.edit_recipe('stacks = ["changes"]', "stacks = []")
    answer = toy.build()
    assert "waiting for" in answer.stderr
    assert answer.built["sha256"] == undisturbed.built["sha256"]
    assert "value + 3;" in next((toy.cache / "trees").glob("*/src/part3.cpp")).read_text()


def test_torn_files_in_the_build_folder_never_make_a_wheel(toy: Toy, undisturbed: Answer) -> None:
    """What a power cut may leave, and a kill cannot: files of the right length without their content."""
    toy.build()
    for path in sorted((toy.cache / "build").rglob("*")):
        if path.suffix in {".o", ".so"} or path.name in {".ninja_deps", ".ninja_log"}:
            path.write_bytes(b"\0" * path.stat().st_size)
    for record in (toy.cache / "wheels").glob("*/record.json"):
        record.write_bytes(b"")
    for path in toy.out.iterdir():
        path.unlink()
    answer = toy.build()
    if answer.status != 0:
        assert answer.status == 9
        assert "forkyard clean builds" in answer.json["next"]
        assert toy.run("clean", "builds").status == 0
        answer = toy.build()
    assert answer.built["sha256"] == undisturbed.built["sha256"]
