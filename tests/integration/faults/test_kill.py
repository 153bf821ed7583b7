"""Killed at any moment, built again: the same bytes, nothing half-made, no compiler left behind."""

from __future__ import annotations

import concurrent.futures
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from ..toy import Answer, Toy, assert_complete_wheels, assert_sound_cache, finish, make_toy

ENDLESS_S = 600.0
"""A compiler that takes this long, and is gone soon after the command that started it, was ended by it."""
SEED = int(os.environ.get("FORKYARD_TEST_SEED", "20260102"))


def moments(count: int) -> list[float]:
    """One random moment in each of ``count`` parts of a build: together they cover all of it."""
    numbers = random.Random(SEED)
    return [(number + numbers.random()) / count for number in range(count)]


def kill(pid: int, *, group: bool) -> None:
    """Kill one process, or its group, as the kernel does when memory is short."""
    (os.killpg if group else os.kill)(pid, signal.SIGKILL)


def timed_build(toy: Toy) -> float:
    """Seconds of an undisturbed build, from the command's start to its end."""
    started = time.perf_counter()
    assert toy.build().status == 0
    return time.perf_counter() - started


def killed_then_built(toy: Toy, after_s: float, *, group: bool, expected: str) -> bool:
    """Kill a build after some seconds, look at what it leaves, build again; whether it was killed before its end."""
    child = toy.start_build()
    time.sleep(after_s)
    kill(child.pid, group=group)
    cut_off = finish(child).status == -signal.SIGKILL
    assert toy.wait_until_alone() == {}
    assert_complete_wheels(toy.out, hidden_allowed=True)
    assert_sound_cache(toy.cache)
    assert toy.build().built["sha256"] == expected
    toy.assert_sound()
    assert list((toy.cache / "scratch").iterdir()) == []
    assert [path.name for path in toy.out.iterdir() if path.name.startswith(".")] == []
    return cut_off


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.deep)])
def test_killed_at_random_moments(tmp_path: Path, undisturbed: Answer, count: int) -> None:
    """From the fetching of the source to the packing; the process alone and its whole group, in turns."""
    toys = [make_toy(tmp_path / str(number)) for number in range(count)]
    cut_off = []
    # Two at a time: most of a build is one process that waits for another.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(timed_build, [make_toy(tmp_path / name) for name in ("one", "other")]))
        print(f"FORKYARD_TEST_SEED={SEED}; an undisturbed build takes {measured} s")
        running = {}
        for number, moment in enumerate(moments(count)):
            after_s, group = moment * sum(measured) / 2, number % 2 == 1
            what = f"SIGKILL to the {'group' if group else 'process'} after {after_s:.3f} s"
            expected = undisturbed.built["sha256"]
            running[what] = pool.submit(killed_then_built, toys[number], after_s, group=group, expected=expected)
        for what, result in running.items():
            print(what)
            cut_off.append(result.result())
    # A moment near the end may come too late on a machine that became faster meanwhile; not many of them.
    assert sum(cut_off) >= count // 2


def test_killed_in_the_middle_of_compiling(toy: Toy, undisturbed: Answer) -> None:
    child = toy.start_compiling(*toy.build_arguments("--jobs", "1"), takes_s=ENDLESS_S)
    kill(child.pid, group=False)
    finish(child)
    assert toy.wait_until_alone() == {}
    again = toy.build()
    assert again.built["sha256"] == undisturbed.built["sha256"]
    # It went on where it was: what was compiled stays compiled.
    assert 0 < len(again.built["compiled"]) <= len(undisturbed.built["compiled"])


def test_interrupted(toy: Toy, undisturbed: Answer) -> None:
    child = toy.start_compiling(*toy.build_arguments("--jobs", "1"), takes_s=ENDLESS_S)
    child.send_signal(signal.SIGINT)
    answer = finish(child)
    assert answer.status == 130
    assert "running the same command again continues" in answer.stderr
    assert toy.wait_until_alone() == {}
    assert not toy.wheels()
    assert list((toy.cache / "scratch").iterdir()) == []
    assert toy.build().built["sha256"] == undisturbed.built["sha256"]
    toy.assert_sound()


def test_terminated(toy: Toy, undisturbed: Answer) -> None:
    child = toy.start_compiling(*toy.build_arguments("--jobs", "1"), takes_s=ENDLESS_S)
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
    child = toy.start(*toy.build_arguments(), env={"PATH": f"{slow}:{toy.env()['PATH']}"})
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
