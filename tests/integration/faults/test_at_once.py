"""Several forkyards at once on one cache: one waits or shares, all are right."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from ..toy import Answer, Toy, finish

PART3 = ("src/part3.cpp", "value + 3")


def test_the_same_payload_twice(toy: Toy, undisturbed: Answer) -> None:
    children = [toy.start_build("--jobs", "1") for _ in range(2)]
    answers = [finish(child) for child in children]
    assert [answer.built["sha256"] for answer in answers] == [undisturbed.built["sha256"]] * 2
    # One compiled, the other took the result.
    assert sorted(answer.built["fresh"] for answer in answers) == [False, True]
    toy.assert_sound()


def test_two_variants_share_the_tree(toy: Toy, undisturbed: Answer) -> None:
    first = toy.start_build("--jobs", "1")
    second = toy.start_build("--jobs", "1", variant="avx2")
    answers = finish(first), finish(second)
    assert answers[0].built["sha256"] == undisturbed.built["sha256"]
    assert all(answer.built["fresh"] for answer in answers)
    assert len(toy.wheels()) == 2
    toy.assert_sound()
    # The one built beside another is the one built alone.
    toy.run("clean", "builds", "wheels")
    assert toy.build(variant="avx2").built["sha256"] == answers[1].built["sha256"]


@contextlib.contextmanager
def standing_still(child: subprocess.Popen[str], seconds: float = 6.0) -> Iterator[None]:
    """Stop a forkyard that holds its locks for so long that whoever comes now must find them held."""
    child.send_signal(signal.SIGSTOP)
    timer = threading.Timer(seconds, child.send_signal, [signal.SIGCONT])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        child.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("variant", ["sse42", "avx2"])
def test_a_changed_patch_waits_for_the_tree_that_others_compile(toy: Toy, undisturbed: Answer, variant: str) -> None:
    first = toy.start_compiling(*toy.build_arguments("--jobs", "1"))
    toy.patch((*PART3, "value + 33"))
    with standing_still(first):
        second = toy.build(variant=variant)
    assert finish(first).built["sha256"] == undisturbed.built["sha256"]
    assert "waiting for" in second.stderr
    if variant == "sse42":
        assert f"process {first.pid}" in second.stderr
    toy.run("clean")
    assert toy.build(variant=variant).built["sha256"] == second.built["sha256"]
    toy.assert_sound()


def test_clean_waits_for_the_build(toy: Toy, undisturbed: Answer) -> None:
    child = toy.start_compiling(*toy.build_arguments("--jobs", "1"))
    with standing_still(child):
        cleaned = toy.run("clean", "builds", "wheels", "sources", "logs")
    assert cleaned.status == 0
    assert "waiting for" in cleaned.stderr
    assert finish(child).built["sha256"] == undisturbed.built["sha256"]
    again = toy.build()
    assert (again.built["fresh"], again.built["sha256"]) == (True, undisturbed.built["sha256"])


def test_builds_and_cleans_in_any_order(toy: Toy, undisturbed: Answer) -> None:
    """The quick ways out of a build (it is there already) against a clean that takes it away at that moment."""
    toy.build()
    stop = threading.Event()
    cleans: list[Answer] = []

    def clean() -> None:
        while not stop.is_set():
            cleans.append(toy.run("clean", "wheels", "logs", "sources"))

    thread = threading.Thread(target=clean)
    thread.start()
    try:
        for _ in range(2):
            assert toy.build().built["sha256"] == undisturbed.built["sha256"]
    finally:
        stop.set()
        thread.join()
    assert [answer.status for answer in cleans] == [0] * len(cleans)
    assert cleans


def test_the_older_wheel_goes_when_the_newer_is_there(toy: Toy) -> None:
    first = toy.build().built
    toy.patch((*PART3, "value + 33"))
    second = toy.build().built
    assert [str(path) for path in toy.wheels()] == [second["wheel"]]
    assert second["sha256"] != first["sha256"]
