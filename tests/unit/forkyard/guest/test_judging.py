"""Each thing that must hold, by an observation in which only that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from forkyard.guest.cases import CASES, Case, Outcome
from forkyard.guest.enginereport import PAGE
from forkyard.guest.intake import Observation
from forkyard.guest.judging import judge

BY_NAME = {case.name: case for case in CASES}
WEIGHTS, KV = 100 * PAGE, 10 * PAGE
ANSWER = {"content": " Paris", "tokens": [1, 2], "completion_probabilities": [{"logprob": -0.25}]}
MAPS = "7f00 bind:0 anon=1 N0=500 N1=500 N2=500 N3=500 kernelpagesize_kB=4\n"


def nodes_text(case: Case) -> bytes:
    rows = []
    for node, cpus in case.topology.cpus().items():
        rows.append(f"{node} cpus {','.join(str(cpu) for cpu in cpus if cpu not in case.gone)}")
    return "\n".join(rows).encode()


def buffer(kind: str, size: int, nodes: tuple[int, ...]) -> dict[str, Any]:
    pages = -(-size // PAGE)
    copies = [{"id": node, "alias": node == nodes[0], "pages": pages, "here": pages} for node in nodes]
    return {"kind": kind, "bytes": size, "mirrored": bool(nodes), "node": copies, "differs": 0}


def mirror_report(nodes: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    return {
        "mode": "mirror",
        "nodes": [{"id": node, "cpus": 1, "local": WEIGHTS, "remote": 0} for node in nodes],
        "ranges": [buffer("weights", WEIGHTS, nodes), buffer("kv", KV, nodes)],
    }


def split_report() -> dict[str, Any]:
    report = mirror_report()
    report["mode"] = "split"
    report["ranges"] = [
        {**buffer("weights", WEIGHTS, ()), "slices_pages": 100, "slices_here": 95},
        buffer("kv", KV, ()),
    ]
    return report


def observed(case: Case, report: dict[str, Any] | None = None, **parts: bytes) -> Observation:
    given = {
        "nodes": nodes_text(case),
        "status": b"0 answers 9",
        "answer": json.dumps(ANSWER).encode(),
        "maps": MAPS.encode(),
        "log": b"loaded\n",
    }
    if report is not None:
        given["report"] = json.dumps(report).encode() + b"\n"
    return Observation({**given, **parts})


def twin(case: Case) -> Observation:
    return observed(case, maps=b"")


def findings(case: Case, seen: Observation | None, other: Observation | None = None) -> str:
    return " | ".join(judge(case, seen, other or twin(case)).findings)


def test_a_mirror_that_is_well() -> None:
    case = BY_NAME["mirror"]
    verdict = judge(case, observed(case, mirror_report()), twin(case))
    assert (verdict.outcome, verdict.findings) == (Outcome.MIRROR, ())
    assert verdict.report is not None
    assert verdict.mapped[1] == 500 * PAGE


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("mirror-four", mirror_report((0, 1, 2, 3))),
        ("cpus-of-two", mirror_report((1, 3))),
        ("number-gap", mirror_report((0, 2))),
        ("cpu-offline", mirror_report((0, 2, 3))),
        ("split", split_report()),
    ],
)
def test_others_that_are_well(name: str, report: dict[str, Any]) -> None:
    assert findings(BY_NAME[name], observed(BY_NAME[name], report)) == ""


def set_in(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def change(report: dict[str, Any]) -> None:
        at: Any = report
        for step in way:
            at = at[step]
        at[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_in("mode", "off"), "mode is off"),
        (set_in("nodes", [mirror_report()["nodes"][0]]), r"nodes in use are \(0,\)"),
        (set_in("nodes", 1, "remote", 4096), "node 1 read 4096 bytes from other nodes"),
        (set_in("ranges", 0, "node", 1, "here", 99), "weights for node 1: 99 of 100 pages"),
        (set_in("ranges", 1, "node", 0, "here", 0), "kv for node 0: 0 of 10 pages"),
        (set_in("ranges", 0, "node", 1, {"id": 1, "alias": False, "pages": 9, "here": 9}), "100 are needed"),
        (set_in("ranges", 0, "differs", 3), "3 bytes of its copies differ"),
        (set_in("ranges", 0, "mirrored", False), "weights is not mirrored"),
        (set_in("ranges", 0, "node", []), r"has copies for nodes \[\]"),
        (set_in("ranges", [buffer("weights", WEIGHTS, (0, 1))]), "no buffer of kv"),
        (lambda report: [set_in("nodes", n, "local", 1)(report) for n in (0, 1)], "fewer than the weights'"),
    ],
)
def test_a_mirror_with_one_thing_wrong(change: Callable[[dict[str, Any]], Any], says: str) -> None:
    report = mirror_report()
    change(report)
    case = BY_NAME["mirror"]
    verdict = judge(case, observed(case, report), twin(case))
    assert verdict.outcome is None
    assert len(verdict.findings) == 1 or says.startswith("nodes in use")
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(" | ".join(verdict.findings))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"maps": b"7f00 N0=500 N1=3 kernelpagesize_kB=4"}, "numa_maps has 12288 bytes on node 1, the report 450560"),
        ({"nodes": b"0 cpus 0-3"}, "not the machine of this case"),
        ({"status": b"137 hangs 300"}, "did not end within its time"),
        ({"status": b"134 answers 3"}, "signal 6; its last words: loaded"),
        ({"status": b"1 refused 3"}, "ended with 1"),
        ({"answer": b""}, "there is no answer: nothing came"),
        ({"answer": b"", "wget": b"wget ended with 1\n"}, "no answer: wget ended with 1"),
        ({"answer": json.dumps({**ANSWER, "content": " Lyon"}).encode()}, "it says ' Lyon', and without NUMA ' Paris'"),
        ({"answer": json.dumps({**ANSWER, "tokens": [1, 3]}).encode()}, "it says ' Paris'"),
        ({"answer": json.dumps({**ANSWER, "completion_probabilities": [1]}).encode()}, "probabilities of its tokens"),
        ({"report": b""}, "reported nothing"),
        ({"report": b"{}\n"}, "report cannot be read"),
    ],
)
def test_a_run_with_one_thing_wrong(parts: dict[str, bytes], says: str) -> None:
    case = BY_NAME["mirror"]
    well = observed(case, mirror_report())
    assert findings(case, well) == ""
    assert says in findings(case, Observation({**well.parts, **parts}))


def test_no_run_and_half_a_run() -> None:
    case = BY_NAME["mirror"]
    assert findings(case, None) == "it was not run to its end"
    half = observed(case, mirror_report())
    del half.parts["status"]
    assert findings(case, half) == "it was not run to its end"


def test_a_twin_without_an_answer_proves_nothing() -> None:
    case = BY_NAME["mirror"]
    for other in (Observation(), observed(case, answer=b"", log=b"no such option\n")):
        assert "without NUMA there was no answer" in findings(case, observed(case, mirror_report()), other)


def test_answers_without_probabilities_prove_little() -> None:
    case = BY_NAME["mirror"]
    bare = json.dumps({"content": "x", "tokens": [1]}).encode()
    assert "no probabilities" in findings(
        case, observed(case, mirror_report(), answer=bare), observed(case, answer=bare)
    )


def test_only_one_kind() -> None:
    case = BY_NAME["weights-only"]
    report = mirror_report()
    assert "kv is mirrored" in findings(case, observed(case, report))
    report["ranges"][1] = buffer("kv", KV, ())
    report["nodes"][1]["remote"] = KV
    assert findings(case, observed(case, report)) == ""


def test_interleaved_buffers_serve_nobody() -> None:
    case = BY_NAME["interleaved"]
    assert "weights serves node 0 itself" in findings(case, observed(case, mirror_report()))
    report = mirror_report()
    for one in report["ranges"]:
        one["node"][0]["alias"] = False
    assert findings(case, observed(case, report)) == ""


REFUSAL = b"numa-mirror: node 1 lacks 1234 bytes for a copy of 409600 bytes of weights\n"


def test_a_refusal() -> None:
    case = BY_NAME["too-small"]
    well = observed(case, status=b"1 refused 2", log=REFUSAL)
    assert judge(case, well, None).outcome is Outcome.REFUSED
    other_node = observed(case, status=b"1 refused 2", log=REFUSAL.replace(b"node 1", b"node 0"))
    assert "node 1 lacks" in findings(case, other_node)
    silent = observed(case, status=b"1 refused 2", log=b"failed to load the model\n")
    assert "node 1 lacks" in findings(case, silent)
    runs = observed(case, mirror_report(), log=REFUSAL)
    assert "should have refused" in findings(case, runs)
    crash = observed(case, status=b"134 refused 2", log=REFUSAL)
    assert "signal 6" in findings(case, crash)


def test_going_on_without_a_copy() -> None:
    case = BY_NAME["too-small-best-effort"]
    report = mirror_report()
    report["ranges"][0] = buffer("weights", WEIGHTS, ())
    assert judge(case, observed(case, report, log=REFUSAL), twin(case)).outcome is Outcome.PARTLY
    assert "node 1 lacks" in findings(case, observed(case, report))
    assert "though there is no room" in findings(case, observed(case, mirror_report(), log=REFUSAL))
    report["ranges"][1]["differs"] = 7
    assert "7 bytes" in findings(case, observed(case, report, log=REFUSAL))


def test_nothing_to_mirror() -> None:
    case = BY_NAME["cpus-of-one"]
    note = b"this process may use the CPUs of 1 NUMA node(s): there is nothing to mirror\n"
    assert judge(case, observed(case, log=note), twin(case)).outcome is Outcome.OFF
    assert "does not say" in findings(case, observed(case))
    assert "copies or slices" in findings(case, observed(case, mirror_report(), log=note))


def test_either_of_two_ends_is_well() -> None:
    case = BY_NAME["membind"]
    assert judge(case, observed(case, mirror_report()), twin(case)).outcome is Outcome.MIRROR
    refused = observed(case, status=b"1 refused 2", log=REFUSAL)
    assert judge(case, refused, twin(case)).outcome is Outcome.REFUSED
    report = mirror_report()
    report["ranges"][0]["node"][1]["here"] = 0
    assert judge(case, observed(case, report), twin(case)).outcome is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_in("ranges", 0, "slices_here", 80), "80 of 100 pages are on their node"),
        (set_in("ranges", 0, "slices_pages", 0), "only 0 pages were to be placed"),
        (set_in("ranges", [buffer("kv", KV, ())]), "no buffer of weights"),
        (lambda report: [set_in("nodes", n, "remote", 2 * WEIGHTS)(report) for n in (0, 1)], "from other nodes"),
        (set_in("mode", "mirror"), "mode is mirror"),
    ],
)
def test_a_split_with_one_thing_wrong(change: Callable[[dict[str, Any]], Any], says: str) -> None:
    report = split_report()
    change(report)
    assert says in findings(BY_NAME["split"], observed(BY_NAME["split"], report))


def test_a_split_the_kernel_does_not_see() -> None:
    case = BY_NAME["split"]
    assert "numa_maps" in findings(case, observed(case, split_report(), maps=b"7f00 N0=500 kernelpagesize_kB=4"))
