"""What the doctor finds, as data and as text."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import selection
from forkyard_llm.doctor import Report, examine, show
from forkyard_llm.gguf_reader import GgufSummary, Value
from forkyard_llm.payloads import Payload
from forkyard_llm.selection import Verdict
from rich.console import Console

MakePayload = Callable[..., Path]


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """avx2 works, everything else crashes; the variants probed, in order."""
    probed: list[str] = []

    def answer(payload: Payload) -> tuple[Verdict, bool]:
        probed.append(payload.variant)
        if payload.variant == "avx2":
            return Verdict(True, "works", {"system_info": "AVX2 = 1", "probe_seconds": 0.1}), True
        return Verdict(False, "crashed with SIGILL in the probe", {"signal": "SIGILL"}), True

    monkeypatch.setattr(selection, "_probe", answer)
    return probed


def llama_of(path: Path) -> GgufSummary:
    """A model of one layer with one head of 64 values."""
    numbers = {"block_count": 1, "embedding_length": 64, "attention.head_count": 1}
    values = {f"llama.{name}": Value(4, None, number, 0) for name, number in numbers.items()}
    return GgufSummary(path, 3, "llama", 32, 0, 0, values, {})


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=40)
    show(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_nothing_installed() -> None:
    report = examine()
    assert not report.usable
    assert report.facts["payloads"] == []
    assert "nox -s build-" in report.facts["problem"]
    assert "no payloads installed" in shown(report)


def test_the_chosen_one_comes_first_with_every_other_s_reason(make_payload: MakePayload, probe: list[str]) -> None:
    make_payload("forkyard-llama-cpp-alien", rank=99, cpu_features=["avx512_4fmaps"])
    make_payload("forkyard-llama-cpp-avx512", rank=40)
    make_payload("forkyard-llama-cpp-avx2", rank=30, capabilities=["numa-mirror"])
    make_payload("forkyard-ik-llama-cpp-avx2", rank=30)
    report = examine()
    assert report.usable
    assert [(entry["distribution"], entry["chosen"], entry["usable"]) for entry in report.facts["payloads"]] == [
        ("forkyard-llama-cpp-avx2", True, True),
        ("forkyard-llama-cpp-alien", False, False),
        ("forkyard-llama-cpp-avx512", False, False),
        ("forkyard-ik-llama-cpp-avx2", False, True),
    ]
    text = shown(report)
    assert "chosen   forkyard-llama-cpp-avx2 1.0 (llama.cpp, avx2, rank 30)" in text
    assert "this CPU lacks avx512_4fmaps" in text
    assert "crashed with SIGILL" in text
    assert "capabilities: numa-mirror" in text
    assert json.loads(json.dumps(report.facts)) == report.facts


def test_whether_nccl_is_linked(make_payload: MakePayload, probe: list[str]) -> None:
    facts = {"library": None, "requires": [], "needs": []}
    make_payload("forkyard-llama-cpp-avx2")
    for name, linked in (("a", True), ("b", False), ("c", None)):
        make_payload(f"forkyard-llama-cpp-{name}", kind="backend", backend={**facts, "nccl": linked})
    make_payload("forkyard-llama-cpp-old", kind="backend", backend=facts)
    make_payload("forkyard-llama-cpp-rpc", kind="backend", backend={**facts, "remote": True})
    report = examine()
    found = {entry["variant"]: (entry["nccl"], entry["capabilities"]) for entry in report.facts["payloads"]}
    assert found == {
        "avx2": (None, []),
        "a": (True, []),
        "b": (False, []),
        "c": (None, []),
        "old": (None, []),
        "rpc": (None, ["rpc"]),
    }
    text = shown(report)
    assert text.count("NCCL is linked") == text.count("NCCL is not linked") == 1
    make_payload("forkyard-llama-cpp-odd", kind="backend", backend={**facts, "nccl": "libnccl.so.2"})
    assert "not a table with library, nccl" in examine().facts["broken"][0]["reason"]


def test_what_was_good_and_is_not_any_more_is_not_chosen(
    make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload("forkyard-llama-cpp-avx512", rank=40)
    make_payload("forkyard-llama-cpp-avx2", rank=30)
    works = (Verdict(True, "works"), True)
    monkeypatch.setattr(selection, "_probe", lambda payload: works)
    assert examine().facts["payloads"][0]["variant"] == "avx512"
    broken = (Verdict(False, "libllama.so cannot be loaded"), False)
    monkeypatch.setattr(selection, "_probe", lambda payload: broken if payload.variant == "avx512" else works)
    report = examine()
    assert [(entry["variant"], entry["chosen"], entry["usable"]) for entry in report.facts["payloads"]] == [
        ("avx2", True, True),
        ("avx512", False, False),
    ]
    monkeypatch.setattr(selection, "_probe", lambda payload: broken)
    report = examine()
    assert not report.usable
    assert not any(entry["chosen"] for entry in report.facts["payloads"])
    assert selection.judge(selection.candidates()[0]).reason == "libllama.so cannot be loaded"


def test_it_probes_anew_unless_told_otherwise(make_payload: MakePayload, probe: list[str]) -> None:
    make_payload()
    examine()
    examine()
    assert probe == ["avx2", "avx2"]
    assert examine(refresh=False).facts["payloads"][0]["remembered"]
    assert probe == ["avx2", "avx2"]


def test_broken_folders_and_the_environment_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", str(tmp_path))
    report = examine()
    assert report.facts["broken"][0]["distribution"] == str(tmp_path)
    assert report.facts["environment"]["FORKYARD_LLM_PAYLOAD_PATH"] == str(tmp_path)
    assert "broken" in shown(report)


def test_an_override_by_folder_is_the_chosen_one(
    make_payload: MakePayload, probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_payload()
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD_PATH")
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", str(root))
    (entry,) = examine().facts["payloads"]
    assert entry["chosen"]


def test_the_machine_is_described() -> None:
    facts = examine().facts
    assert facts["system"]["libc"].startswith("glibc")
    assert facts["cpu"]["features"]
    assert facts["cache"]["writable"] is True
    assert {model["name"] for model in facts["models"]} == {"smollm2-135m", "gemma3-270m"}


def test_markup_in_a_name_is_only_text(make_payload: MakePayload, probe: list[str]) -> None:
    make_payload("forkyard-llama-cpp-[red]x")
    assert "[red]x" in shown(examine())


def test_types_of_the_cache_for_a_model(
    make_payload: MakePayload, probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload("forkyard-llama-cpp-avx512", rank=40, capabilities=["kv-tail"])
    make_payload("forkyard-llama-cpp-avx2", rank=30, capabilities=["kv-tail"])
    monkeypatch.setattr("forkyard_llm.doctor.gguf_check.check", lambda path, **_: llama_of(Path(path)))
    report = examine(model=Path("m.gguf"))
    usable, rejected = report.facts["payloads"]
    assert usable["kv_cache"]["options"]["type_k"] == "ftq4"
    assert rejected["kv_cache"] is None
    assert "KV cache of this model: type_k='ftq4', type_v='ftq4'" in shown(report)
    assert "0.1 KiB a token, 0.2 with f16" in shown(report)
    assert json.loads(json.dumps(report.facts)) == report.facts
    assert examine().facts["payloads"][0]["kv_cache"] is None
