"""Disk full and read-only: exit code 10, the reason in words, and the same command succeeds once there is room.

A small tmpfs is mounted in a mount namespace of its own, as root or as root of a user namespace. Where the machine
forbids both, the nearest thing that needs no permission is tested instead: a limit on file sizes, and a folder the
kernel lets nobody write to.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest

from ..toy import TIMEOUT_S, Answer, Toy

_NAMESPACES = (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"])
_SCRIPT = """
set -eu
disk=$1 size=$2 then=$3
shift 3
mount -t tmpfs -o "size=$size" tmpfs "$disk"
{prepare}
status=0
"$@" >"$BASE/first.out" 2>"$BASE/first.err" || status=$?
echo "$status" >"$BASE/first.status"
{inspect}
mount -o "remount,$then" "$disk"
status=0
"$@" >"$BASE/second.out" 2>"$BASE/second.err" || status=$?
echo "$status" >"$BASE/second.status"
du -sk "$disk" >"$BASE/used"
"""


@functools.cache
def namespace() -> list[str] | None:
    """The command that gives a mount namespace in which a tmpfs may be mounted; ``None`` if there is none."""
    for command in _NAMESPACES:
        try:
            done = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, timeout=1800
            )
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            return command
    return None


def twice(
    toy: Toy, disk: Path, size: str, then: str, words: list[str], *, prepare: str = "", inspect: str = ""
) -> tuple[Answer, Answer]:
    """Run forkyard on a small disk, change the disk's mount options to ``then``, and run the same command again."""
    command = namespace()
    assert command is not None
    disk.mkdir(exist_ok=True)
    script = _SCRIPT.format(prepare=prepare, inspect=inspect)
    base = toy.home
    subprocess.run(
        [*command, "sh", "-c", script, "sh", str(disk), size, then, *toy.command(*words)],
        env={**toy.env(), "BASE": str(base)},
        cwd=base,
        check=True,
        timeout=TIMEOUT_S,
    )
    first, second = (
        Answer(
            int((base / f"{name}.status").read_text()),
            (base / f"{name}.out").read_text(),
            (base / f"{name}.err").read_text(),
        )
        for name in ("first", "second")
    )
    for answer in (first, second):
        assert "Traceback" not in answer.stderr, answer.stderr
    return first, second


def assert_storage_error(answer: Answer, *reasons: str) -> None:
    assert answer.status == 10, f"{answer.status}\n{answer.stdout}\n{answer.stderr}"
    error = answer.json
    assert error["error"] == "storage"
    assert any(reason in error["why"] for reason in reasons), error
    assert error["next"], error


@pytest.fixture
def wanted_kib(undisturbed: Answer) -> int:
    """What the cache holds after a build; a disk that is smaller fills on the way there."""
    cache = Path(undisturbed.built["wheel"]).parents[1] / "cache"
    return int(subprocess.run(["du", "-sk", cache], capture_output=True, check=True, timeout=1800).stdout.split()[0])


# The disk is full while fetching, checking out, configuring, compiling, linking, packing.
@pytest.mark.parametrize("share", [0.015, 0.12, 0.25, 0.4, 0.6, 0.8])
def test_a_full_disk_under_the_cache(toy: Toy, undisturbed: Answer, wanted_kib: int, share: float) -> None:
    if namespace() is None:
        limited_file_sizes(toy, undisturbed, int(share * 32))
        return
    first, second = twice(toy, toy.cache, f"{int(share * wanted_kib)}k", "size=64m", toy.build_arguments())
    assert_storage_error(first, "the disk is full")
    assert "free some space" in first.json["next"]
    assert second.built["sha256"] == undisturbed.built["sha256"]
    toy.assert_sound()


def limited_file_sizes(toy: Toy, undisturbed: Answer, kib: int) -> None:
    """The same without a mount: no file may grow beyond a limit."""
    limit = ["prlimit", f"--fsize={max(1, kib) * 1024}"]
    done = subprocess.run(
        [*limit, *toy.command(*toy.build_arguments())],
        env=toy.env(),
        cwd=toy.home,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert_storage_error(Answer(done.returncode, done.stdout, done.stderr), "there is a limit on file sizes")
    assert toy.build().built["sha256"] == undisturbed.built["sha256"]
    toy.assert_sound()


@pytest.mark.parametrize("kib", [1, 16])
def test_limited_file_sizes(toy: Toy, undisturbed: Answer, kib: int) -> None:
    limited_file_sizes(toy, undisturbed, kib)


def test_a_full_disk_under_the_output_folder(toy: Toy, undisturbed: Answer) -> None:
    if namespace() is None:
        pytest.skip("this machine lets nobody mount a small disk; the cache's fallback is tested above")
    left = f'ls -A "{toy.out}" >"$BASE/left"'
    first, second = twice(toy, toy.out, "16k", "size=64m", toy.build_arguments(), inspect=left)
    assert_storage_error(first, "the disk is full")
    assert (toy.home / "left").read_text() == ""
    # The wheel is kept: nothing is compiled again for the sake of copying it.
    assert (second.built["fresh"], second.built["sha256"]) == (False, undisturbed.built["sha256"])


@pytest.mark.parametrize("state", ["empty", "fetched", "built"])
def test_a_read_only_cache(toy: Toy, undisturbed: Answer, state: str) -> None:
    if namespace() is None:
        unwritable_cache(toy)
        return
    prepare = {
        "empty": "",
        "fetched": f"{' '.join(toy.command('lock', 'toy'))} >/dev/null 2>&1",
        "built": f'{" ".join(toy.command(*toy.build_arguments()))} >/dev/null 2>&1; rm -r "{toy.out}"',
    }[state]
    prepare += f'\nmount -o remount,ro "{toy.cache}"'
    first, second = twice(toy, toy.cache, "64m", "rw", toy.build_arguments(), prepare=prepare)
    assert_storage_error(first, "the file system is read-only")
    assert "FORKYARD_CACHE" in first.json["next"]
    assert second.built["sha256"] == undisturbed.built["sha256"]


def unwritable_cache(toy: Toy) -> None:
    """The same without a mount: a place nobody may write to, not even root."""
    answer = toy.build(env={"FORKYARD_CACHE": "/sys/forkyard" if os.geteuid() == 0 else "/forkyard"})
    assert_storage_error(answer, "the file system is read-only", "operation not permitted", "permission denied")
    assert "FORKYARD_CACHE" in answer.json["next"]


def test_an_unwritable_cache(toy: Toy) -> None:
    unwritable_cache(toy)


def test_a_cache_that_is_a_file(toy: Toy) -> None:
    toy.cache.write_text("not a folder")
    answer = toy.build()
    assert_storage_error(answer, "a file is where a folder should be")
    assert toy.cache.read_text() == "not a folder"


def test_doctor_says_that_the_cache_cannot_be_written(toy: Toy) -> None:
    answer = toy.run("doctor", env={"FORKYARD_CACHE": "/sys/forkyard" if os.geteuid() == 0 else "/forkyard"})
    assert answer.status == 7
    (check,) = [check for check in answer.json["checks"] if check["name"] == "cache"]
    assert check["state"] == "missing"
    assert "FORKYARD_CACHE" in check["fix"]
