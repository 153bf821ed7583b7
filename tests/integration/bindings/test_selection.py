"""Selection among the payloads really installed, and one whose library executes an illegal instruction."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import verdicts
from forkyard_llm.errors import PayloadRejected
from forkyard_llm.gguf_types import TENSOR_TYPES
from forkyard_llm.payloads import Payload, discover, read_payload
from forkyard_llm.selection import judge, select, survey

ILLEGAL = """\
__attribute__((constructor)) static void illegal(void) { __builtin_trap(); }
const char * forkyard_probe_build_key(void) { return ""; }
"""


@pytest.fixture(autouse=True)
def real_payloads(payloads: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The payloads built here, and nothing remembered about them."""
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", os.pathsep.join(map(str, payloads.values())))
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "_remembered", {})


def copy_of(payload: Payload, folder: Path, **changes: object) -> Path:
    """A copy of a real payload (libraries linked, not copied) with another manifest."""
    root = folder / payload.root.name
    shutil.copytree(payload.root, root, copy_function=lambda source, target: Path(target).symlink_to(source))
    for name in ("manifest.json", "_abi.py"):
        (root / name).unlink()
        shutil.copy(payload.root / name, root / name)
    (root / "manifest.json").write_text(json.dumps({**payload.manifest, **changes}))
    return root


def test_something_is_usable_here() -> None:
    payload = select()
    assert payload in discover()
    verdict = judge(payload)
    assert verdict.remembered
    assert verdict.facts["multiplied"]


def test_every_installed_payload_is_usable_or_says_what_the_cpu_lacks() -> None:
    judged = survey()
    assert judged
    for candidate in judged:
        verdict = candidate.verdict
        assert verdict.usable or "this CPU lacks" in verdict.reason, f"{candidate.payload}: {verdict.reason}"


def test_a_payload_for_another_cpu_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = [*select().cpu_features, "avx512_4fmaps"]  # Knights Mill only
    root = copy_of(select(), tmp_path, cpu_features=features)
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", str(root))
    with pytest.raises(PayloadRejected, match="this CPU lacks avx512_4fmaps"):
        select()


@pytest.mark.parametrize("library", ["probe", "ggml"])
def test_an_illegal_instruction_costs_a_rejection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    good = select()
    root = copy_of(good, tmp_path)
    source = tmp_path / "illegal.c"
    source.write_text(ILLEGAL)
    target = read_payload(root).library(library)
    target.unlink()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None, "this test compiles four lines of C and needs a C compiler"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(source)], check=True, timeout=1800)
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", str(root))
    with pytest.raises(PayloadRejected, match="crashed with SIGILL in the probe"):
        select()
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD")
    assert select().root == good.root


def test_another_build_s_bindings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = hashlib.sha256(b"another build").hexdigest()
    root = copy_of(select(), tmp_path, build_key=key)
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", str(root))
    with pytest.raises(PayloadRejected, match="build key"):
        select()


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy_of(select(), tmp_path)
    (root / "abi.json").unlink()
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD", str(root))
    with pytest.raises(PayloadRejected, match=r"abi\.json"):
        select()


@pytest.mark.parametrize("family", ["llama.cpp", "ik_llama.cpp"])
def test_the_table_of_tensor_types_is_the_engine_s(family: str) -> None:
    from forkyard_llm.loading import load

    engine = load(select(family))
    numbers = engine.abi.ENUMS["ggml_type"]
    table = TENSOR_TYPES[family]
    sizes = {
        number: (engine.api.ggml_blck_size(number), engine.api.ggml_type_size(number))
        for name, number in numbers.items()
        if name != "GGML_TYPE_COUNT"
    }
    assert {number: (known.block, known.size) for number, known in table.items()} == {
        number: size for number, size in sizes.items() if size[0] > 0 and size[1] > 0
    }
    for number, known in table.items():
        if known.name != "i2_s":  # its size is not a matter of rows: see TensorType.data_bytes
            assert engine.api.ggml_row_size(number, known.block * 8) == known.data_bytes(known.block * 8, 1)


OLD_LIBRARY = "int nothing_of_what_is_needed;\n"


@pytest.mark.parametrize("seen_before", [True, False])
def test_an_old_library_in_the_way_is_found_whatever_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], seen_before: bool
) -> None:
    """A libstdc++ without the symbols the payloads need, in LD_LIBRARY_PATH."""

    def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "forkyard_llm", "doctor", "--json", *arguments]
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": environment["PYTHONPATH"]},
            capture_output=True,
            timeout=1800,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)

    folder = tmp_path / "old"
    folder.mkdir()
    (tmp_path / "old.c").write_text(OLD_LIBRARY)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None, "this test compiles a line of C and needs a C compiler"
    old = [compiler, "-shared", "-fPIC", "-Wl,-soname,libstdc++.so.6", str(tmp_path / "old.c"), "-o"]
    if seen_before:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        assert doctor()[0] == 0
        assert doctor("--cached")[1]["payloads"][0]["remembered"]
    subprocess.run([*old, str(folder / "libstdc++.so.6")], check=True, timeout=1800)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    for arguments in (["--cached"], []):
        code, facts = doctor(*arguments)
        assert code == 3
        for entry in facts["payloads"]:
            assert not entry["chosen"]
            assert not entry["usable"]
            assert f"LD_LIBRARY_PATH={folder}" in entry["reason"]
    (folder / "libstdc++.so.6").unlink()
    code, facts = doctor("--cached")
    assert code == 0
    assert facts["payloads"][0]["chosen"]
