from __future__ import annotations

import json
import subprocess

import pytest

from forkyard.guest.cases import CASES, SERVERS, TOPOLOGIES, Server
from forkyard.guest.script import Run, guest_s, init_script, question, runs


@pytest.mark.parametrize("engine", SERVERS)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: topology.name)
def test_every_guests_script_is_one(engine: str, topology) -> None:
    mine = [case for case in CASES if case.topology == topology]
    script = init_script(runs(mine, SERVERS[engine]))
    done = subprocess.run(["sh", "-n"], input=script.encode(), capture_output=True, timeout=1800, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    for case in mine:
        assert f"\nrun {case.name} " in script
    assert script.rstrip().endswith("reboot -f")


def test_runs_without_numa_come_first_and_once() -> None:
    server = Server("srv", ("--quiet",), ("--map",), ())
    mine = [case for case in CASES if case.name in ("mirror", "interleaved", "kv-only")]
    todo = runs(mine, server)
    assert [one.name for one in todo] == [
        "off-t4-mmap",
        "off-t2-mmap",
        "off-t2-read",
        "mirror",
        "kv-only",
        "interleaved",
    ]
    assert [one.report for one in todo] == [False, False, False, True, True, True]
    assert todo[0].command[-2:] == ("--quiet", "--map")
    assert todo[3].command == (*todo[0].command, "--numa", "mirror")
    assert todo[5].command[:3] == ("numactl", "--interleave=all", "srv")


def test_words_reach_the_shell_whole() -> None:
    script = init_script([Run("one", ("sh", "-c", 'echo $$; exec "$@"', "it's"), ("echo before",))])
    assert """run one sh -c 'echo $$; exec "$@"' 'it'"'"'s'\n""" in script
    assert script.index("echo before") < script.index("run one")


def test_a_guest_ends_by_itself() -> None:
    script = init_script([Run("one", ("true",)), Run("two", ("true",))], case_s=7, end_s=3)
    assert f"(sleep {guest_s(2)}; reboot -f) &" in script
    assert "end=$((begun + 7))" in script


def test_the_question_is_greedy_and_asks_for_probabilities() -> None:
    asked = json.loads(question())
    assert (asked["temperature"], asked["top_k"]) == (0, 1)
    assert asked["n_probs"] > 0
