"""The wheel for every 64-bit ARM CPU, on CPUs that QEMU emulates: its tools take the right library and answer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm.payloads import Payload, read_payload

from ..conftest import forkyard, unpack

SYSROOT = Path("/usr/aarch64-linux-gnu")
"""Where Debian's libc6-arm64-cross puts the C library."""
# An A64FX has SVE, and no dot products.
CPUS = {"cortex-a72": "neon", "neoverse-n1": "dotprod", "a64fx": "neon", "max": "sve2"}

pytestmark = pytest.mark.deep


@pytest.fixture(scope="module")
def built(lift_limit: Callable[[], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Payload]:
    """A function from an engine to its payload for every 64-bit ARM CPU."""

    @functools.cache
    def payload(engine: str) -> Payload:
        lift_limit()
        folder = tmp_path_factory.mktemp("aarch64")
        (one,) = forkyard("build", "cpu-aarch64", engine, "--out", str(folder))["built"]
        unpack(Path(one["wheel"]), folder)
        return read_payload(folder / f"forkyard_{engine.replace('.', '_')}_cpu_aarch64")

    return payload


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """A function from a CPU's name to the words before a program that is to run on it."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not on this machine: on Debian, apt-get install qemu-user")
    root = SYSROOT
    if not (root / "lib" / "ld-linux-aarch64.so.1").is_file():
        folder = tmp_path_factory.mktemp("libc")
        done = subprocess.run(["apt-get", "download", "libc6-arm64-cross"], cwd=folder, capture_output=True, text=True)
        packages = list(folder.glob("*.deb"))
        if done.returncode != 0 or not packages:
            pytest.skip("no C library of 64-bit ARM: on Debian, apt-get install libc6-arm64-cross")
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(folder)], check=True)
        root = folder / SYSROOT.relative_to("/")
    return lambda name: ["qemu-aarch64", "-L", str(root), "-cpu", name]


def said(*command: object, **environment: str) -> str:
    settings = [f"{name}={value}" for name, value in environment.items()]
    done = subprocess.run(
        ["env", *settings, *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", CPUS)
def test_llama_cpp_takes_the_right_library_and_answers(
    built: Callable[[str], Payload], emulator: Callable[[str], list[str]], smollm2: Path, name: str
) -> None:
    tools = built("llama.cpp")
    text = said(*emulator(name), tools.tool("llama-bench"), "-m", smollm2, "-p", 8, "-n", 1, "-r", 1, "-t", 2)
    assert f"libggml-cpu-{CPUS[name]}-" in text
    assert "tg1" in text
    # A template that leaves the text as it is: this small model completes better than it chats.
    asked = ["-p", "The capital of France is", "--chat-template", "{{ messages[-1]['content'] }}", "-st"]
    asked += ["--temp", 0, "-n", 4, "-t", 2]
    assert "Paris" in said(*emulator(name), tools.tool("llama-cli"), "-m", smollm2, *asked)


@pytest.mark.parametrize(("name", "member"), [("neoverse-n1", "dotprod"), ("max", "i8mm")])
def test_ik_llama_cpp_answers(
    built: Callable[[str], Payload], emulator: Callable[[str], list[str]], smollm2: Path, name: str, member: str
) -> None:
    (tools,) = (one for one in built("ik_llama.cpp").members() if one.member == member)
    asked = ["-p", "The capital of France is", "--temp", 0, "-n", 8, "-t", 2]
    text = said(*emulator(name), tools.tool("llama-cli"), "-m", smollm2, *asked, **tools.environment())
    assert "Paris" in text


def test_nothing_of_it_is_tried_here(built: Callable[[str], Payload], tmp_path: Path) -> None:
    """Of a payload for another machine the doctor says so."""
    path = str(built("llama.cpp").root)
    doctor = subprocess.run(
        [sys.executable, "-m", "forkyard_llm", "doctor"],
        env={**os.environ, "FORKYARD_LLM_PAYLOAD_PATH": path, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    text = doctor.stdout + doctor.stderr
    assert "it is for aarch64, this machine is x86_64" in text
