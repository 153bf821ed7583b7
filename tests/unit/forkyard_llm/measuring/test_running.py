from __future__ import annotations

import random
from pathlib import Path

import pytest
from forkyard_llm.measuring.child import RunFailed, stream
from forkyard_llm.measuring.dialect import Result
from forkyard_llm.measuring.records import Arm, Sample
from forkyard_llm.measuring.reporting import Silent
from forkyard_llm.measuring.running import Plan, measure, measure_benches
from forkyard_llm.measuring.statistics import FEWEST, compare

from .conftest import MakeEngine, arm, results


def test_an_arm_is_relative_to_the_anchor_around_it() -> None:
    clock = [0]

    def run(one: Arm) -> list[Result]:
        # The whole machine grows slower by a percent with every run: the ratio does not.
        clock[0] += 1
        return results(tg32=(30.0 if one.name == "b" else 20.0) * 0.99 ** clock[0])

    found = measure((arm("a"), arm("b"), arm("c")), Plan(6, anchor="a"), run, Silent())
    gain = compare(found.speeds["b"]["tg32"], found.bases["b"]["tg32"])
    assert gain.ratio == pytest.approx(1.5, rel=0.02)
    same = compare(found.speeds["c"]["tg32"], found.bases["c"]["tg32"])
    assert same.verdict == "tie"
    assert found.dropped == 0


def test_what_was_measured_while_the_machine_changed_is_repeated_and_recorded() -> None:
    clock, kept = [0], []

    def run(one: Arm) -> list[Result]:
        clock[0] += 1
        return results(tg32=10.0 if clock[0] in (4, 5) else 20.0)

    found = measure((arm("a"), arm("b")), Plan(3, anchor="a"), run, Silent(), keep=kept.extend)
    assert found.dropped > 0
    assert found.drifting == 0
    assert found.speeds["b"]["tg32"] == [20.0, 20.0, 20.0]
    assert any(not one.kept for one in kept)


def test_a_machine_that_never_rests_is_said_to_be_one() -> None:
    source = random.Random(1)
    warned: list[str] = []

    class Listening(Silent):
        def warn(self, text: str) -> None:
            warned.append(text)

    found = measure(
        (arm("a"), arm("b")), Plan(3, anchor="a"), lambda _: results(tg32=source.uniform(5, 50)), Listening()
    )
    assert found.drifting == 3
    assert "speed changed in 3 of 3 stretches" in warned[0]


def test_short_runs_may_differ_as_they_always_do_but_not_by_more() -> None:
    """The anchor alternates between two speeds 15 % apart, and once falls to a half."""
    clock, fallen = [0], set[int]()

    def run(one: Arm) -> list[Result]:
        clock[0] += one.name == "a"
        return results(tg32=10.0 if clock[0] in fallen else 23.0 if clock[0] % 2 else 20.0)

    differences: dict[str, list[float]] = {}
    first = measure((arm("a"), arm("b")), Plan(3, anchor="a"), run, Silent(), differences=differences)
    assert (first.groups, first.drifting) == (3, 2), "the third is known by then"
    usual = measure((arm("a"), arm("b")), Plan(8, anchor="a"), run, Silent(), differences=differences)
    assert (usual.dropped, usual.drifting) == (0, 0)
    fallen.add(clock[0] + 4)
    last = measure((arm("a"), arm("b")), Plan(5, anchor="a"), run, Silent(), differences=differences)
    assert (last.dropped > 0, last.drifting) == (True, 0)


def test_a_group_is_run_again_only_as_often_as_planned() -> None:
    speeds = iter([10.0, 10.0, 20.0] * 3)
    plan = Plan(1, anchor="a", warm_up=False, again=0)
    found = measure((arm("a"), arm("b")), plan, lambda _: results(tg32=next(speeds)), Silent())
    assert (found.dropped, found.drifting) == (0, 1)
    assert found.bases["b"]["tg32"] == [15.0]


def test_it_stops_once_all_is_known() -> None:
    kept: list[Sample] = []
    found = measure(
        (arm("a"), arm("b")), Plan(50, narrow=0.02, anchor="a"), lambda _: results(tg32=9.0), Silent(), keep=kept.extend
    )
    assert found.rounds == FEWEST
    assert len([one for one in kept if one.arm == "b"]) == FEWEST


def test_an_arm_that_fails_leaves_and_the_anchor_must_not() -> None:
    def run(one: Arm) -> list[Result]:
        if one.name == "bad":
            msg = "llama-bench failed"
            raise RunFailed(msg, "exit status 1")
        return results(tg32=9.0)

    found = measure((arm("a"), arm("bad"), arm("c")), Plan(3, anchor="a", tolerant=True), run, Silent())
    assert found.failed == {"bad": "exit status 1"}
    assert set(found.speeds) == {"a", "c"}
    with pytest.raises(RunFailed):
        measure((arm("bad"), arm("c")), Plan(3, anchor="bad", tolerant=True), run, Silent())


def test_a_real_program(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    engine = make_engine()
    arms = [
        Arm(str(t), (str(engine.bench), "-m", str(model), "-t", str(t), "-p", "8", "-n", "4"), ("pp8", "tg4"), "")
        for t in (1, 2)
    ]
    found = measure_benches(arms, Plan(2, anchor="1"), model, tmp_path / "log", Silent())
    assert found.speeds["2"]["pp8"] == [2000.0, 2000.0]
    assert found.commands["2"] == "llama-bench -m model.gguf -t 2 -p 8 -n 4"


@pytest.mark.parametrize(("fault", "why"), [("crash", "exit status 134: GGML_ASSERT"), ("garbage", "no such answer")])
def test_a_program_that_fails(make_engine: MakeEngine, model: Path, tmp_path: Path, fault: str, why: str) -> None:
    engine = make_engine(faults={"2": fault})
    arms = [Arm("x", (str(engine.bench), "-m", str(model), "-t", "2", "-p", "8"), ("pp8",), "")]
    with pytest.raises(RunFailed) as caught:
        measure_benches(arms, Plan(1), model, tmp_path / "log", Silent())
    assert caught.value.why.startswith(why)


def test_a_program_that_hangs_is_ended(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(faults={"2": "hang"})
    with pytest.raises(RunFailed, match="did not end within 1 s"):
        stream([str(engine.bench), "-t", "2"], log=tmp_path / "log", on_line=lambda _: None, timeout_s=1, env={})
