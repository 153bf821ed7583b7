"""A rebase killed, crowded, starved and misled: the project is all as before or all as after, and it can go on."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from ..faults.test_storage import assert_storage_error, namespace, twice
from ..toy import Toy, finish, git, make_toy
from .rebasing import clean_hop, hard_hop, move_on, project_files, rebase, resolve, worktree

MOMENTS = int(os.environ.get("FORKYARD_TEST_MOMENTS", "6"))
SEED = int(os.environ.get("FORKYARD_TEST_SEED", "20260103"))


def moments(salt: int) -> list[float]:
    """One random share of the whole time in each of some equal parts of it."""
    numbers = random.Random(SEED + salt)
    return [(number + numbers.random()) / MOMENTS for number in range(MOMENTS)]


def killed(toy: Toy, after_s: float, *words: str, group: bool) -> bool:
    """Start a rebase and kill it; whether it was killed before its end."""
    child = toy.start("rebase", "toy", *words)
    time.sleep(after_s)
    (os.killpg if group else os.kill)(child.pid, signal.SIGKILL)
    cut_off = finish(child).status == -signal.SIGKILL
    assert toy.wait_until_alone() == {}
    return cut_off


def timed(toy: Toy, *words: str) -> float:
    started = time.perf_counter()
    assert rebase(toy, *words).status in (0, 13)
    return time.perf_counter() - started


def copied(toy: Toy, folder: Path) -> Toy:
    """A toy just like another one."""
    shutil.copytree(toy.root.parent, folder, symlinks=True)
    parts = {
        name: folder / path.relative_to(toy.root.parent) for name, path in vars(toy).items() if isinstance(path, Path)
    }
    made = Toy(**parts)
    made.recipe.write_text(made.recipe.read_text().replace(str(toy.root.parent), str(folder)))
    return made


def assert_all_or_none(toy: Toy, *allowed: dict[str, bytes]) -> None:
    """After the next forkyard that looks at the project, its files are one of some whole sets."""
    toy.run("status")
    found = {path: data.replace(str(toy.root.parent).encode(), b"HERE") for path, data in project_files(toy).items()}
    for one in allowed:
        if found == one:
            return
    pytest.fail(f"half-rebased: {sorted(found)}")


def normal(toy: Toy) -> dict[str, bytes]:
    return {path: data.replace(str(toy.root.parent).encode(), b"HERE") for path, data in project_files(toy).items()}


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """A rebase without conflicts: from reading the recipe to the last file."""
    first = make_toy(tmp_path / "first")
    _, new = clean_hop(first)
    assert first.run("lock", "toy").status == 0
    before = normal(first)
    toys = [copied(first, tmp_path / str(number)) for number in range(MOMENTS)]
    whole_s = timed(first, "--to", new)
    after = normal(first)
    print(f"FORKYARD_TEST_SEED={SEED}; an undisturbed rebase takes {whole_s:.2f} s")

    def attempt(number: int) -> bool:
        toy, after_s = toys[number], moments(1)[number] * whole_s
        cut_off = killed(toy, after_s, "--to", new, group=number % 2 == 1)
        assert_all_or_none(toy, before, after)
        again = rebase(toy, "--to", new)
        assert again.status == 0, (after_s, again)
        assert normal(toy) == after
        assert not (toy.root / "work").exists() or not any((toy.root / "work").iterdir())
        return cut_off

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(attempt, range(MOMENTS))) >= MOMENTS // 2


def test_killed_while_it_lays_out_a_conflict_and_while_it_goes_on(tmp_path: Path) -> None:
    first = make_toy(tmp_path / "first")
    _, new = hard_hop(first)
    before = normal(first)
    # Each of these is killed three times.
    chosen = random.Random(SEED).sample(range(MOMENTS), max(1, MOMENTS * 2 // 3))
    toys = {number: copied(first, tmp_path / str(number)) for number in chosen}
    start_s = timed(first, "--to", new)
    resolve(first, 1)
    go_on_s = timed(first, "--continue")
    resolve(first, 2)
    last_s = timed(first, "--continue")
    after = normal(first)

    def waits_for(toy: Toy, patch: str, part: int) -> None:
        """Bring the toy to where it waits for a patch, with its conflict resolved, however it was killed."""
        state = rebase(toy, "--status")
        if state.status == 2:
            assert rebase(toy, "--to", new).status == 13
        elif f"{patch}.patch" not in json.dumps(state.json["report"] or ""):
            assert rebase(toy, "--continue").status in (2, 13)
        for _ in range(3):
            if (worktree(toy) / ".git" / "forkyard-ready").exists():
                break
            # It was killed before its conflict was there: that is said, and laid out.
            assert rebase(toy, "--continue").status in (2, 13)
        assert (worktree(toy) / ".git" / "forkyard-ready").exists()
        if "<" * 27 in (worktree(toy) / "src" / f"part{part}.cpp").read_text():
            resolve(toy, part)

    def attempt(number: int) -> int:
        toy, group, cut_off = toys[number], number % 2 == 1, 0
        cut_off += killed(toy, moments(2)[number] * start_s, "--to", new, group=group)
        assert_all_or_none(toy, before)
        if number % 4 == 3:
            # Giving up is as good a way to go on.
            status = rebase(toy, "--abort").status
            assert status in (0, 2)
            assert normal(toy) == before
        waits_for(toy, "one", 1)
        cut_off += killed(toy, moments(3)[number] * go_on_s, "--continue", group=group)
        assert_all_or_none(toy, before)
        # Whether its resolution was taken over before the kill or is taken over now, it is never asked for again.
        assert rebase(toy, "--continue").status in (2, 13)
        waits_for(toy, "three", 2)
        cut_off += killed(toy, moments(4)[number] * last_s, "--continue", group=group)
        assert_all_or_none(toy, before, after)
        if normal(toy) == before:
            last = rebase(toy, "--continue")
            if last.status == 2:
                waits_for(toy, "three", 2)
                last = rebase(toy, "--continue")
            assert last.status == 0, last
        else:
            rebase(toy, "--continue")
        assert normal(toy) == after
        assert rebase(toy, "--status").status == 2
        return cut_off

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(attempt, chosen)) >= len(chosen)


def test_two_at_once(toy: Toy) -> None:
    _, new = clean_hop(toy)
    children = [toy.start("rebase", "toy", "--to", new) for _ in range(3)]
    answers = [finish(child) for child in children]
    assert {answer.status for answer in answers} <= {0, 11}
    assert any(answer.status == 0 for answer in answers)
    # One moved the pin; whoever came later found it there.
    written = [answer for answer in answers if answer.status == 0 and answer.json["written"]]
    assert len(written) == 1
    assert new in toy.recipe.read_text()
    assert rebase(toy, "--to", new).json["written"] == []


def test_two_at_once_with_conflicts(toy: Toy) -> None:
    _, new = hard_hop(toy)
    before = project_files(toy)
    answers = [finish(child) for child in [toy.start("rebase", "toy", "--to", new) for _ in range(2)]]
    assert sorted(answer.status for answer in answers) in ([2, 13], [11, 13])
    assert project_files(toy) == before
    resolve(toy, 1)
    answers = [finish(child) for child in [toy.start("rebase", "toy", "--continue") for _ in range(2)]]
    # One takes the resolution over; the other finds the next conflict, which nobody has resolved.
    assert sorted(answer.status for answer in answers) in ([2, 13], [11, 13])
    resolve(toy, 2)
    assert rebase(toy, "--continue").status == 0


def test_a_full_disk(toy: Toy) -> None:
    if namespace() is None:
        pytest.skip("this machine lets nobody mount a small disk")
    _, new = clean_hop(toy)
    before = project_files(toy)
    state = toy.root / ".forkyard"
    fill = f'head -c 100m /dev/zero >"{state}/filler" 2>/dev/null || true'
    check = f'cd "{toy.root}" && find recipes patches -type f | sort | xargs sha256sum >"$BASE/then"'
    first, second = twice(toy, state, "256k", "size=64m", ["rebase", "toy", "--to", new], prepare=fill, inspect=check)
    assert_storage_error(first, "the disk is full")
    now = {line.split("  ")[1]: line.split("  ")[0] for line in (toy.home / "then").read_text().splitlines()}
    assert now == {path: hashlib.sha256(data).hexdigest() for path, data in before.items()}
    assert second.status == 0


def test_a_read_only_state_folder(toy: Toy) -> None:
    if namespace() is None:
        pytest.skip("this machine lets nobody mount a small disk")
    _, new = clean_hop(toy)
    state = toy.root / ".forkyard"
    prepare = f'mount -o remount,ro "{state}"'
    first, second = twice(toy, state, "1m", "rw", ["rebase", "toy", "--to", new], prepare=prepare)
    assert_storage_error(first, "the file system is read-only")
    assert second.status == 0


@pytest.mark.parametrize("missing", ["blobs", "history"])
def test_a_source_that_is_not_whole(toy: Toy, tmp_path: Path, missing: str) -> None:
    """A partial clone lacks the files; a shallow one lacks only the way between the commits."""
    _, new = hard_hop(toy)
    git(toy.engine, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    words = {"blobs": ["--filter=blob:none", "--no-checkout"], "history": ["--depth=1"]}[missing]
    git(tmp_path, "clone", "--quiet", *words, f"file://{toy.engine}", str(clone))
    git(clone, "remote", "set-url", "origin", "file:///nowhere")
    git(clone, "config", "uploadpack.allowAnySHA1InWant", "true")
    before = project_files(toy)
    answer = rebase(toy, "--to", new, "--source", str(clone), "--dry-run")
    if missing == "blobs":
        assert answer.status in (4, 5), answer
        assert answer.json["next"]
    else:
        assert answer.status == 13
        assert answer.json["history_known"] is False
        assert [patch["culprits"] for patch in answer.json["patches"]] == [[], [], []]
        assert answer.json["patches"][0]["conflicts"][0]["hunks"][0]["lines"] == "4"
    assert project_files(toy) == before


def test_damaged_objects_in_the_cache(toy: Toy) -> None:
    _, new = clean_hop(toy)
    assert rebase(toy, "--to", new, "--dry-run").status == 0
    before = project_files(toy)
    for path in (toy.cache / "store").rglob("pack-*.pack"):
        path.chmod(0o644)
        data = path.read_bytes()
        path.write_bytes(data[:20] + bytes(200) + data[220:])
    answer = rebase(toy, "--to", new)
    assert answer.status == 4
    assert project_files(toy) == before
    assert toy.run("clean", "sources").status == 0
    assert rebase(toy, "--to", new).status == 0


def test_a_patch_that_is_none(toy: Toy) -> None:
    _, new = clean_hop(toy)
    (toy.root / "patches/changes/llama.cpp/two.patch").write_bytes(b"\x7fELF not a patch")
    before = project_files(toy)
    answer = rebase(toy, "--to", new)
    assert (answer.status, answer.json["error"]) == (6, "patch")
    assert project_files(toy) == before


def test_upstream_went_on_between_start_and_continue(toy: Toy) -> None:
    """The commit was named once; where the ref is now plays no part."""
    _, new = hard_hop(toy)
    assert rebase(toy, "--to", "main").status == 13
    move_on(toy, ("src/part4.cpp", "value + 4", "value + 4444"))
    resolve(toy, 1)
    assert rebase(toy, "--continue").status == 13
    resolve(toy, 2)
    assert rebase(toy, "--continue").status == 0
    assert new in toy.recipe.read_text()


def test_the_cache_was_deleted_between_start_and_continue(toy: Toy) -> None:
    _, new = hard_hop(toy)
    assert rebase(toy, "--to", new).status == 13
    shutil.rmtree(toy.cache)
    resolve(toy, 1)
    assert rebase(toy, "--continue").status == 13
    resolve(toy, 2)
    assert rebase(toy, "--continue").status == 0
