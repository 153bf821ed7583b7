from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkyard.errors import GateError
from forkyard.gates import GATES, IsaLimits, check_wheel, platform_floor

PACKAGE = "forkyard_engine_avx2"
PIN = "0123456789abcdef0123456789abcdef01234567"
INFO = f"{PACKAGE}-1.0.dist-info"
BUILD_FOLDER = "/var/somebody/build"

MakeWheel = Callable[..., Path]
MakeElf = Callable[..., bytes]


def found(wheel: Path, limits: IsaLimits) -> list[str]:
    report = check_wheel(wheel, package=PACKAGE, limits=limits, forbidden_prefixes=[BUILD_FOLDER])
    json.dumps(report.as_json())
    return [str(finding) for finding in report.findings]


def test_a_sound_wheel_passes_every_gate(make_wheel: MakeWheel, limits: IsaLimits) -> None:
    report = check_wheel(make_wheel(), package=PACKAGE, limits=limits, forbidden_prefixes=[BUILD_FOLDER])
    assert report.findings == ()
    assert report.ok
    assert report.gates == GATES
    assert set(report.seconds) == set(GATES)
    assert report.facts["platform_floor"] == "manylinux_2_35_x86_64"
    assert report.facts["glibc_floor"] == "2.34"
    assert report.facts["libstdcxx_floor"] == "3.4.30"
    assert report.facts["instruction_sets"][f"{PACKAGE}/lib/libcpu-fy.so"] == ["AVX2"]
    report.raise_if_failed()


def test_the_same_wheel_gives_the_same_report(make_wheel: MakeWheel, limits: IsaLimits) -> None:
    reports = [check_wheel(make_wheel(), package=PACKAGE, limits=limits).as_json() for _ in range(2)]
    assert json.dumps(reports[0]) == json.dumps(reports[1])


def test_a_failed_wheel_is_an_error_with_every_finding(make_wheel: MakeWheel, limits: IsaLimits) -> None:
    wheel = make_wheel(cpu={"code": ["avx512f"]}, tool={"rpath": "/x"})
    report = check_wheel(wheel, package=PACKAGE, limits=limits)
    with pytest.raises(GateError) as caught:
        report.raise_if_failed()
    assert caught.value.exit_code == 8
    assert "failed 3 checks" in str(caught.value)
    for finding in report.findings:
        assert str(finding) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"extra": {"other/x.py": b""}}, "[layout] other/x.py: is outside"),
        ({"extra": {f"{PACKAGE}-1.0.data/x": b""}}, f"[layout] {PACKAGE}-1.0.data/x: is outside"),
        ({"files": {"abi.json": None}}, f"[layout] {PACKAGE}/abi.json: is missing"),
        ({"name": "other_name-1.0-py3-none-linux_x86_64.whl"}, "does not hold the package"),
        ({"name": "nonsense.whl"}, "[layout] nonsense.whl: is not a wheel's name"),
        (
            {"extra": {f"{PACKAGE}/../x": b""}},
            "[names] forkyard_engine_avx2/../x: is not a plain relative path",
        ),
        ({"extra": {"/etc/x": b""}}, "[names] /etc/x: is not a plain relative path"),
        ({"extra": {f"{PACKAGE}/a\\b": b""}}, "holds a character"),
        ({"extra": {f"{PACKAGE}/LIB/libcpu-fy.so": b""}}, "differ only in case"),
        ({"twice": f"{PACKAGE}/__init__.py"}, "is in the archive 2 times"),
        ({"modes": {f"{PACKAGE}/bin/tool": 0o100644}}, "bin/tool: is a program, yet its mode is not 0755"),
        ({"modes": {f"{PACKAGE}/abi.json": 0o100666}}, "abi.json: has mode 0666"),
        ({"modes": {f"{PACKAGE}/bin/tool": 0o104755}}, "bin/tool: has mode 4755"),
        ({"modes": {f"{PACKAGE}/abi.json": 0o120777}}, "abi.json: is not a regular file"),
        ({"dates": {f"{PACKAGE}/abi.json": (2026, 3, 4, 5, 6, 8)}}, "abi.json: is dated 2026-03-04"),
        ({"record": b""}, "[record] forkyard_engine_avx2/abi.json: is in the wheel but not listed"),
        ({"record": b"a,b\n"}, "has a row of 2 fields"),
        ({"record": b"gone,sha256=x,1\n"}, "[record] gone: is listed but not in the wheel"),
        ({"record": f"{PACKAGE}/abi.json,sha256=x,3\n".encode()}, "is recorded as sha256=x, is sha256="),
        ({"record": f"{PACKAGE}/abi.json,,3\n".encode()}, "is recorded with 3 bytes, has 2"),
        ({"record": f"{INFO}/RECORD,sha256=x,\n".encode()}, "states its own hash"),
        ({"record": f"{INFO}/RECORD,,\n{INFO}/RECORD,,\n".encode()}, "RECORD: is listed twice"),
        ({"record": b"\xff"}, "[record] forkyard_engine_avx2-1.0.dist-info/RECORD: cannot be read"),
        ({"files": {"manifest.json": b"{"}}, "[manifest] forkyard_engine_avx2/manifest.json: is not JSON"),
        ({"files": {"manifest.json": b"[]"}}, "is not a JSON object"),
        ({"files": {"manifest.json": b"{}"}}, "lists no libraries"),
        (
            {"files": {"manifest.json": b'{"tools": {"x": "bin/x"}}'}},
            "tools.x is 'bin/x', which is not there",
        ),
        ({"engine": {"soname": None}}, "libengine-fy.so: has no soname"),
        ({"engine": {"soname": "libother.so"}}, "has the soname libother.so, by which no file here is found"),
        ({"cpu": {"soname": "libengine-fy.so"}}, "has the same soname as"),
        ({"engine": {"rpath": "$ORIGIN"}}, "has an RPATH"),
        ({"engine": {"runpath": "/usr/lib"}}, "looks for libraries in '/usr/lib'"),
        ({"engine": {"runpath": "$ORIGIN:"}}, "looks for libraries in 'the current folder'"),
        ({"engine": {"runpath": "$ORIGIN/../.."}}, "looks for libraries in '$ORIGIN/../..'"),
        ({"engine": {"runpath": "$ORIGIN/sub"}}, "needs libcpu-fy.so, which its RUNPATH does not lead to"),
        ({"engine": {"runpath": None}}, "needs libcpu-fy.so, which its RUNPATH does not lead to"),
        ({"cpu": {"needed": ["libgomp.so.1"]}}, "needs libgomp.so.1, which is neither in the wheel nor"),
        ({"cpu": {"needed": ["libcuda.so.1"]}}, "needs libcuda.so.1, which is neither"),
        ({"cpu": {"executable_stack": True}}, "asks for an executable stack"),
        (
            {"cpu": {"versions": {"libc.so.6": ["GLIBC_2.38"]}}},
            "is tagged manylinux_2_35_x86_64, but needs manylinux_2_38_x86_64 (glibc 2.38",
        ),
        ({"name": f"{PACKAGE}-1.0-py3-none-win_amd64.whl"}, "the platform tag win_amd64 is not one of Linux"),
        (
            {"engine": {"code": ["avx2", "avx512f"]}},
            "uses AVX512F, which the variant does not have (EVEX_VPADDD_ZMM",
        ),
        ({"tool": {"code": ["lzcnt", "cpuid"]}}, "bin/tool: uses LZCNT, which the variant does not have"),
        ({"engine": {"code": ["lzcnt"]}}, "it may be guarded, but the file holds no CPUID"),
        ({"cpu": {"code": []}}, "[instructions] cpu: holds no avx2 instruction, which the variant is for"),
        ({"files": {"lib/libcpu-fy.so": None}}, "[instructions] cpu: the CPU library is not in the wheel"),
        ({"engine": {"code": ["none"]}}, "holds what is no instruction at 0x"),
        ({"engine": {"machine": 183}}, "is code for EM_AARCH64, 64 bits"),
        (
            {"engine": {"text": b"x\0" + BUILD_FOLDER.encode() + b"/a.c\0more"}},
            f"holds a path under {BUILD_FOLDER}: {BUILD_FOLDER}/a.c (at byte",
        ),
        (
            {"files": {"abi.json": BUILD_FOLDER.encode()}},
            "[traces] forkyard_engine_avx2/abi.json: holds a path",
        ),
        ({"tool": {"text": b"version 0 (fedcba987)"}}, "[identity]"),
        ({"tool": {"text": b"version 0 (unknown)"}}, "holds the pin's id 012345678: the build took its commit from"),
        # A longer number that ends like the id is another id.
        ({"tool": {"text": b"f" + PIN[:9].encode()}}, "[identity]"),
        ({"tool": {"text": b""}, "files": {"pin.txt": PIN.encode()}}, "[identity]"),
        ({"files": {"manifest.json": b'{"pin": {"commit": 7}}'}}, "manifest.json: names no pin"),
        ({"files": {"manifest.json": b'{"pin": {}}'}}, "[identity]"),
        ({"engine": {"text": b"built Nov 23 2026"}}, "looks like its compilation date: Nov 23 2026"),
        (
            {"files": {"lib/libx.so": b"\x7fELF junk"}},
            "[readable] forkyard_engine_avx2/lib/libx.so: not a whole ELF",
        ),
    ],
)
def test_each_gate_finds_what_it_is_for(
    make_wheel: MakeWheel, limits: IsaLimits, changes: dict[str, Any], expected: str
) -> None:
    findings = found(make_wheel(**changes), limits)
    assert any(expected in finding for finding in findings), findings


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"code": ["lzcnt", "cpuid"]}},
        {"engine": {"code": ["tzcnt"]}},
        {"engine": {"text": b"b7-" + PIN[:9].encode() + b"-forkyard"}, "tool": {"text": b"asks the engine"}},
        {"name": f"{PACKAGE}-1.0-py3-none-manylinux_2_39_x86_64.whl"},
        {"name": f"{PACKAGE}-1.0-py3-none-linux_x86_64.whl"},
        {"cpu": {"needed": ["libbundled.so.1"], "runpath": "$ORIGIN"}, "bundled": "libbundled.so.1"},
        {"cpu": {"needed": ["libm.so.6", "ld-linux-x86-64.so.2"]}},
        {"engine": {"text": f"a{BUILD_FOLDER}/x {BUILD_FOLDER}er".encode()}},
        {"files": {"licenses/LICENSE": b"Copyright Nov 23 2026"}},
    ],
)
def test_what_is_allowed_passes(
    make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, changes: dict[str, Any]
) -> None:
    bundled = changes.pop("bundled", None)
    if bundled:
        changes["files"] = {f"lib/{bundled}": make_elf(soname=bundled)}
    assert found(make_wheel(**changes), limits) == []


def test_needs_that_the_wheel_itself_meets_set_no_floor(
    make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits
) -> None:
    own = "libstdc++.so.6"
    wheel = make_wheel(
        files={f"lib/{own}": make_elf(soname=own)},
        engine={"versions": {own: ["GLIBCXX_3.4.32"], "libc.so.6": ["GLIBC_2.17"]}},
        cpu={"versions": {}},
    )
    assert platform_floor(wheel) == "manylinux_2_17_x86_64"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"text"])
def test_a_file_that_is_no_archive_is_a_finding(tmp_path: Path, limits: IsaLimits, content: bytes) -> None:
    path = tmp_path / "x-1.0-py3-none-any.whl"
    path.write_bytes(content)
    assert found(path, limits)[0].startswith("[readable] x-1.0-py3-none-any.whl")
    with pytest.raises(GateError, match="cannot be read"):
        platform_floor(path)


def test_a_missing_file_is_a_finding(tmp_path: Path, limits: IsaLimits) -> None:
    assert found(tmp_path / "gone-1.0-py3-none-any.whl", limits)[0].startswith("[readable]")


def test_a_damaged_library_has_no_floor(make_wheel: MakeWheel) -> None:
    with pytest.raises(GateError, match="damaged"):
        platform_floor(make_wheel(files={"lib/libx.so": b"\x7fELF junk"}))


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(st.tuples(st.integers(0, 20000), st.integers(0, 255)), min_size=1, max_size=6))
def test_nothing_is_raised_for_a_damaged_wheel(
    make_wheel: MakeWheel, limits: IsaLimits, changes: list[tuple[int, int]]
) -> None:
    path = make_wheel()
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(bytes(data))
    check_wheel(path, package=PACKAGE, limits=limits)


# -- several instruction sets --------------------------------------------------------------------------

FAST = IsaLimits(frozenset({"AVX", "AVX2", "AVX512F"}), "cpu", {"avx512f": frozenset({"AVX512F"})})


def of_members(make_elf: MakeElf, limits: IsaLimits, **changes: Any) -> tuple[dict[str, bytes | None], IsaLimits]:
    """The files of a payload with a CPU library for ``slow``, among the others, and for ``fast``; and its limits."""
    fast = {"soname": "libcpu-fy.so", "code": ["avx512f"], "runpath": "$ORIGIN/..", **changes.get("elf", {})}
    members = [
        {"name": "fast", "libraries": {"cpu": "lib/fast/libcpu-fy.so"}},
        {"name": "slow", "libraries": {"cpu": "lib/libcpu-fy.so"}},
    ]
    manifest = {
        "package": PACKAGE,
        "pin": {"commit": PIN},
        "libraries": {"engine": "lib/libengine-fy.so", "cpu": "lib/libcpu-fy.so"},
        "tools": {"tool": "bin/tool"},
        "members": changes.get("members", members),
    }
    files: dict[str, bytes | None] = {
        "lib/fast/libcpu-fy.so": make_elf(**fast),
        "manifest.json": json.dumps(manifest).encode(),
        **changes.get("files", {}),
    }
    return files, IsaLimits(limits.allowed, limits.cpu_library, limits.proof, {}, {"fast": FAST, "slow": limits})


def test_each_instruction_set_has_its_own_limits(make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits) -> None:
    files, own = of_members(make_elf, limits)
    assert found(make_wheel(files=files), own) == []
    # Libraries that are loaded as backends lie beside the programs, each under a name of its own.
    members = [
        {"name": "fast", "libraries": {"cpu": "bin/libcpu-fast-fy.so"}},
        {"name": "slow", "libraries": {"cpu": "lib/libcpu-fy.so"}},
    ]
    module = make_elf(
        soname="libcpu-fast-fy.so", code=["avx512f"], runpath="$ORIGIN/../lib", needed=["libengine-fy.so"]
    )
    changes = {"lib/fast/libcpu-fy.so": None, "bin/libcpu-fast-fy.so": module}
    files, own = of_members(make_elf, limits, members=members, files=changes)
    place = f"{PACKAGE}/bin/libcpu-fast-fy.so"
    assert found(make_wheel(files=files, modes={place: 0o100644}), own) == []


@pytest.mark.parametrize(
    ("changes", "wheel", "expected"),
    [
        ({"elf": {"code": []}}, {}, "cpu for fast: holds no avx512f instruction"),
        ({"elf": {"code": ["avx512f", "avx512_vnni"]}}, {}, "lib/fast/libcpu-fy.so: uses AVX512_VNNI"),
        ({}, {"cpu": {"code": ["avx2", "avx512f"]}}, "lib/libcpu-fy.so: uses AVX512F"),
        ({}, {"engine": {"code": ["avx512f"]}}, "libengine-fy.so: uses AVX512F"),
        ({}, {"cpu": {"code": []}}, "cpu for slow: holds no avx2 instruction"),
        ({"members": []}, {}, "cpu for fast: the CPU library is not in the wheel"),
        ({"members": []}, {}, "has the same soname as"),
        ({"files": {"lib/fast/libcpu-fy.so": None}}, {}, "fast's library cpu is 'lib/fast/libcpu-fy.so', which is not"),
        ({"members": [{"name": "fast"}]}, {}, "members[0] has no name or no libraries"),
        (
            {"members": [{"name": name, "libraries": {"cpu": "lib/libcpu-fy.so"}} for name in ("fast", "slow")]},
            {},
            "lib/libcpu-fy.so is said to be fast's and slow's",
        ),
        ({"elf": {"runpath": "$ORIGIN/../../.."}}, {}, "looks for libraries in '$ORIGIN/../../..'"),
    ],
)
def test_faults_of_one_instruction_set(
    make_wheel: MakeWheel,
    make_elf: MakeElf,
    limits: IsaLimits,
    changes: dict[str, Any],
    wheel: dict[str, Any],
    expected: str,
) -> None:
    files, own = of_members(make_elf, limits, **changes)
    findings = found(make_wheel(files=files, **wheel), own)
    assert any(expected in finding for finding in findings), findings
