"""The proof itself on trial: real guests, an engine that is a small C program, and one that lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.guest.machine import QEMU

SOURCE = Path(__file__).with_name("fake_server.c")
ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.skipif(shutil.which(QEMU) is None, reason="QEMU is not on this machine"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="a guest is made of Debian packages"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]

Guest = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    """Run the command on cases with a fake engine that tells one of its lies; returns exit code and document."""

    def run(*cases: str, lie: int = 0) -> tuple[int, dict[str, Any]]:
        program, wheel, model = tmp_path / "llama-server", tmp_path / "fake.whl", tmp_path / "fake.gguf"
        subprocess.run(["cc", "-O1", f"-DLIE={lie}", "-o", str(program), str(SOURCE)], check=True, timeout=1800)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(program, "fake/bin/llama-server")
        model.write_bytes(b"GGUF")
        words = ["--engine", "llama.cpp", "--wheel", str(wheel), "--model", str(model), "--json", "--quiet"]
        done = subprocess.run(
            [sys.executable, "-m", "forkyard", "numa-guest", *cases, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            timeout=1800,
            check=False,
        )
        return done.returncode, json.loads(done.stdout)

    return run


def cases_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {case["case"]: case for guest in document["engines"][0]["guests"] for case in guest["cases"]}


def test_an_engine_that_does_what_it_says(guest: Guest) -> None:
    status, document = guest("number-gap", "memory-only", "cpus-of-one", "cpuset-memory", "mirror-t1", "small-node")
    cases = cases_of(document)
    del cases["number-gap-split"]  # it cannot split
    assert {name: case["outcome"] for name, case in cases.items()} == {
        "mirror-t1": "mirror",
        "cpus-of-one": "off",
        "cpuset-memory": "refused",
        "too-small": "refused",
        "too-small-best-effort": "partly",
        "memory-only": "mirror",
        "number-gap": "mirror",
    }
    assert not any(case["findings"] for case in cases.values())
    assert status == 12
    assert [node["id"] for node in cases["number-gap"]["report"]["nodes"]] == [0, 2]


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (1, "numa_maps has"),
        (2, "it says 'Lyon', and without NUMA 'Paris'"),
        (3, "did not end within its time"),
        (4, "ended by signal 6"),
    ],
    ids=["a copy on the wrong node", "another text", "no end", "a crash"],
)
def test_an_engine_that_lies_is_found_out(guest: Guest, lie: int, says: str) -> None:
    status, document = guest("memory-only", lie=lie)
    (case,) = cases_of(document).values()
    assert status == 12
    assert case["outcome"] is None
    assert any(says in finding for finding in case["findings"])
