from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.measuring.child import RunFailed
from forkyard_llm.measuring.engine import Engine
from forkyard_llm.measuring.records import Recorded
from forkyard_llm.measuring.reporting import Silent
from forkyard_llm.measuring.scenarios import SCENARIOS, Wishes, bench, conclusions, label_all, verdicts

from .conftest import MakeEngine, summary

SATURATES = "min(t, 3) * (10.0 if kind == 'tg' else 100.0)"


def run(name: str, engines: list[Engine], model: Path, tmp_path: Path, **wishes: Any) -> Recorded:
    wanted = replace(Wishes(model, prompt=8, generate=4, rounds=6), **wishes)
    return bench(name, engines, wanted, tmp_path / "log", Silent())


def test_threads_say_which_number_is_fastest(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    found = run("threads", [make_engine(speed=SATURATES)], model, tmp_path, threads=(1, 2, 3, 4))
    said = "\n".join(conclusions(found))
    assert "llama.cpp, 3 threads" in said
    assert {arm.values["threads"] for arm in found.arms} >= {"1", "2", "3", "4"}
    gain = verdicts(found)["llama.cpp, 1 threads", "tg4"]
    assert gain.verdict == ("slower" if found.info.anchor != "llama.cpp, 1 threads" else "tie")


def test_variants_need_two(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    one = make_engine()
    with pytest.raises(UsageError, match="compares 2 or more payloads"):
        run("variants", [one], model, tmp_path)
    other = make_engine("ik_llama.cpp", speed="150.0")
    found = run("variants", [one, other], model, tmp_path, threads=(1,))
    assert verdicts(found)["ik_llama.cpp", "tg4"].verdict == "faster"
    assert verdicts(found)["ik_llama.cpp", "pp8"].verdict == "slower"


def test_compare_takes_arguments_of_each(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    engine = make_engine(speed="ub / 10.0")
    found = run("compare", [engine, engine], model, tmp_path, own=((), ("-ub", "256")))
    assert [arm.name for arm in found.arms] == ["llama.cpp", "llama.cpp -ub 256"]
    assert verdicts(found)["llama.cpp -ub 256", "pp8"].verdict == "slower"


def test_one_thing_twice_is_a_tie(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    engine = make_engine()
    found = run("compare", [engine, engine], model, tmp_path)
    assert [arm.name for arm in found.arms] == ["llama.cpp (A)", "llama.cpp (B)"]
    assert {gain.verdict for gain in verdicts(found).values()} == {"tie"}


def test_two_builds_have_names_of_their_own(make_engine: MakeEngine) -> None:
    engines = [make_engine(), make_engine(variant="avx512"), make_engine(key="b" * 64)]
    names = [name for name, _ in label_all(engines)]
    assert names == ["llama.cpp avx2 aaaaaaaa", "llama.cpp avx512", "llama.cpp avx2 bbbbbbbb"]


def test_ik_times_generation_at_depth_behind_a_prompt(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    planned = SCENARIOS["threads"].plan(label_all([make_engine("ik_llama.cpp")]), Wishes(model, depths=(0, 64)))
    assert planned.arms[0].tests == ("pp512", "tg128", "tg128 @ d64")
    assert "-gp 64,128" in " ".join(planned.arms[0].command)


def test_a_run_has_everything_that_is_known(recorded: Recorded) -> None:
    assert conclusions(recorded) == [
        "pp64: fast is fastest (305.00 t/s), 1.52x base (1.50 to 1.55)",
        "tg32: fast is fastest (30.50 t/s), 1.52x base (1.50 to 1.55)",
    ]


def test_when_nothing_but_the_anchor_works_it_is_an_error(make_engine: MakeEngine, model: Path, tmp_path: Path) -> None:
    engine = make_engine(faults={"7": "crash"})
    with pytest.raises(RunFailed, match="nothing can be compared with llama.cpp"):
        run("compare", [engine, engine], model, tmp_path, own=((), ("-t", "7")))


def test_variables_that_choose_devices_reach_the_engine(
    make_engine: MakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("threads", "batch"):
        engine = make_engine(variant=name)
        (engine.bench.parent / "llama-server").touch()
        (one, *_) = SCENARIOS[name].plan(label_all([engine]), Wishes(model)).arms
        assert one.environment == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize(
    ("name", "wishes"),
    [
        ("threads", {"prompt": 0, "generate": 0}),
        ("batch", {"prompt": 8, "generate": 0}),
        ("batch", {"prompt": 0, "generate": 8}),
        ("batch", {"threads": (1, 2)}),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    make_engine: MakeEngine, model: Path, tmp_path: Path, name: str, wishes: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        run(name, [make_engine()], model, tmp_path, **wishes)


def test_arms_that_were_measured_more_often_do_not_hide_others(recorded: Recorded) -> None:
    few = [one for one in recorded.samples if one.arm != "same" or one.round < 1]
    said = conclusions(Recorded(recorded.info, recorded.arms, few, recorded.failed))
    assert said[1] == "tg32: fast is fastest (30.50 t/s), 1.52x base (1.50 to 1.55); not to be told from it: same"


def test_few_rounds_tell_nothing_apart(recorded: Recorded) -> None:
    few = Recorded(recorded.info, recorded.arms, [one for one in recorded.samples if one.round < 5], recorded.failed)
    assert {gain.verdict for gain in verdicts(few).values()} == {"tie"}
    assert verdicts(recorded)["fast", "tg32"].verdict == "faster"


def test_experts_are_kept_here_and_there(
    make_engine: MakeEngine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkyard_llm.measuring.scenarios.read", lambda _: summary(expert_count=8))
    monkeypatch.setattr(Engine, "devices", lambda self: ("CUDA0",) if self.variant == "cuda" else ())
    gpu = make_engine(variant="cuda")
    gpu = replace(gpu, options=gpu.options | {"--n-cpu-moe", "-ot", "--expert-cache"})
    found = run("experts", [gpu, make_engine(key="b" * 64)], model, tmp_path, expert_caches=("auto", "512"))
    words = {arm.values["experts"]: " ".join(arm.command) for arm in found.arms}
    assert list(words) == [
        "all experts on the CPU",
        *(f"experts of {one} of 8 layers on the CPU" for one in (2, 4, 6)),
        "all experts on the CPU by -ot",
        "all on the device",
        "expert cache auto",
        "expert cache 512",
    ]
    assert "-ngl 999 --n-cpu-moe 8" in words["all experts on the CPU"]
    assert "-ot exps=CPU" in words["all experts on the CPU by -ot"]
    assert "--expert-cache 512" in words["expert cache 512"]
    assert found.info.anchor == found.arms[0].name
    assert any("finds no device" in one for one in found.info.remarks)


def test_experts_need_a_mixture_and_a_device(
    make_engine: MakeEngine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkyard_llm.measuring.scenarios.read", lambda _: summary())
    with pytest.raises(UsageError, match="is no mixture of experts"):
        run("experts", [make_engine()], model, tmp_path)
    monkeypatch.setattr("forkyard_llm.measuring.scenarios.read", lambda _: summary(expert_count=8))
    with pytest.raises(UsageError, match="finds no device"):
        run("experts", [make_engine(variant="other")], model, tmp_path)
