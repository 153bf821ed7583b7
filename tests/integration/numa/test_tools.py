"""The engines' own programs: the flags, what is refused and how, what they say of the nodes."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ..bindings import container
from . import arch_models, cases
from .driver import Mode, environment, real_nodes

WORDS = ("weights", "kv", "all", "none", "best-effort")
TOOLS = ("llama-server", "llama-cli", "llama-perplexity", "llama-bench")
TIMEOUT = 1800.0


# Becomes a program in a process that sees two nodes and may neither place memory nor ask where it is; argv: an empty
# folder's name, answers of system calls, the program and its arguments.
CONTAINED = """
import json, os, pathlib, sys
import container
try:
    first, *others = sorted(os.sched_getaffinity(0))
    container.show_nodes(pathlib.Path(sys.argv[1]), {0: [first], 1: others})
    container.refuse(json.loads(sys.argv[2]))
except OSError as error:
    sys.exit(f"cannot be imitated: {error}")
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture(scope="session")
def tool(engine_payload: Callable[[str], Path]) -> Callable[[str, str], Path]:
    """Where a program of an engine is."""

    def find(engine: str, name: str) -> Path:
        payload = engine_payload(engine)
        manifest = json.loads((payload / "manifest.json").read_text(encoding="utf-8"))
        return payload / str(manifest["tools"][name])

    return find


def run(command: Sequence[str | Path], mode: Mode = Mode()) -> subprocess.CompletedProcess[str]:  # noqa: B008
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(mode),
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.patch("numa-nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("name", TOOLS)
def test_the_help_names_the_modes_and_the_words(tool: Callable[[str, str], Path], engine: str, name: str) -> None:
    done = run([tool(engine, name), "--help"])

    text = done.stdout + done.stderr
    assert "--numa-mirror" in text
    for word in ("mirror", "split", *WORDS):
        assert word in text, word


@pytest.mark.patch("numa-nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("words", ["weight", "all,everything", "none,kv", ""])
def test_an_unknown_word_is_refused_with_those_allowed(
    tool: Callable[[str, str], Path], tiny: Path, engine: str, name: str, words: str
) -> None:
    model = arch_models.write_model("dense-q4_0", tiny)
    done = run([tool(engine, name), "-m", model, "--numa", "mirror", "--numa-mirror", words])

    assert done.returncode > 0
    lines = (done.stdout + done.stderr).splitlines()
    errors = [line for line in lines if line.startswith("error") and "--numa-mirror" in line]
    assert any(all(word in line for word in WORDS) for line in errors), lines


@pytest.mark.patch("numa-nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("name", TOOLS)
def test_an_unknown_mode_is_refused(tool: Callable[[str, str], Path], tiny: Path, engine: str, name: str) -> None:
    model = arch_models.write_model("dense-q4_0", tiny)
    done = run([tool(engine, name), "-m", model, "--numa", "mirrors"])

    assert done.returncode > 0


def bench(tool: Callable[[str, str], Path], engine: str, tiny: Path, mode: Mode, *more: str) -> tuple[str, str]:
    """Standard output and error of a short run of llama-bench."""
    model = arch_models.write_model("dense-q4_0", tiny)
    flags = ["-p", "16", "-n", "4", "-r", "1", "-t", "3", *more]
    done = run([tool(engine, "llama-bench"), "-m", model, *flags], mode)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.patch("numa-weights")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter has the numbers of x86-64")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two nodes need two CPUs")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("mode", ["mirror", "split"])
def test_a_container_s_refusal_is_told_with_what_helps(
    tool: Callable[[str, str], Path], tiny: Path, tmp_path: Path, engine: str, mode: str
) -> None:
    model = arch_models.write_model("dense-q4_0", tiny)
    answers = json.dumps(dict.fromkeys(("mbind", "move_pages"), errno.EPERM))
    program = [tool(engine, "llama-bench"), "-m", model, "-p", "16", "-n", "4", "-r", "1", "-t", "2", "--numa", mode]
    folder = str(Path(container.__file__).parent)
    done = run(
        [sys.executable, "-c", CONTAINED, tmp_path / "nodes", answers, *program],
        Mode(environment=(("PYTHONPATH", folder),)),
    )
    said = done.stdout + done.stderr
    if "cannot be imitated" in said:
        pytest.skip(said.strip())
    assert done.returncode > 0
    assert "(mbind: Operation not permitted; a container needs CAP_SYS_NICE and a seccomp profile that allows" in said
    assert "mbind and move_pages); allow it, or go on without (--numa-mirror best-effort)" in said


@pytest.mark.patch("numa-state")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("words", ["all", "weights", "kv,weights", "none", "best-effort"])
def test_the_benchmark_mirrors(tool: Callable[[str, str], Path], tiny: Path, engine: str, words: str) -> None:
    report = tiny / f"report-{engine}-{words}.jsonl"
    report.unlink(missing_ok=True)
    mode = Mode(nodes=2, environment=(("GGML_NUMA_MIRROR_REPORT", str(report)),))
    bench(tool, engine, tiny, mode, "--numa", "mirror", "--numa-mirror", words)

    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert lines
    wanted = {
        "all": {"weights", "kv"},
        "best-effort": {"weights", "kv"},
        "kv,weights": {"weights", "kv"},
        "none": set(),
    }
    for line in lines:
        assert line["mode"] == "mirror"
        assert len(line["nodes"]) == 2
        for span in line["ranges"]:
            assert span["mirrored"] == (span["kind"] in wanted.get(words, {words}))
            assert span["differs"] == 0


@pytest.mark.patch("numa-split")
@pytest.mark.parametrize("engine", cases.ENGINES)
def test_the_benchmark_splits(tool: Callable[[str, str], Path], tiny: Path, engine: str) -> None:
    report = tiny / f"report-{engine}-split.jsonl"
    report.unlink(missing_ok=True)
    mode = Mode(nodes=2, environment=(("GGML_NUMA_MIRROR_REPORT", str(report)),))
    bench(tool, engine, tiny, mode, "--numa", "split")

    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert {line["mode"] for line in lines} == {"split"}


@pytest.mark.patch("numa-nodes")
@pytest.mark.skipif(real_nodes() > 1, reason="this machine has several NUMA nodes")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("mode", ["mirror", "split"])
def test_one_node_is_said_and_no_error(tool: Callable[[str, str], Path], tiny: Path, engine: str, mode: str) -> None:
    out, err = bench(tool, engine, tiny, Mode(), "--numa", mode, "-v")

    assert "1 NUMA node" in out + err


@pytest.mark.patch("numa-nodes")
@pytest.mark.parametrize("words", ["weight", ""])
def test_a_wrong_word_in_the_environment_is_refused(tool: Callable[[str, str], Path], tiny: Path, words: str) -> None:
    mode = Mode(environment=(("LLAMA_ARG_NUMA_MIRROR", words),))
    model = arch_models.write_model("dense-q4_0", tiny)
    done = run([tool("llama.cpp", "llama-server"), "-m", model, "--numa", "mirror"], mode)

    assert done.returncode > 0
    assert "LLAMA_ARG_NUMA_MIRROR" in done.stderr
