"""Evidence: what was not run cannot look passed, and outputs of tools are read as what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forkyard.console import Silent
from forkyard.pullrequest.evidence import FAIL, NOT_APPLICABLE, NOT_RUN, PASS, UNDECIDED, Evidence, Ledger
from forkyard.pullrequest.evidence.builds import Engine
from forkyard.pullrequest.evidence.inputs import Inputs, get_inputs
from forkyard.pullrequest.evidence.model import key_of, tail
from forkyard.pullrequest.evidence.operators import gather_operators, read_output
from forkyard.pullrequest.evidence.pairs import Compared, pair_order
from forkyard.pullrequest.evidence.quality import gather_divergence, gather_perplexity
from forkyard.pullrequest.evidence.regression import Results, gather_regression, judge, read_report
from forkyard.pullrequest.evidence.speed import gather_speed
from forkyard.pullrequest.evidence.speed import read_output as read_bench

SILENT = Silent()
INPUTS = Inputs("inputs/m.gguf", "0" * 64, "inputs/topics.txt", "1" * 64)


def program(folder: Path, side: str, name: str, script: str) -> None:
    path = folder / "engines" / side / "package" / "bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "evidence")


def engines(folder: Path) -> dict[str, Engine]:
    return {
        side: Engine(side, side * 4, folder / "engines" / side / "package", folder / f"{side}.whl", "avx2")
        for side in ("before", "after")
    }


def test_what_was_not_run_cannot_pass() -> None:
    with pytest.raises(ValueError, match="nothing was run"):
        Evidence("x", "X", PASS, "fine")
    with pytest.raises(ValueError, match="no state"):
        Evidence("x", "X", "passed", "fine", ("x",))


def test_the_ledger_gives_back_only_what_passed_with_the_same_key(ledger: Ledger) -> None:
    log = ledger.folder.parent / "logs" / "x.log"
    log.parent.mkdir(parents=True)
    log.write_text("x")
    good = Evidence("x", "X", PASS, "fine", ("x",), ("logs/x.log",), 1.5, {"a": [1]}, key_of("k"))
    ledger.keep(good)

    found = ledger.found("x", key_of("k"))

    assert found is not None
    assert (found.reused, found.seconds, found.data) == (True, 1.5, {"a": [1]})
    assert ledger.found("x", key_of("other")) is None
    log.unlink()
    assert ledger.found("x", key_of("k")) is None, "evidence without its log is none"


@pytest.mark.parametrize("state", [FAIL, UNDECIDED, NOT_RUN, NOT_APPLICABLE])
def test_the_ledger_has_others_run_again(ledger: Ledger, state: str) -> None:
    ledger.keep(Evidence("x", "X", state, "why", ("x",), key="k"))

    assert ledger.found("x", "k") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": 1}', '{"commands": 3, "logs": 4}'])
def test_a_damaged_ledger_is_an_empty_one(ledger: Ledger, text: str) -> None:
    ledger.folder.mkdir()
    (ledger.folder / "x.json").write_text(text)

    assert ledger.found("x", "k") is None


def test_tail() -> None:
    assert tail(["a", "", "b", "c", " d "]) == "b / c / d"
    assert tail([]) == "it printed nothing"


OPS = """Testing 2 devices

Backend 1/2: CPU
  Device description: x
  ADD(type=f32): \x1b[1;32mOK\x1b[0m
  12/12 tests passed
  Backend CPU: \x1b[1;32mOK\x1b[0m
Backend 2/2: CUDA0
  Skipping
2/2 backends passed
OK
"""


def test_backend_ops_output() -> None:
    assert read_output(OPS.splitlines()) == (2, {"CPU": (12, 12)})
    assert read_output([]) == (0, {})


def ops(tmp_path: Path, ledger: Ledger, output: str, status: int = 0, **options: Any) -> Evidence:
    (tmp_path / "said").write_text(output)
    program(tmp_path, "after", "test-backend-ops", f"cat {tmp_path / 'said'}; exit {status}")
    return gather_operators(engines(tmp_path), ledger, SILENT, **({"wanted": True, "quick": False} | options))


def test_operators_that_pass_say_on_which_backends(tmp_path: Path, ledger: Ledger) -> None:
    piece = ops(tmp_path, ledger, OPS.replace("Testing 2", "Testing 1"))

    assert (piece.state, piece.data["backends"], piece.data["complete"]) == (PASS, ["CPU"], True)
    assert "-b CPU" in piece.commands[0]
    assert str(tmp_path) not in piece.commands[0]
    assert (tmp_path / piece.logs[0]).read_text().startswith("$ engines/after/package/bin/test-backend-ops test -b CPU")


@pytest.mark.parametrize(
    ("output", "status", "why"),
    [
        ("Testing 1 devices\nBackend 1/1: CPU\n  Skipping CPU backend\n1/1 backends passed\nOK\n", 0, "ran no test"),
        ("", 0, "ran no test"),
        ("Testing 1 devices\nBackend 1/1: CPU\n  0/0 tests passed\n", 0, "ran no test"),
        ("Testing 1 devices\nBackend 1/1: CPU\n  3/4 tests passed\n", 0, "not all"),
        ("Testing 1 devices\nBackend 1/1: CPU\n  4/4 tests passed\n", 1, "exit status 1"),
    ],
)
def test_operators_that_did_not_pass(tmp_path: Path, ledger: Ledger, output: str, status: int, why: str) -> None:
    piece = ops(tmp_path, ledger, output, status)

    assert piece.state == FAIL
    assert why in piece.reason


def test_operators_that_die_or_are_missing_have_failed(tmp_path: Path, ledger: Ledger) -> None:
    program(tmp_path, "after", "test-backend-ops", "kill -SEGV $$")
    piece = gather_operators(engines(tmp_path), ledger, SILENT, wanted=True, quick=False)
    assert (piece.state, "killed by signal 11" in piece.reason) == (FAIL, True)

    (tmp_path / "engines/after/package/bin/test-backend-ops").unlink()
    piece = gather_operators(engines(tmp_path), ledger, SILENT, wanted=True, quick=False)
    assert piece.state == FAIL


def test_operators_not_run(tmp_path: Path, ledger: Ledger) -> None:
    assert gather_operators({}, ledger, SILENT, wanted=True, quick=False).state == NOT_RUN
    assert gather_operators({}, ledger, SILENT, wanted=False, quick=False).state == NOT_RUN


def test_quick_operators_say_that_they_are_not_all(tmp_path: Path, ledger: Ledger) -> None:
    piece = ops(tmp_path, ledger, OPS.replace("Testing 2", "Testing 1"), quick=True)

    assert piece.data["complete"] is False
    assert "only: --quick" in piece.reason


def perplexity(tmp_path: Path, ledger: Ledger, before: str, after: str) -> Evidence:
    for side, said in (("before", before), ("after", after)):
        program(tmp_path, side, "llama-perplexity", said)
    return gather_perplexity(engines(tmp_path), INPUTS, ledger, SILENT, chunks=4, rounds=2, threads=1)


def final(value: float) -> str:
    return f"echo 'Final estimate: PPL = {value} +/- 0.5'"


@pytest.mark.parametrize(("after", "state"), [(10.0, PASS), (9.0, PASS), (10.009, PASS), (10.02, FAIL), (20.0, FAIL)])
def test_perplexity_may_not_rise(tmp_path: Path, ledger: Ledger, after: float, state: str) -> None:
    piece = perplexity(tmp_path, ledger, final(10.0), final(after))

    assert piece.state == state
    assert piece.data["before"]["values"] == [10.0, 10.0]


@pytest.mark.parametrize("said", ["echo nothing", f"{final(10.0)}; exit 3", "echo 'Final estimate: PPL = nan +/- nan'"])
def test_perplexity_without_an_estimate_has_failed(tmp_path: Path, ledger: Ledger, said: str) -> None:
    piece = perplexity(tmp_path, ledger, final(10.0), said)

    assert piece.state == FAIL
    assert piece.reason.startswith("after: ")


def test_perplexity_as_ik_llama_cpp_tells_it(tmp_path: Path, ledger: Ledger) -> None:
    said = "echo 'Final estimate: PPL over 1 chunks for n_ctx=512 = 96.4928 +/- 17.05347'"
    assert perplexity(tmp_path, ledger, said, said).data["after"]["median"] == 96.4928


def test_finished_measurements_are_not_repeated(tmp_path: Path, ledger: Ledger) -> None:
    counting = f"{final(10.0)}; echo x >> {tmp_path / 'count'}"
    first = perplexity(tmp_path, ledger, counting, counting)
    again = perplexity(tmp_path, ledger, counting, counting)

    assert (first.reused, again.reused, again.state) == (False, True, PASS)
    assert (tmp_path / "count").read_text().count("x") == 4


BENCH = '[{"n_prompt": 128, "n_gen": 0, "avg_ts": %s}, {"n_prompt": 0, "n_gen": 32, "avg_ts": %s}]'


def test_bench_output() -> None:
    assert read_bench(["load [model]", *(BENCH % (10, 5)).split(" "), "end"]) == {"prompt": 10, "generation": 5}
    for bad in ("", "[]", "[", BENCH % (0, 5), BENCH % (-1, 5), BENCH % ('"9"', 5), BENCH % ("NaN", 5), "[1]", "[[]]"):
        assert read_bench([bad]) is None, bad
    assert read_bench(['[{"n_gen": 32, "avg_ts": 5}]']) is None


def bench(tmp_path: Path, ledger: Ledger, before: str, after: str) -> Evidence:
    for side, said in (("before", before), ("after", after)):
        program(tmp_path, side, "llama-bench", said)
    return gather_speed(engines(tmp_path), INPUTS, ledger, SILENT, rounds=3, threads=1)


@pytest.mark.parametrize(("speed", "state"), [(100, PASS), (200, PASS), (96, PASS), (94, FAIL), (1, FAIL)])
def test_speed_may_not_fall(tmp_path: Path, ledger: Ledger, speed: float, state: str) -> None:
    piece = bench(tmp_path, ledger, f"echo '{BENCH % (100, 100)}'", f"echo '{BENCH % (100, speed)}'")

    assert piece.state == state
    assert piece.data["generation"]["median_ratio_of_pairs"] == speed / 100
    assert piece.data["undecided"] == []


def test_noise_that_allows_either_answer_decides_nothing(tmp_path: Path, ledger: Ledger) -> None:
    counter, answer = tmp_path / "count", tmp_path / "answer"
    answer.write_text(BENCH % ("SPEED", 5))
    # 40, 80 and 120 against 100.
    noisy = f'echo x >> {counter}; n=$(wc -l < {counter}); sed "s/SPEED/$((40 * n))/" {answer}'
    piece = bench(tmp_path, ledger, f"echo '{BENCH % (100, 5)}'", noisy)

    assert (piece.state, piece.data["undecided"]) == (UNDECIDED, ["prompt"])
    assert "prompt may be above or below" in piece.reason
    assert ledger.found("bench", piece.key) is None


def test_a_bench_that_breaks_has_failed(tmp_path: Path, ledger: Ledger) -> None:
    piece = bench(tmp_path, ledger, f"echo '{BENCH % (1, 1)}'", "exit 4")

    assert (piece.state, piece.reason.startswith("after: exit status 4")) == (FAIL, True)


def test_pairs() -> None:
    assert [pair_order(number)[0] for number in range(4)] == ["before", "after", "before", "after"]
    one = Compared((10.0, 20.0, 40.0), (11.0, 22.0, 20.0))
    assert one.ratio == pytest.approx(1.1)
    assert one.spread == pytest.approx(1.5)


@pytest.mark.parametrize(("count", "left_out"), [(1, 0), (3, 0), (6, 0), (9, 1)])
def test_the_interval_of_a_median(count: int, left_out: int) -> None:
    one = Compared((1.0,) * count, tuple(float(number) for number in range(1, count + 1)))
    assert one.interval == (1 + left_out, count - left_out)


def test_no_model_and_no_engine_are_not_run(tmp_path: Path, ledger: Ledger) -> None:
    both = engines(tmp_path)
    options: dict[str, Any] = {"threads": 1}
    for piece in (
        gather_perplexity(both, "no model", ledger, SILENT, chunks=1, rounds=1, **options),
        gather_speed(both, "no model", ledger, SILENT, rounds=1, **options),
        gather_divergence(both, "no model", ledger, SILENT, types=["GGML_TYPE_X"], chunks=1, **options),
    ):
        assert (piece.state, piece.reason) == (NOT_RUN, "no model")
    one = {"before": both["before"]}
    assert gather_speed(one, INPUTS, ledger, SILENT, rounds=1, **options).reason == "there is no build after"


def divergence(tmp_path: Path, ledger: Ledger, script: str, types: tuple[str, ...] = ("GGML_TYPE_TBQ3_0",)) -> Evidence:
    program(tmp_path, "after", "llama-perplexity", script)
    return gather_divergence(engines(tmp_path), INPUTS, ledger, SILENT, types=types, chunks=1, threads=1)


KLD = "case \"$*\" in *-ctk*) echo 'Mean    KLD:   0.001234 +/-   0.000100'; echo 'Same top p: 98.5 +/- 0.1 %';; *) : > inputs/reference-logits.dat;; esac"


def test_divergence_of_a_new_type(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "inputs").mkdir()
    piece = divergence(tmp_path, ledger, KLD)

    assert piece.state == PASS
    assert piece.data["types"]["tbq3_0"] == {"mean_kld": 0.001234, "same_top_percent": 98.5}
    assert set(piece.data["types"]) == {"tbq3_0", "q8_0", "q4_0"}
    assert not (tmp_path / "inputs" / "reference-logits.dat").exists()


def test_divergence_that_cannot_be_measured(tmp_path: Path, ledger: Ledger) -> None:
    refused = "case \"$*\" in *tbq3_0*) echo 'error: Unsupported cache type: tbq3_0'; exit 1;; *-ctk*) echo 'Mean KLD: 0.1';; esac"
    piece = divergence(tmp_path, ledger, refused)
    assert (piece.state, piece.data["refused_as_cache_type"]) == (NOT_RUN, ["tbq3_0"])

    assert divergence(tmp_path, ledger, "exit 1").state == FAIL
    assert divergence(tmp_path, ledger, "echo well").state == FAIL
    piece = divergence(tmp_path, ledger, "exit 1", types=())
    assert (piece.state, "adds no GGML_TYPE_" in piece.reason) == (NOT_APPLICABLE, True)


def results(**outcomes: str) -> Results:
    return Results(outcomes)


@pytest.mark.parametrize(
    ("before", "after", "state", "why"),
    [
        ({"a": "failed", "b": "passed"}, {"a": "passed", "b": "passed"}, PASS, "1 tests fail on upstream"),
        ({"a": "failed"}, {"a": "failed"}, FAIL, "1 fail on the branch"),
        ({"a": "passed"}, {"a": "passed"}, FAIL, "do not notice"),
        ({"a": "skipped"}, {"a": "skipped"}, FAIL, "do not notice"),
        ({"a": "failed"}, {"a": "skipped"}, FAIL, "do not notice"),
        ({"a": "error"}, {"a": "passed"}, FAIL, "could not even be tried"),
        ({"a": "failed", "b": "passed"}, {"a": "passed", "b": "error"}, FAIL, "1 fail on the branch"),
        ({}, {}, FAIL, "do not notice"),
    ],
)
def test_judging_tests(before: dict[str, str], after: dict[str, str], state: str, why: str) -> None:
    found, reason, data = judge(results(**before), results(**after))

    assert found == state
    assert why in reason
    assert data["after"]["passed"] == list(after.values()).count("passed")


def test_a_report_of_pytests(tmp_path: Path) -> None:
    path = tmp_path / "r.xml"
    path.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="m" name="a"/><testcase classname="m" name="b"><failure/></testcase>'
        '<testcase classname="m" name="c"><skipped/></testcase><testcase classname="m" name="d"><error/></testcase>'
        '<testcase classname="m" name="a"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    assert read_report(path) == {"m::a": "error", "m::b": "failed", "m::c": "skipped", "m::d": "error"}


def test_tests_that_are_not_there(tmp_path: Path, ledger: Ledger) -> None:
    arguments: tuple[Any, ...] = (["x.patch"], engines(tmp_path), ledger, SILENT)
    piece = gather_regression(tmp_path, "llama.cpp", ["tests/none.py"], *arguments, whole_stack=True)
    assert (piece.state, "tests/none.py" in piece.reason) == (FAIL, True)

    piece = gather_regression(tmp_path, "llama.cpp", [], *arguments, whole_stack=True)
    assert (piece.state, piece.reason) == (NOT_RUN, "stack.toml names no test")


def test_real_tests_are_run_on_both_engines(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(
        "import os\n"
        "def test_engine():\n    assert os.environ['FORKYARD_PAYLOAD_LLAMA_CPP'].endswith('after.whl')\n"
        "def test_stock():\n    assert os.environ['FORKYARD_PAYLOAD_LLAMA_CPP_STOCK'].endswith('before.whl')\n"
        "    assert os.environ['FORKYARD_TEST_VARIANT'] == 'avx2'\n"
        "    assert os.environ['GGML_NO_BACKTRACE'] == '1'\n"
    )
    arguments: tuple[Any, ...] = (["tests/test_x.py"], ["x.patch"], engines(tmp_path), ledger, SILENT)
    piece = gather_regression(tmp_path, "llama.cpp", *arguments, whole_stack=True)

    assert piece.state == PASS, piece.reason
    assert [name.rpartition("::")[2] for name in piece.data["fail_before_pass_after"]] == ["test_engine"]
    assert gather_regression(tmp_path, "llama.cpp", *arguments, whole_stack=True).reused
    (tmp_path / "tests" / "test_x.py").write_text("def broken(:\n")
    piece = gather_regression(tmp_path, "llama.cpp", *arguments, whole_stack=True)
    assert (piece.state, piece.reason.startswith("before: pytest: exit status 2")) == (FAIL, True)


def test_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "nothing here"))
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    found = get_inputs(tmp_path, tmp_path / "out", model, offline=True)

    assert isinstance(found, Inputs)
    assert (tmp_path / "out" / found.model).read_bytes() == b"GGUF"
    assert len((tmp_path / "out" / found.text).read_bytes()) > 100_000
    assert isinstance(get_inputs(tmp_path, tmp_path / "out", tmp_path / "none", offline=True), str)
    why = get_inputs(tmp_path, tmp_path / "out", None, offline=True)
    assert isinstance(why, str)
    assert "could not be had" in why


def test_json_of_evidence() -> None:
    piece = Evidence("x", "X", PASS, "fine", ("x",), data={"a": 1.5})
    assert json.loads(json.dumps(piece.as_json()))["data"] == {"a": 1.5}
