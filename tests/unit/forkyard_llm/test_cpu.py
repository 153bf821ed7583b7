"""Feature names against what a host reports, under all the names the same thing has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from forkyard_llm import cpu
from forkyard_llm.cpu import HostCpu, explain_missing, is_known, missing


def host_with(*features: str) -> HostCpu:
    return HostCpu("test", "vendor", "brand", "x86_64", frozenset(features))


@pytest.mark.parametrize(
    ("asked", "reported"),
    [
        ("sse3", "pni"),
        ("sse3", "sse3"),
        ("lzcnt", "abm"),
        ("abm", "lzcnt"),
        ("sse4.2", "sse4_2"),
        ("avx512vnni", "avx512_vnni"),
        ("avx512bf16", "avx512_bf16"),
        ("avxvnni", "avx_vnni"),
        ("avx512_vbmi", "avx512vbmi"),
        ("amx-int8", "amx_int8"),
        ("avx2", "avx2"),
    ],
)
def test_every_name_of_a_feature_means_it(asked: str, reported: str) -> None:
    assert host_with(reported).has(asked)
    assert not host_with("mmx").has(asked)


def test_avx_vnni_and_avx512_vnni_are_not_each_other() -> None:
    assert not host_with("avx512_vnni").has("avx_vnni")
    assert not host_with("avx_vnni").has("avx512_vnni")


def test_every_flag_is_looked_for_and_order_is_kept() -> None:
    lacking = explain_missing(["fma", "avx2", "bmi2", "f16c"], host_with("avx2", "f16c"))
    assert [item.feature for item in lacking] == ["fma", "bmi2"]
    assert lacking[0].reason == "not reported by this CPU and kernel"


def test_an_unknown_name_is_missing_and_says_so() -> None:
    (item,) = explain_missing(["avx1024_magic"], host_with("avx2"))
    assert "not a CPU feature name" in item.reason
    assert not is_known("avx1024_magic")


@pytest.mark.parametrize(
    "name",
    [
        "sse4_2",
        "ssse3",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi2",
        "avx_vnni",
        "avx_vnni_int8",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
        "avx512cd",
        "avx512vbmi",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "amx_fp16",
        "asimddp",
        "i8mm",
        "sve",
    ],
)
def test_the_names_variants_use_are_known(name: str) -> None:
    assert is_known(name)


def test_the_host_reports_what_the_kernel_reports() -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    line = next(line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features")))
    flags = line.partition(":")[2].split()
    # archspec may add its own spelling of what is there (sse3 where ssse3 is), and nothing else.
    assert cpu.host().features >= set(flags)
    assert cpu.host().features - set(flags) <= {"sse3"}
    assert missing(flags) == []


def test_detection_does_not_stop_at_the_microarchitecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """archspec's host() of such a machine is icelake, whose features lack avx512_bf16; the CPU has it."""
    from archspec.cpu import detect

    flags = cpu.host().features | {"avx512_bf16", "amx_tile"}
    monkeypatch.setattr(detect, "detected_info", lambda: detect.partial_uarch(features=set(flags)))
    cpu.host.cache_clear()
    try:
        assert missing(["avx512_bf16", "amx_tile"]) == []
    finally:
        cpu.host.cache_clear()


def test_no_information_means_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from archspec.cpu import detect

    monkeypatch.setattr(detect, "detected_info", lambda: detect.partial_uarch())
    cpu.host.cache_clear()
    try:
        assert missing(["sse2"]) == ["sse2"]
    finally:
        cpu.host.cache_clear()


def test_amx_is_refused_off_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    assert cpu.request_amx_permission() == "AMX needs x86-64 Linux"


def test_the_kernel_s_answer_about_amx_is_passed_on() -> None:
    """In a child: a grant would hold for this whole test run."""
    import subprocess

    code = "from forkyard_llm.cpu import request_amx_permission as ask; print(ask())"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        timeout=1800,
        check=True,
    )
    granted = done.stdout.strip() == "None"
    if cpu.host().has("amx_tile"):
        assert granted or "ARCH_REQ_XCOMP_PERM" in done.stdout
    else:
        assert not granted
