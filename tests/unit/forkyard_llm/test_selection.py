"""Which payload is taken, which are not, why, and that a crashing one only kills its probe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import cpu, llama, selection, verdicts
from forkyard_llm.cpu import HostCpu
from forkyard_llm.errors import EngineError, PayloadNotFound, PayloadRejected, UsageError
from forkyard_llm.payloads import Payload, read_payload
from forkyard_llm.selection import Verdict, judge, select, suggestion, survey

MakePayload = Callable[..., Path]

CRASH = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


@pytest.fixture
def all_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every probe says yes; the names probed, in order."""
    probed: list[str] = []

    def probe(payload: Payload) -> tuple[Verdict, bool]:
        probed.append(payload.distribution)
        return Verdict(True, "works"), True

    monkeypatch.setattr(selection, "_probe", probe)
    return probed


@pytest.fixture(autouse=True)
def no_installed_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())


def test_the_highest_rank_wins_and_only_it_is_probed(make_payload: MakePayload, all_work: list[str]) -> None:
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    make_payload("forkyard-llama-cpp-avx512", rank=40)
    assert select().distribution == "forkyard-llama-cpp-avx512"
    assert all_work == ["forkyard-llama-cpp-avx512"]


def test_auto_prefers_llama_cpp_whatever_the_rank(make_payload: MakePayload, all_work: list[str]) -> None:
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    make_payload("forkyard-ik-llama-cpp-avx512", rank=40)
    assert select().engine == "llama.cpp"
    assert select("ik_llama.cpp").engine == "ik_llama.cpp"


def test_of_two_pins_of_an_engine_the_newer_one_is_taken(make_payload: MakePayload, all_work: list[str]) -> None:
    make_payload("forkyard-llama-cpp-2026-05-avx2", variant="avx2", version="2026.5.11+g7d442abf5.k111111111111")
    make_payload("forkyard-llama-cpp-avx2", variant="avx2", version="2026.10.1+g0c1e57098.k222222222222")
    assert select().distribution == "forkyard-llama-cpp-avx2"
    assert select("forkyard-llama-cpp-2026-05-avx2").distribution == "forkyard-llama-cpp-2026-05-avx2"


def test_auto_takes_ik_when_nothing_else_is_there(make_payload: MakePayload, all_work: list[str]) -> None:
    make_payload("forkyard-ik-llama-cpp-avx512")
    assert select().engine == "ik_llama.cpp"


@pytest.mark.parametrize("engine", ["ik_llama.cpp", "ik-llama-cpp", "ik_llama_cpp", "forkyard-ik-llama-cpp-avx2"])
def test_ways_to_name_an_engine(make_payload: MakePayload, all_work: list[str], engine: str) -> None:
    make_payload("forkyard-llama-cpp-avx2")
    make_payload("forkyard-ik-llama-cpp-avx2")
    assert select(engine).distribution == "forkyard-ik-llama-cpp-avx2"


def test_a_variant_can_be_asked_for(make_payload: MakePayload, all_work: list[str]) -> None:
    make_payload("forkyard-llama-cpp-avx512", rank=40)
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    assert select(variant="avx2").variant == "avx2"


def test_a_payload_this_cpu_cannot_run_is_passed_over_without_a_probe(
    make_payload: MakePayload, all_work: list[str]
) -> None:
    make_payload("forkyard-llama-cpp-sse42", rank=10)
    make_payload("forkyard-llama-cpp-alien", rank=99, cpu_features=["avx512_4fmaps", "avx1024"])
    assert select().variant == "sse42"
    assert all_work == ["forkyard-llama-cpp-sse42"]


ARM = {"machine": "aarch64", "cpu_features": ["asimd", "asimddp"]}


def arm(*features: str) -> HostCpu:
    return HostCpu("neoverse_n1", "ARM", "Neoverse N1", "aarch64", frozenset(features))


def test_a_payload_for_another_machine_is_passed_over_without_a_probe(
    make_payload: MakePayload, all_work: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    make_payload("forkyard-llama-cpp-sse42", rank=10)
    make_payload("forkyard-llama-cpp-dotprod", rank=99, **ARM)
    with caplog.at_level("WARNING"):
        assert select().variant == "sse42"
    assert all_work == ["forkyard-llama-cpp-sse42"]
    assert not caplog.records
    with pytest.raises(PayloadRejected, match="it is for aarch64, this machine is x86_64"):
        select(variant="dotprod")


def test_on_another_machine_its_payloads_are_judged_by_its_features(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload("forkyard-llama-cpp-sse42", rank=99)
    make_payload("forkyard-llama-cpp-dotprod", rank=30, **ARM)
    make_payload("forkyard-llama-cpp-sve2", rank=60, machine="aarch64", cpu_features=["asimd", "sve2"])
    monkeypatch.setattr(cpu, "host", lambda: arm("fp", "asimd", "asimddp"))
    assert select().variant == "dotprod"
    with pytest.raises(PayloadRejected) as caught:
        select(variant="sve2")
    assert "this CPU lacks sve2" in str(caught.value)
    assert "nox -s build-cpu-aarch64" in str(caught.value)
    with pytest.raises(PayloadRejected, match="it is for x86_64, this machine is aarch64"):
        select(variant="sse42")
    assert all_work == ["forkyard-llama-cpp-dotprod"]


def test_rejection_names_every_candidate_the_reason_and_the_next_step(make_payload: MakePayload) -> None:
    make_payload("forkyard-llama-cpp-alien", cpu_features=["avx512_4fmaps", "avx1024"])
    make_payload("forkyard-ik-llama-cpp-alien", cpu_features=["fma4"])
    with pytest.raises(PayloadRejected) as caught:
        select()
    text = str(caught.value)
    assert "forkyard-llama-cpp-alien: this CPU lacks avx512_4fmaps, avx1024" in text
    assert "avx1024 is not a CPU feature name" in text
    assert "forkyard-ik-llama-cpp-alien: this CPU lacks fma4" in text
    assert "nox -s build-" in text
    assert [item.distribution for item in caught.value.rejections] == [
        "forkyard-llama-cpp-alien",
        "forkyard-ik-llama-cpp-alien",
    ]
    assert caught.value.exit_code == 4


def test_nothing_installed_says_what_to_build() -> None:
    with pytest.raises(PayloadNotFound, match="nox -s build-") as caught:
        select()
    assert caught.value.exit_code == 3


def test_what_is_broken_is_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", str(tmp_path))
    with pytest.raises(PayloadNotFound, match=r"unusable: .*cannot read .*manifest\.json"):
        select()


def test_an_engine_nobody_knows(make_payload: MakePayload) -> None:
    make_payload()
    with pytest.raises(UsageError, match=r"unknown engine 'lama\.cpp'; known: auto, llama\.cpp, ik_llama\.cpp"):
        select("lama.cpp")


def test_the_suggestion_runs_on_any_cpu() -> None:
    assert "nox -s build-cpu" in suggestion()
    assert "pip install forkyard-ik-llama-cpp-avx512" in suggestion("ik_llama.cpp", "avx512")


# -- payloads for GPUs

GPU_FACTS = {"library": "ggml-gpu", "requires": [], "needs": ["libgpu.so.1"]}


def test_a_payload_for_gpus_that_finds_none_comes_last(
    make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload("forkyard-llama-cpp-anygpu", kind="backend", backend=GPU_FACTS, rank=330)
    facts: dict[str, str] = {"no_gpu": "there is no driver"}
    monkeypatch.setattr(
        selection, "_probe", lambda one: (Verdict(True, "works", dict(facts) if one.for_gpu else {}), True)
    )
    # Better than nothing.
    assert select().variant == "anygpu"
    make_payload("forkyard-llama-cpp-sse42", rank=10)
    assert select().variant == "sse42"
    assert select(variant="anygpu").variant == "anygpu"
    # Of the next process that is true no more if a driver is there by then.
    facts.clear()
    assert select().variant == "sse42"
    verdicts._remembered.clear()
    assert select().variant == "anygpu"


def test_its_other_instruction_sets_are_not_tried(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []

    def probe(payload: Payload) -> tuple[Verdict, bool]:
        probed.append(payload.title)
        return Verdict(True, "works", {"no_gpu": "none"} if payload.for_gpu else {}), False

    monkeypatch.setattr(selection, "_probe", probe)
    monkeypatch.setattr(cpu, "host", lambda: cpu.HostCpu("", "", "", "x86_64", frozenset({"avx512f", "avx2"})))
    make_payload("forkyard-ik-llama-cpp-anygpu", kind="backend", backend=GPU_FACTS, rank=300, members=MEMBERS)
    make_payload("forkyard-ik-llama-cpp-sse42", rank=10)
    assert select().variant == "sse42"
    assert probed == ["forkyard-ik-llama-cpp-anygpu (avx512)", "forkyard-ik-llama-cpp-sse42"]


# -- payloads that carry several instruction sets

MEMBERS = [
    {"name": "avx512", "rank": 40, "cpu_features": ["avx512f"], "libraries": {"ggml": "lib/avx512/libggml.so"}},
    {"name": "avx2", "rank": 30, "cpu_features": ["avx2"], "libraries": {"ggml": "lib/libggml.so"}},
    {"name": "x86-64", "rank": 5, "cpu_features": [], "libraries": {"ggml": "lib/x86-64/libggml.so"}},
]


@pytest.fixture
def of_many(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a payload of several instruction sets, on a CPU with the features given."""

    def make(*features: str) -> None:
        make_payload("forkyard-ik-llama-cpp-cpu", kind="cpu", rank=0, members=MEMBERS)
        monkeypatch.setattr(cpu, "host", lambda: cpu.HostCpu("", "", "", "x86_64", frozenset(features)))

    return make


@pytest.mark.parametrize(
    ("features", "member", "library", "folders"),
    [
        (("avx2", "avx512f"), "avx512", "lib/avx512/libggml.so", ["lib/avx512"]),
        (("avx2",), "avx2", "lib/libggml.so", []),
        ((), "x86-64", "lib/x86-64/libggml.so", ["lib/x86-64"]),
    ],
)
def test_the_best_instruction_set_is_taken(
    of_many: Callable[..., None],
    all_work: list[str],
    features: tuple[str, ...],
    member: str,
    library: str,
    folders: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_many(*features)
    payload = select()
    assert (payload.member, payload.variant) == (member, "cpu")
    assert payload.manifest["libraries"]["ggml"] == library
    assert payload.title == f"forkyard-ik-llama-cpp-cpu ({member})"
    # Its tools must load the same.
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    wanted = {"LD_LIBRARY_PATH": ":".join(str(payload.root / folder) for folder in folders)} if folders else {}
    assert payload.environment() == wanted
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine:/ours")
    assert payload.environment() == {name: f"{value}:/mine:/ours" for name, value in wanted.items()}
    assert read_payload(payload.root, member) == payload


def test_one_instruction_set_can_be_asked_for(of_many: Callable[..., None], all_work: list[str]) -> None:
    of_many("avx2", "avx512f")
    assert select(variant="avx2").member == "avx2"
    assert select(variant="cpu").member == "avx512"
    with pytest.raises(PayloadNotFound):
        select(variant="sse42")


def test_a_payload_of_one_instruction_set_is_as_good(
    of_many: Callable[..., None], make_payload: MakePayload, all_work: list[str]
) -> None:
    of_many("avx2", "avx512f")
    make_payload("forkyard-ik-llama-cpp-avx2", rank=30, cpu_features=["avx2"])
    assert select().member == "avx512"
    make_payload("forkyard-ik-llama-cpp-avx512-vnni", rank=50, cpu_features=["avx512f"])
    assert select().variant == "avx512-vnni"


def test_an_instruction_set_that_does_not_work_is_passed_over(
    of_many: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def probe(payload: Payload) -> tuple[Verdict, bool]:
        return (
            (Verdict(False, "crashed with SIGILL"), True) if payload.member == "avx512" else (Verdict(True, ""), True)
        )

    monkeypatch.setattr(selection, "_probe", probe)
    of_many("avx2", "avx512f")
    assert select().member == "avx2"
    assert "not forkyard-ik-llama-cpp-cpu (avx512): crashed with SIGILL" in caplog.text
    # Each has a verdict of its own, remembered.
    monkeypatch.setattr(selection, "_probe", lambda payload: (Verdict(payload.member == "x86-64", "new"), True))
    assert [(item.payload.member, item.verdict.reason) for item in survey(refresh=False)] == [
        ("avx512", "crashed with SIGILL"),
        ("avx2", ""),
        ("x86-64", "new"),
    ]


def test_the_override_leaves_every_instruction_set(
    of_many: Callable[..., None], all_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_many("avx2")
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", "forkyard-ik-llama-cpp-cpu")
    assert select().member == "avx2"
    assert select(variant="x86-64").member == "x86-64"


@pytest.mark.parametrize(
    "member",
    [
        "avx2",
        {"name": "", "rank": 1, "cpu_features": [], "libraries": {}},
        {"name": "a", "rank": True, "cpu_features": [], "libraries": {}},
        {"name": "a", "rank": 1, "cpu_features": [1], "libraries": {}},
        {"name": "a", "rank": 1, "cpu_features": [], "libraries": {"ggml": "../x"}},
        {"name": "a", "rank": 1, "cpu_features": []},
    ],
)
def test_instruction_sets_that_are_none(make_payload: MakePayload, all_work: list[str], member: object) -> None:
    make_payload("forkyard-ik-llama-cpp-cpu", members=[member])
    with pytest.raises(PayloadNotFound, match="'members' is not a list of instruction sets"):
        select()


# -- the environment override


def test_the_override_names_a_distribution(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload("forkyard-llama-cpp-avx512", rank=40)
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", "forkyard-llama-cpp-avx2")
    assert select().variant == "avx2"


def test_the_override_names_a_folder(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_payload()
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD_PATH")
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", str(root))
    assert select().root == root.resolve()
    assert [candidate.payload.root for candidate in survey()] == [root.resolve()]


def test_the_override_must_not_contradict_the_arguments(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload()
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", "forkyard-llama-cpp-avx2")
    with pytest.raises(UsageError, match=r"names forkyard-llama-cpp-avx2 .* but engine ik_llama\.cpp was asked for"):
        select("ik_llama.cpp")


def test_the_override_does_not_override_the_cpu(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> None:
    make_payload("forkyard-llama-cpp-alien", cpu_features=["avx512_4fmaps"])
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", "forkyard-llama-cpp-alien")
    with pytest.raises(PayloadRejected, match="this CPU lacks"):
        select()


def test_an_override_that_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", "forkyard-nothing")
    with pytest.raises(PayloadNotFound, match="neither an installed payload's name nor a folder"):
        select()


# -- real probes, in real child processes


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV", "SIGABRT"])
def test_a_payload_that_kills_its_probe_is_rejected(make_payload: MakePayload, name: str) -> None:
    payload = read_payload(make_payload(abi=CRASH.format(name)))
    verdict = judge(payload)
    assert not verdict.usable
    assert verdict.reason == f"crashed with {name} in the probe"


def test_after_a_crash_the_next_best_is_taken(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> None:
    make_payload("forkyard-llama-cpp-avx512", rank=40, abi=CRASH.format("SIGILL"))
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    really = selection._probe
    monkeypatch.setattr(
        selection, "_probe", lambda p: (Verdict(True, "works"), True) if p.variant == "avx2" else really(p)
    )
    assert select().variant == "avx2"


def test_a_damaged_payload_is_rejected_with_what_loading_says(make_payload: MakePayload) -> None:
    verdict = judge(read_payload(make_payload()))
    assert not verdict.usable
    assert "reinstall it" in verdict.reason
    assert verdict.facts["error"] == "AbiMismatch"


def test_what_the_payload_prints_is_not_taken_for_the_verdict(make_payload: MakePayload) -> None:
    noise = """print('{"usable": true, "reason": "trust"}')\nimport os\nos.write(1, b'{"usable": true}')\n"""
    verdict = judge(read_payload(make_payload(abi=noise)))
    assert not verdict.usable


def test_a_probe_that_hangs_is_ended(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PROBE_TIMEOUT_S", 1.0)
    payload = read_payload(make_payload(abi="import time\ntime.sleep(60)\n"))
    verdict = judge(payload)
    assert verdict.reason == "its probe did not end within 1 s"
    assert not list(cache_files())


def test_the_working_directory_does_not_get_into_the_probe(
    make_payload: MakePayload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    assert "reinstall it" in judge(read_payload(make_payload())).reason


# -- remembering


def cache_files() -> list[Path]:
    from forkyard_llm.cache import cache_dir

    return sorted((cache_dir() / "verdicts").glob("*.json"))


def test_a_verdict_is_remembered_across_processes(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = read_payload(make_payload())
    select()
    monkeypatch.setattr(verdicts, "_remembered", {})
    select()
    assert all_work == ["forkyard-llama-cpp-avx2"]
    assert judge(payload).remembered


def test_a_crash_is_remembered(make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = read_payload(make_payload(abi=CRASH.format("SIGILL")))
    judge(payload)
    monkeypatch.setattr(verdicts, "_remembered", {})
    monkeypatch.setattr(selection, "_probe", lambda payload: pytest.fail("probed again"))
    again = judge(payload)
    assert again.remembered
    assert again.reason == "crashed with SIGILL in the probe"


def test_a_failure_that_may_go_away_is_not_remembered(make_payload: MakePayload) -> None:
    judge(read_payload(make_payload()))
    assert cache_files() == []


def test_changed_files_are_probed_again(make_payload: MakePayload, all_work: list[str]) -> None:
    root = make_payload()
    select()
    (root / "lib/libllama.so").write_text("other")
    select()
    assert len(all_work) == 2


def test_another_cpu_is_probed_again(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload()
    select()
    monkeypatch.setattr(cpu, "host", lambda: cpu.HostCpu("", "", "other", "x86_64", frozenset({"sse2"})))
    select()
    assert len(all_work) == 2


@pytest.mark.parametrize(
    "name", ["LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"]
)
def test_another_environment_is_probed_again(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_payload()
    monkeypatch.delenv(name, raising=False)
    select()
    monkeypatch.setenv(name, "/somewhere")
    select()
    monkeypatch.delenv(name)
    monkeypatch.setenv("LESS", "-R")
    select()
    assert len(all_work) == 2


def test_what_comes_into_the_linker_s_way_is_probed_again(
    make_payload: MakePayload, all_work: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload()
    folder = tmp_path / "libraries"
    folder.mkdir()
    os.utime(folder, (1, 1))
    preloaded = tmp_path / "preloaded.so"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'nothing'}:{folder}")
    monkeypatch.setenv("LD_PRELOAD", str(preloaded))
    select()
    (folder / "libstdc++.so.6").touch()
    select()
    preloaded.touch()
    select()
    select()
    assert len(all_work) == 3


def test_a_system_library_that_changes_is_probed_again(
    make_payload: MakePayload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libstdc++.so.6"
    library.write_bytes(b"new")
    probed: list[str] = []

    def probe(payload: Payload) -> tuple[Verdict, bool]:
        probed.append(payload.distribution)
        return Verdict(True, "works", depends_on=[verdicts.stamp(str(library))]), True

    monkeypatch.setattr(selection, "_probe", probe)
    make_payload()
    select()
    monkeypatch.setattr(verdicts, "_remembered", {})
    select()
    assert len(probed) == 1
    library.write_bytes(b"older")
    select()
    library.unlink()
    monkeypatch.setattr(verdicts, "_remembered", {})
    select()
    assert len(probed) == 3


def test_the_probe_says_which_system_libraries_it_had(make_payload: MakePayload, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "forkyard_llm.probing", str(make_payload())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=1800, check=False)
    files = json.loads(done.stdout)["depends_on"]
    assert any("libc" in path for path, _, _ in files)
    assert files == [verdicts.stamp(path) for path, _, _ in files]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Verdict, bool]]:
    """What the probe of a variant says; it says of all others that they work."""
    said: dict[str, tuple[Verdict, bool]] = {}
    monkeypatch.setattr(selection, "_probe", lambda payload: said.get(payload.variant, (Verdict(True, "works"), True)))
    return said


BROKEN = (Verdict(False, "libstdc++.so.6: version `GLIBCXX_3.4.30' not found"), False)


def test_a_good_verdict_ends_with_the_first_bad_one(
    make_payload: MakePayload, answers: dict[str, tuple[Verdict, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = read_payload(make_payload())
    assert judge(payload).usable
    answers["avx2"] = BROKEN
    assert judge(payload).usable  # nothing it depends on has changed
    assert not judge(payload, refresh=True).usable
    assert not judge(payload).usable
    assert cache_files() == []


def test_a_verdict_that_cannot_be_deleted_is_not_believed_either(
    make_payload: MakePayload, answers: dict[str, tuple[Verdict, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError

    payload = read_payload(make_payload())
    judge(payload)
    answers["avx2"] = BROKEN
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        judge(payload, refresh=True)
    assert cache_files() != []
    assert not judge(payload).usable


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGKILL", "SIGTERM"])
def test_a_death_that_a_lack_of_memory_may_have_caused_is_not_remembered(make_payload: MakePayload, name: str) -> None:
    verdict = judge(read_payload(make_payload(abi=CRASH.format(name))))
    assert verdict.reason == f"crashed with {name} in the probe"
    assert cache_files() == []


def test_a_payload_that_cannot_be_loaded_after_all_makes_room_for_the_next(
    make_payload: MakePayload,
    answers: dict[str, tuple[Verdict, bool]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_payload("forkyard-llama-cpp-avx512", rank=40)
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    make_payload("forkyard-llama-cpp-sse42", rank=10)
    select()
    answers["avx512"] = BROKEN  # an environment that no key knows of
    loaded: list[str] = []

    def load(payload: Payload) -> None:
        loaded.append(payload.variant)
        if payload.variant == "sse42":
            raise StopAsyncIteration  # far enough
        msg = f"{payload.variant} cannot be loaded"
        raise EngineError(msg)

    monkeypatch.setattr(llama, "load", load)
    monkeypatch.setattr(llama.gguf_check, "check", lambda *_, **__: None)
    with pytest.raises(StopAsyncIteration):
        llama.Llama("model.gguf")
    assert loaded == ["avx512", "avx2", "sse42"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"using forkyard-llama-cpp-avx2, not forkyard-llama-cpp-avx512: {BROKEN[0].reason}",
        "using forkyard-llama-cpp-sse42, not forkyard-llama-cpp-avx2: it works in a process of its own, but not in"
        " this one: avx2 cannot be loaded",
    ]
    assert select().variant == "sse42"


def test_if_nothing_can_be_loaded_every_reason_is_given(
    make_payload: MakePayload, answers: dict[str, tuple[Verdict, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(payload: Payload) -> None:
        msg = "libx.so.1: cannot open shared object file"
        raise EngineError(msg)

    make_payload("forkyard-llama-cpp-avx2")
    make_payload("forkyard-ik-llama-cpp-avx2")
    monkeypatch.setattr(llama, "load", load)
    monkeypatch.setattr(llama.gguf_check, "check", lambda *_, **__: None)
    with pytest.raises(PayloadRejected) as caught:
        llama.Llama("model.gguf")
    assert len(caught.value.rejections) == 2
    assert all("libx.so.1" in item.reason for item in caught.value.rejections)


def test_a_better_payload_that_does_not_work_is_a_warning_once(
    make_payload: MakePayload,
    answers: dict[str, tuple[Verdict, bool]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_payload("forkyard-llama-cpp-alien", rank=99, cpu_features=["avx512_4fmaps"])
    make_payload("forkyard-llama-cpp-avx512", rank=40)
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    answers["avx512"] = BROKEN
    assert select().variant == select().variant == "avx2"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"using forkyard-llama-cpp-avx2, not forkyard-llama-cpp-avx512: {BROKEN[0].reason}"]


def test_refresh_asks_again(make_payload: MakePayload, all_work: list[str]) -> None:
    payload = read_payload(make_payload())
    judge(payload)
    judge(payload, refresh=True)
    assert len(all_work) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b'{"schema": 1}',
        b'{"schema": 1, "key": "x", "usable": 1}',
        b"[" * 100000,
    ],
)
def test_a_damaged_cache_file_is_ignored_and_rewritten(
    make_payload: MakePayload, all_work: list[str], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    make_payload()
    select()
    (file,) = cache_files()
    file.write_bytes(content)
    monkeypatch.setattr(verdicts, "_remembered", {})
    select()
    assert len(all_work) == 2
    assert json.loads(file.read_bytes())["usable"] is True


def test_a_cache_that_cannot_be_written_is_no_error(
    make_payload: MakePayload, all_work: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "file" / "cache"))
    make_payload()
    select()
    select()
    assert len(all_work) == 1  # remembered by this process at least
