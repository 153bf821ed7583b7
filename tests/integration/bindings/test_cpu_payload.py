"""One payload for every CPU: each of its instruction sets works, the best one is taken, and its tools take the same.

Everyday tests build a few instruction sets of llama.cpp; ``nox -s tests-deep`` all of both engines, and tries them on
emulated CPUs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import cpu
from forkyard_llm.payloads import Payload, read_payload

from forkyard.cache import Cache
from forkyard.recipes import load_variants

from ..conftest import ROOT
from ..numa import arch_models, cases
from ..numa.driver import MIRROR, Driver, Mode
from .conftest import EXPECTED, say
from .test_selection import ILLEGAL

ENGINES = ("llama.cpp", "ik_llama.cpp")
# ik_llama.cpp compiles for six minutes for each instruction set.
FEW_OF = [("few", "llama.cpp"), pytest.param("few", "ik_llama.cpp", marks=pytest.mark.deep)]
ALL_OF = [pytest.param("cpu", engine, marks=pytest.mark.deep) for engine in ENGINES]
ALL_OF += [pytest.param("rpc", "llama.cpp", marks=pytest.mark.deep)]
MIRRORED = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from forkyard_llm import Llama
model, prompt, variant = sys.argv[2:]
with Llama(model, variant=variant, n_ctx=256, n_threads=2, numa="mirror") as llm:
    text = llm(prompt, max_tokens=2, temperature=0.0)["choices"][0]["text"]
    nodes = [[node.local_bytes, node.remote_bytes] for node in llm.numa_counters()]
    print(json.dumps([llm.payload.member, text, nodes]))
"""
# What an emulated CPU lets its programs see is what it answers to CPUID; /proc/cpuinfo is the host's. A probe must run
# on the same CPU.
EMULATED = """
import sys
from archspec.cpu import detect
detect.detected_info = detect.cpuid_info
sys.executable = sys.argv.pop(1)
"""


def usable(payload: Payload) -> list[str]:
    """The instruction sets this CPU has, the best first."""
    return [one.member for one in payload.members() if not cpu.missing(one.cpu_features)]


@pytest.mark.parametrize(("variant", "engine"), [*FEW_OF, *ALL_OF])
def test_every_instruction_set_says_the_same(
    carrying: Callable[[str, str], Payload],
    alone: Callable[[Payload], None],
    smollm2: Path,
    variant: str,
    engine: str,
) -> None:
    payload = carrying(variant, engine)
    alone(payload)
    names = usable(payload)
    assert say(smollm2)[:2] == [names[0], EXPECTED]
    for name in names:
        member, text, info = say(smollm2, name)
        assert (member, text) == (name, EXPECTED)
        # Its own library, and not that of another one.
        assert ("AVX512 = 1" in info) == name.startswith(("avx512", "amx"))
        assert ("AVX2 = 1" in info) == name.startswith(("avx2", "avx512", "amx"))


@pytest.mark.parametrize(("variant", "engine"), [*FEW_OF, *ALL_OF])
def test_every_instruction_set_reads_copies(
    carrying: Callable[[str, str], Payload],
    alone: Callable[[Payload], None],
    smollm2: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    engine: str,
) -> None:
    """The stack numa-mirror: its table is in one library, what reads it in each instruction set's own."""
    payload = carrying(variant, engine)
    alone(payload)
    monkeypatch.setenv("GGML_NUMA_FAKE_NODES", "2")
    for name in usable(payload):
        member, text, nodes = say(smollm2, name, script=MIRRORED)
        assert (member, text) == (name, EXPECTED)
        assert len(nodes) == 2
        for local, remote in nodes:
            assert local > 0
            assert remote == 0


@pytest.mark.parametrize(("variant", "engine"), FEW_OF)
def test_the_stacks_own_tests_can_be_run(
    carrying: Callable[[str, str], Payload], tmp_path: Path, variant: str, engine: str
) -> None:
    """`forkyard stack verify --variant cpu`: their probes open the libraries themselves."""
    numa = Driver(lambda recipe: carrying(variant, recipe).root, tmp_path)
    model = arch_models.write_model("dense-q4_0", tmp_path)
    context = cases.context(engine, "dense-q4_0", threads=3)
    asked = [cases.case("dense", model, context, cases.everything("dense-q4_0", seqs=1))]
    mode = Mode(MIRROR, 2)
    on = numa.run(engine, mode, asked).cases["dense"].ok
    assert on.results == numa.run(engine, Mode(), asked).cases["dense"].ok.results
    cases.check_mirror(on.report, mode)


@pytest.mark.parametrize(("variant", "engine"), [*FEW_OF, *ALL_OF])
def test_the_doctor_explains_each(
    carrying: Callable[[str, str], Payload],
    alone: Callable[[Payload], None],
    environment: dict[str, str],
    variant: str,
    engine: str,
) -> None:
    payload = carrying(variant, engine)
    alone(payload)
    command = [sys.executable, "-m", "forkyard_llm", "doctor", "--json"]
    env = {**os.environ, "PYTHONPATH": environment["PYTHONPATH"]}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=3600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["payloads"]
    names = usable(payload)
    assert [row["member"] for row in rows if row["chosen"]] == [names[0]]
    assert {row["member"] for row in rows if row["usable"]} == set(names)
    for row in rows:
        assert row["usable"] or row["reason"].startswith("this CPU lacks ")
    text = subprocess.run(command[:-1], capture_output=True, text=True, env=env, timeout=3600).stdout
    assert f"({engine}, {payload.variant}: {names[0]}, rank" in text


@pytest.mark.parametrize(("variant", "engine"), [*FEW_OF, *ALL_OF])
def test_tools_take_the_same_library(
    carrying: Callable[[str, str], Payload], smollm2: Path, tmp_path: Path, variant: str, engine: str
) -> None:
    payload = carrying(variant, engine)
    names = usable(payload)
    libraries = {one.member: one.library(library_name(engine)) for one in payload.members()}
    for one in payload.members():
        if one.member not in names:
            continue
        command = [str(one.tool("llama-bench")), "-m", str(smollm2), "-p", "0", "-n", "1", "-r", "1", "-t", "2"]
        env = {**os.environ, **one.environment(), "LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": str(tmp_path / "libs")}
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=3600)
        assert done.returncode == 0, done.stderr
        assert "tg1" in done.stdout
        (log,) = tmp_path.glob("libs.*")
        loaded = [Path(path).resolve() for path in re.findall(r"calling init: (\S+)", log.read_text())]
        # llama.cpp's tools open each to ask it for its score, and last the one they take: the best, whatever is asked.
        # ik_llama.cpp's take what they are given.
        wanted = names[0] if engine == "llama.cpp" else one.member
        assert [path for path in loaded if path in libraries.values()][-1] == libraries[wanted]
        log.unlink()


def library_name(engine: str) -> str:
    """The CPU library in the manifest."""
    return "ggml-cpu" if engine == "llama.cpp" else "ggml"


@pytest.mark.parametrize(("variant", "engine"), FEW_OF)
def test_one_that_dies_is_passed_over(
    carrying: Callable[[str, str], Payload],
    alone: Callable[[Payload], None],
    smollm2: Path,
    tmp_path: Path,
    variant: str,
    engine: str,
) -> None:
    good = carrying(variant, engine)
    best, *rest = usable(good)
    if not rest:
        pytest.skip("this CPU runs only one of them")
    root = tmp_path / good.root.name
    shutil.copytree(good.root, root, copy_function=lambda source, target: Path(target).symlink_to(source))
    for name in ("manifest.json", "_abi.py"):
        (root / name).unlink()
        shutil.copy(good.root / name, root / name)
    payload = read_payload(root)
    target = next(one for one in payload.members() if one.member == best).library(library_name(engine))
    (tmp_path / "illegal.c").write_text(ILLEGAL)
    target.unlink()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None
    command = [compiler, "-shared", "-fPIC", "-o", str(target), str(tmp_path / "illegal.c")]
    subprocess.run(command, check=True, timeout=1800)
    alone(payload)
    assert say(smollm2)[:2] == [rest[0], EXPECTED]


@pytest.mark.parametrize(("variant", "engine"), FEW_OF)
def test_copies_are_compiled_as_the_original(
    carrying: Callable[[str, str], Payload], variant: str, engine: str
) -> None:
    """CMake has no way to copy a target: what it might forget would show here."""
    payload = carrying(variant, engine)
    base = "ggml-cpu" if engine == "llama.cpp" else "ggml"
    isa = {flag for feature in load_variants(ROOT).features.values() for flag in feature.flags}
    targets = {base, *(f"{base}-{one.member}" for one in payload.members())}
    commands: dict[str, Counter[str]] = {}
    folder = Cache.default().build(engine, variant) / "cmake"
    for entry in json.loads((folder / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        target = re.search(r"CMakeFiles/([^/]+)\.dir/", words[words.index("-o") + 1])
        if target is None or target[1] not in targets:
            continue
        kept = sorted(re.sub(r"^\S*\.dir/\S*$", "OBJECT", word) for word in words if word not in isa)
        commands.setdefault(target[1], Counter())[f"{entry['file']}: {' '.join(kept)}"] += 1
    assert len(commands) == len(payload.members())
    first = commands.pop(base)
    for name, other in commands.items():
        assert other == first, (name, other - first, first - other)


# -- emulated CPUs ---------------------------------------------------------------------------------------

# QEMU's TCG has no AVX-512: such a CPU without it is another Haswell.
CPUS = {
    "Nehalem": {"llama.cpp": "sse42", "ik_llama.cpp": None},
    "SandyBridge": {"llama.cpp": "avx", "ik_llama.cpp": None},
    "IvyBridge": {"llama.cpp": "avx-f16c", "ik_llama.cpp": None},
    "Haswell": {"llama.cpp": "avx2", "ik_llama.cpp": "avx2"},
    "Skylake-Server": {"llama.cpp": "avx2", "ik_llama.cpp": "avx2"},
    "qemu64": {"llama.cpp": "x86-64", "ik_llama.cpp": None},
}


@pytest.fixture
def emulated(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """A function from a CPU's name to a Python that runs on it."""
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("qemu-x86_64 is not on this machine: on Debian, apt-get install qemu-user")

    def python(name: str) -> tuple[str, ...]:
        program = tmp_path / f"python-{name}"
        program.write_text(f'#!/bin/sh\nexec qemu-x86_64 -cpu {name} {shlex.quote(sys.executable)} "$@"\n')
        program.chmod(0o755)
        return (str(program),)

    return python


@pytest.mark.deep
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CPUS)
def test_on_an_emulated_cpu(
    carrying: Callable[[str, str], Payload],
    alone: Callable[[Payload], None],
    emulated: Callable[[str], tuple[str, ...]],
    smollm2: Path,
    tmp_path: Path,
    name: str,
    engine: str,
) -> None:
    payload = carrying("cpu", engine)
    alone(payload)
    wanted = CPUS[name][engine]
    if wanted is None:
        with pytest.raises(AssertionError, match="this CPU lacks"):
            say(smollm2, python=emulated(name), before=EMULATED)
        return
    assert say(smollm2, python=emulated(name), before=EMULATED)[:2] == [wanted, EXPECTED]
    if engine == "llama.cpp":
        # Its tools ask the CPU themselves.
        command = ["qemu-x86_64", "-cpu", name, str(payload.tool("llama-bench")), "-m", str(smollm2)]
        options: list[Any] = ["-p", 0, "-n", 1, "-r", 1, "-t", 2]
        done = subprocess.run(
            [*command, *map(str, options)], capture_output=True, text=True, cwd=tmp_path, timeout=3600
        )
        assert done.returncode == 0, done.stderr
        assert f"libggml-cpu-{wanted}-" in done.stderr
        assert "tg1" in done.stdout
