from __future__ import annotations

import json
import sys

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.measuring.dialect import Result
from forkyard_llm.measuring.engine import Engine, examine
from forkyard_llm.measuring.guesses import Guess
from forkyard_llm.measuring.prompts import PROMPTS
from forkyard_llm.measuring.reporting import Silent
from forkyard_llm.measuring.settings import Host
from forkyard_llm.measuring.space import Workload, choices
from forkyard_llm.measuring.tune import Evaluator, Journal, Judge, benches, tune

from .conftest import summary

TEXTS = [name for name in PROMPTS if name != "warm-up"]

PROGRAM = """#!{python}
import json, os, sys, time
words = sys.argv[1:]
if words == ["--help"]:
    print("  -t, --threads <n>   (default: 4)\\n  -fa, --flash-attn <on|off|auto>\\n  -ub, --ubatch-size <n>")
    print("  -lm, --load-mode <auto|none|mmap>\\n  --poll <0...100>")
    sys.exit(0)
value = dict(zip(words, words[1:]))
with open({record!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
if value.get("--poll") == "0":
    os.abort()
if value.get("--poll") == "100":
    print("[ garbage", flush=True)
    sys.exit(0)
if value.get("-fa") == "on":
    time.sleep(60)
rows = []
for kind, name in (("-p", "n_prompt"), ("-n", "n_gen")):
    if value[kind] != "0":
        rows.append({{"model_type": "fake", "n_prompt": 0, "n_gen": 0, "avg_ts": 10.0 * int(value["-t"])}})
        rows[-1][name] = int(value[kind])
print(json.dumps(rows, indent=1))
"""


@pytest.fixture
def record(tmp_path):
    return tmp_path / "record"


@pytest.fixture
def space(tmp_path, record):
    bench = tmp_path / "bin" / "llama-bench"
    bench.parent.mkdir()
    bench.write_text(PROGRAM.format(python=sys.executable, record=str(record)))
    bench.chmod(0o755)
    return choices([examine(bench)], Workload(16, 4), Host(1, None), cores=8)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    return path


def point(space, **changed):
    named = {name.replace("_", " "): value for name, value in changed.items()}
    pairs = zip(space.space.dimensions, space.space.default, strict=True)
    return tuple(named.get(one.name, value) for one, value in pairs)


def test_the_default_is_that_of_the_engine(space):
    assert space.values(space.space.default)["threads"] == "4"


def test_threads_of_prompt_and_generation_are_measured_apart_where_one_run_cannot(space, model):
    arms = space.arms(point(space, batch_threads="8"), model, Workload(16, 4))
    assert [(one.tests, one.command[one.command.index("-t") + 1]) for one in arms] == [
        (("pp16",), "8"),
        (("tg4",), "4"),
    ]


def test_generation_is_measured_with_fewer_tokens_than_it_stands_for(space, model, tmp_path):
    how = benches(space, model, Workload(16, 1000), tmp_path / "log")
    assert how.arms(space.space.default)[0].tests == ("pp16", "tg64")
    assert how.tokens("tg64") == 1000


def test_what_fails_is_out_with_its_reason_and_the_others_are_measured(space, model, tmp_path, monkeypatch):
    monkeypatch.setattr("forkyard_llm.measuring.tune._SHORTEST_LIMIT_S", 2.0)
    how = benches(space, model, Workload(16, 4), tmp_path / "log")
    evaluate = Evaluator(how, Journal(tmp_path / "kept", {}, resume=False))
    points = [
        point(space, poll="0"),
        point(space, poll="100"),
        point(space, flash_attention="on"),
        point(space, threads="8", batch_threads="8"),
        point(space, batch_threads="8"),
    ]
    evaluate._limit_s = 2.0
    crashed, garbage, hung, faster, apart = evaluate(points)
    assert "killed by signal 6" in crashed
    assert "garbage" in garbage
    assert "2" in hung
    assert faster == {"pp16": 2.0, "tg4": 2.0}
    assert apart == {"pp16": 2.0, "tg4": 1.0}


def test_a_winner_that_no_server_confirms_is_not_recommended(space, model, tmp_path, monkeypatch):
    monkeypatch.setattr("forkyard_llm.measuring.tune.Evaluator._measure", fake_measure(space))
    journal = Journal(tmp_path / "kept", {}, resume=False)
    tuned = tune(space, model, Workload(16, 4), tmp_path / "log", Silent(), minutes=1, journal=journal)
    assert space.values(tuned.found.best)["threads"] == "8"
    assert tuned.best == space.space.default
    assert "not confirmed" in tuned.as_text()
    assert "-t 4 -tb 4" in tuned.as_text()


def test_a_winner_that_is_confirmed_is_recommended(space, model, tmp_path, monkeypatch):
    monkeypatch.setattr("forkyard_llm.measuring.tune.Evaluator._measure", fake_measure(space))
    monkeypatch.setattr("forkyard_llm.measuring.tune._confirm", lambda *_: [1.9, 2.0, 2.1])
    journal = Journal(tmp_path / "kept", {}, resume=False)
    tuned = tune(space, model, Workload(16, 4), tmp_path / "log", Silent(), minutes=1, journal=journal)
    text = tuned.as_text(explain=True)
    assert "-t 8 -tb 8" in text
    assert "n_threads=8" in text
    assert "The default of 4 threads is slow" in text
    json.dumps(tuned.as_json())


def fake_measure(space):
    def measure(_, points):
        found = []
        for one in points:
            values = space.values(one)
            speed = {name: min(int(values[name]), 8) / 4 for name in ("threads", "batch threads")}
            found.append({"pp16": speed["batch threads"], "tg4": speed["threads"]})
        return found

    return measure


def test_what_was_measured_is_not_measured_again(tmp_path):
    path = tmp_path / "run.jsonl"
    first = Journal(path, {"of": 1}, resume=False)
    assert [first.answer(["a"], lambda: 1), first.answer(["a"], lambda: 2), first.answer(["b"], lambda: "why")]
    with path.open("a") as file:
        file.write('{"question": ["c"], "ans')
    again = Journal(path, {"of": 1}, resume=True)
    assert [again.answer(["a"], pytest.fail), again.answer(["a"], pytest.fail), again.answer(["b"], pytest.fail)] == [
        1,
        2,
        "why",
    ]
    assert again.answer(["c"], lambda: 3) == 3
    assert Journal(path, {"of": 1}, resume=True).answer(["c"], pytest.fail) == 3


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    Journal(path, {"of": 1}, resume=False)
    with pytest.raises(UsageError, match="another"):
        Journal(path, {"of": 2}, resume=True)
    with pytest.raises(UsageError, match="--resume"):
        Journal(path, {"of": 1}, resume=False)


def test_the_same_is_not_tuned_by_two_at_once(space, model, tmp_path, monkeypatch, capsys):
    from filelock import FileLock
    from forkyard_llm import gguf_check
    from forkyard_llm.cache import cache_dir
    from forkyard_llm.cli import run

    monkeypatch.setattr(gguf_check, "check", lambda *_, **__: summary())
    monkeypatch.setattr("forkyard_llm.measuring.tune.Evaluator._measure", fake_measure(space))
    payload = str(next(iter(space.engines.values())).bench)
    words = ["tune", str(model), "--payload", payload, "--prompt", "16", "--generate", "4", "--budget", "0.1s"]
    assert run(words) == 0
    (lock,) = (cache_dir() / "tune").glob("*.lock")
    with FileLock(lock):
        assert run(words) == 2
    assert "is being tuned by another process" in capsys.readouterr().err
    assert run([*words, "--resume"]) == 0


def ways(_):
    return [Guess("none"), Guess("good", ("--good",), {"draft_model": "ngram"}), Guess("mixed", ("--mixed",))]


def guessed(speeds):
    """What llama-server would say of each way to guess: prompt -> speed."""

    def run(arm, log, tokens):
        name = arm.values["guesses"]
        return [Result(test, speeds.get(name, {}).get(test, 100.0), None, "") for test in arm.tests]

    return run


@pytest.fixture
def quick(space, monkeypatch):
    monkeypatch.setattr("forkyard_llm.measuring.tune._confirm", lambda *_: [1.9, 2.0, 2.1])
    measured = fake_measure(space)
    own = Evaluator._measure
    monkeypatch.setattr(
        "forkyard_llm.measuring.tune.Evaluator._measure",
        lambda self, points: own(self, points) if self._how.stage else measured(self, points),
    )


def test_guesses_are_taken_if_they_help_and_harm_no_text(space, model, tmp_path, monkeypatch, quick):
    speeds = {"good": {"code": 180.0, "rows": 150.0, "story": 101.0}, "mixed": {"code": 400.0, "story": 90.0}}
    monkeypatch.setattr("forkyard_llm.measuring.tune.run_prompts_arm", guessed(speeds))
    journal = Journal(tmp_path / "kept", {}, resume=False)
    found = tune(space, model, Workload(16, 4), tmp_path / "log", Silent(), minutes=1, journal=journal, guesses=ways)
    assert found.guess.name == "good"
    assert found.command[-1] == "--good"
    assert "draft_model='ngram'" in found.call
    text = found.as_text(explain=True)
    assert "Guessing tokens ahead: good" in text
    assert "story: 1.01x" in text
    assert {one["name"]: one["safe"] for one in found.as_json()["guesses"]["finalists"]} == {
        "good": True,
        "mixed": False,
    }
    again = Journal(tmp_path / "kept", {}, resume=True)
    monkeypatch.setattr("forkyard_llm.measuring.tune.run_prompts_arm", pytest.fail)
    resumed = tune(space, model, Workload(16, 4), tmp_path / "log", Silent(), minutes=1, journal=again, guesses=ways)
    assert resumed.as_json() == found.as_json()


def test_guesses_that_nothing_confirms_are_left_out_and_the_rest_stays(space, model, tmp_path, monkeypatch, quick):
    monkeypatch.setattr("forkyard_llm.measuring.tune.run_prompts_arm", guessed({"good": dict.fromkeys(TEXTS, 150.0)}))
    monkeypatch.setattr(
        "forkyard_llm.measuring.tune._confirm", lambda _, __, guess, *___: [0.9 if guess.words else 1.5]
    )
    journal = Journal(tmp_path / "kept", {}, resume=False)
    found = tune(space, model, Workload(16, 4), tmp_path / "log", Silent(), minutes=1, journal=journal, guesses=ways)
    assert found.guess.name == "none"
    assert space.values(found.best)["threads"] == "8"
    assert "guesses good was not confirmed" in found.as_text()


def test_several_requests_are_not_guessed_for(space, model, tmp_path, monkeypatch, quick):
    monkeypatch.setattr("forkyard_llm.measuring.tune.run_prompts_arm", pytest.fail)
    monkeypatch.setattr("forkyard_llm.measuring.tune.run_batch_arm", lambda *_: [Result("all tokens", 50.0, None, "")])
    monkeypatch.setattr(
        "forkyard_llm.measuring.tune.Evaluator._measure", lambda _, points: [{"all tokens": 1.0}] * len(points)
    )
    several = Workload(16, 4, parallel=2)
    journal = Journal(tmp_path / "kept", {}, resume=False)
    found = tune(space, model, several, tmp_path / "log", Silent(), minutes=1, journal=journal, guesses=ways)
    assert found.best == space.space.default


def test_what_costs_too_much_quality_is_out(model, tmp_path, monkeypatch):
    engine = tmp_path / "bin" / "llama-bench"
    engine.parent.mkdir()
    engine.write_text(PROGRAM.format(python=sys.executable, record=str(tmp_path / "record")))
    engine.chmod(0o755)
    monkeypatch.setattr(Engine, "takes", lambda *_: True)
    space = choices([examine(engine)], Workload(16, 4), Host(1, None), summary(), cores=2, lossy=True)

    def measure(_, points):
        gains = {"q4_0": 3.0, "q8_0": 2.0}
        return [dict.fromkeys(("pp16", "tg4"), gains.get(space.values(one)["KV cache"], 1.0)) for one in points]

    def quality(_, __, words):
        return {"kld_mean": 0.001 if "q8_0" in words else 0.5, "same_top_percent": 99.0}

    monkeypatch.setattr("forkyard_llm.measuring.tune.Evaluator._measure", measure)
    monkeypatch.setattr("forkyard_llm.measuring.tune._confirm", lambda *_: [2.0])
    monkeypatch.setattr("forkyard_llm.measuring.tune.Judge._measure", quality)
    given = (space, model, Workload(16, 4), tmp_path / "log")
    journal = Journal(tmp_path / "kept", {}, resume=False)
    found = tune(*given, Silent(), minutes=1, journal=journal, judge=Judge(*given, journal, 0.02))
    assert space.values(found.best)["KV cache"] == "q8_0"
    assert "KL divergence 0.0010 from f16" in found.as_text()
    assert any("more than 0.02" in why for why in found.as_json()["failed"].values())


def test_who_interrupts_it_gets_the_best_so_far(space, model, tmp_path, monkeypatch):
    told = []

    class Listening(Silent):
        def note(self, text):
            told.append(text)

    measured, asked = fake_measure(space), []

    def measure(self, points):
        asked.append(points)
        if len(asked) > 6:
            raise KeyboardInterrupt
        return measured(self, points)

    monkeypatch.setattr("forkyard_llm.measuring.tune.Evaluator._measure", measure)
    journal = Journal(tmp_path / "kept", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        tune(space, model, Workload(16, 4), tmp_path / "log", Listening(), minutes=1, journal=journal)
    assert "not confirmed" in told[-1]
    assert "-t 8" in told[-1]


def test_who_interrupts_confirming_gets_the_best_so_far(space, model, tmp_path, monkeypatch, quick):
    told = []

    class Listening(Silent):
        def note(self, text):
            told.append(text)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("forkyard_llm.measuring.tune._confirm", interrupted)
    journal = Journal(tmp_path / "kept", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        tune(space, model, Workload(16, 4), tmp_path / "log", Listening(), minutes=1, journal=journal)
    assert "not confirmed" in told[-1]
    assert "-t 8" in told[-1]
