"""What real engines are asked for at the edges: every case in a process of its own, which must not die of a signal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import loading
from forkyard_llm.engines.options import CHOICES, COMMON_OPTIONS, ENGINE_OPTIONS, UNDONE, Option
from forkyard_llm.sampling import SamplingParams

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
TIMEOUT_S = 1800

# Forks a child for each case, before any engine has computed. A child has little memory to take: the machine has others.
CASES = """
import json, os, resource, sys
from forkyard_llm import ForkyardLlmError, Llama, select
model, engine = sys.argv[1:3]
select(engine)
for case in json.loads(sys.argv[3]):
    if "logit_bias" in case["call"]:
        case["call"]["logit_bias"] = dict(case["call"]["logit_bias"])  # JSON has no integers for keys
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer = "ok"
        try:
            with Llama(model, engine=engine, **{"n_ctx": 64, "n_threads": 1, **case["model"]}) as llm:
                if not case["model"].get("vocab_only"):
                    llm("1, 2, 3, 4, 5,", **{"max_tokens": 3, **case["call"]})
        except ForkyardLlmError as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode()[:4000])
        os._exit(0)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([case, status, os.read(reader, 4000).decode("utf-8", "replace")]), flush=True)
    os.close(reader)
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(loading.__file__).parents[1])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def answers(model: Path, engine: str, cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Of each case, ``ok`` or the error; all children must have lived to say it."""
    given = [{"model": options, "call": call} for options, call in cases]
    done = run_python(CASES, str(model), engine, json.dumps(given))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(cases), done.stderr
    assert [case for case, status, _ in lines if status] == []
    return [answer for _, _, answer in lines]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_no_machine_or_engine_survives_is_refused(smollm2: Path, engine: str):
    refused = [
        ({"n_gpu_layers": -1}, "UnsupportedOption: n_gpu_layers=-1 needs a GPU, and forkyard-"),
        ({"n_gpu_layers": 10}, "UnsupportedOption: n_gpu_layers=10 needs a GPU"),
        ({"tensor_split": [1, 1]}, "UnsupportedOption: tensor_split="),
        ({"main_gpu": 1}, "UnsupportedOption: main_gpu=1 needs a GPU"),
        ({"n_threads": 100_000}, "UsageError: n_threads must be an integer from 1 to 512"),
        ({"n_threads_batch": 513}, "UsageError: n_threads_batch must be"),
        ({"n_ctx": 2**31 - 1}, "UsageError: n_ctx must be"),
        ({"n_ctx": 2**30}, "EngineError: a context of 1073741824 tokens"),
        ({"use_mmap": 1}, "UsageError: use_mmap must be True or False"),
    ]
    for (_, expected), answer in zip(
        refused, answers(smollm2, engine, [(case, {}) for case, _ in refused]), strict=True
    ):
        assert answer.startswith(expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_pair_of_cache_types_works_or_is_an_error(smollm2: Path, engine: str):
    kinds = CHOICES["cache type"][engine]
    cases: list[dict[str, Any]] = [{"type_k": kind} for kind in kinds]
    cases += [{"type_v": kind, "flash_attn": True} for kind in kinds]
    cases += [{"type_k": kind, "flash_attn": False} for kind in kinds]
    found = answers(smollm2, engine, [(case, {}) for case in cases])
    assert {answer.split(":")[0] for answer in found} <= {"ok", "UnsupportedOption", "EngineError"}
    assert found[kinds.index("q8_0")] == "ok"


def edges(option: Option) -> list[Any]:
    if option.kind is bool:
        return [True, False]
    return [option.kind(option.low), option.kind(option.high)]


@pytest.mark.deep
@pytest.mark.parametrize("engine", ENGINES)
def test_both_ends_of_every_range_are_survived(smollm2: Path, engine: str):
    # Hundreds of threads on a few cores are a matter of patience, and GPUs are not here.
    slow = {"n_threads", "n_threads_batch", "n_gpu_layers", "main_gpu"}
    table = {**COMMON_OPTIONS, **ENGINE_OPTIONS[engine]}
    cases = [({name: value}, {}) for name, option in table.items() if name not in slow for value in edges(option)]
    found = dict(zip((str(case) for case, _ in cases), answers(smollm2, engine, cases), strict=True))
    assert {answer.split(":")[0] for answer in found.values()} <= {
        "ok",
        "EngineError",
        "UsageError",
        "UnsupportedOption",
    }
    assert found["{'flash_attn': True}"] == found["{'n_ctx': 0}"] == "ok"


@pytest.mark.parametrize("engine", ENGINES)
def test_extreme_sampling_is_survived(smollm2: Path, engine: str):
    calls: list[dict[str, Any]] = [
        {name: value}
        for name in ("temperature", "repeat_penalty", "frequency_penalty", "presence_penalty", "min_p", "top_p")
        for value in (1e-37, 1e-6, 1.0, 1e6, -1e6, 3.4e38, -3.4e38)
        if accepted(name, value)
    ]
    calls += [{"top_k": value} for value in (-(2**31), 0, 1, 2**31 - 1)]
    calls += [{"logit_bias": [[5, 1e9]]}, {"logit_bias": [[5, -1e9], [6, 1e9]]}]
    worst = {"temperature": 1e-6, "repeat_penalty": 1e-6, "logit_bias": [[5, 1e9], [6, -1e9]]}
    calls += [{**worst, "frequency_penalty": sign * 1e6, "presence_penalty": sign * 1e6} for sign in (1, -1)]
    found = answers(smollm2, engine, [({}, call) for call in calls])
    assert {answer.split(":")[0] for answer in found} <= {"ok", "EngineError"}


def accepted(name: str, value: float) -> bool:
    from forkyard_llm import UsageError

    try:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    except UsageError:
        return False
    return True


SCARCE = """
import resource, sys
from forkyard_llm import EngineError, Llama, select
select(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))  # a thread reserves MiB of it for its stack
try:
    Llama(sys.argv[1], engine=sys.argv[2], n_ctx=64, n_threads=512)
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_that_the_system_does_not_give_are_an_error(smollm2: Path, engine: str):
    done = run_python(SCARCE, str(smollm2), engine)
    assert done.returncode == 0, done.stderr
    assert re.match(r"the system lets this process start \d+ threads more, 511 are needed", done.stdout)


WARNED = """
import logging, sys
from forkyard_llm import Llama
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
with Llama(sys.argv[1], engine=sys.argv[2], n_ctx=9000, n_threads=1):
    pass
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_context_beyond_the_trained_one_is_a_warning_in_python_s_logging(smollm2: Path, engine: str):
    done = run_python(WARNED, str(smollm2), engine)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert re.match(r"forkyard_llm\.\S+ WARNING .*9[02]\d\d.* 8192|forkyard_llm\.\S+ WARNING .*8192", line)


LOCKED = """
import ctypes, resource, sys
from forkyard_llm import EngineError, Llama
CAP_IPC_LOCK, VERSION_3 = 14, 0x20080522
libc = ctypes.CDLL(None, use_errno=True)
header, sets = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
for index in (0, 1):  # effective, permitted
    sets[index] &= ~(1 << CAP_IPC_LOCK)
assert libc.capset(header, sets) == 0
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
try:
    Llama(sys.argv[1], engine=sys.argv[2], n_ctx=64, n_threads=1, use_mlock=True)
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_that_cannot_be_locked_is_an_error(smollm2: Path, engine: str):
    done = run_python(LOCKED, str(smollm2), engine)
    assert done.returncode == 0, done.stderr
    assert re.match(r".*does not do what use_mlock=True asks for: .*failed to mlock.*ulimit -l", done.stdout, re.DOTALL)


def test_the_engines_still_say_what_they_do_not_do_in_these_words(payloads: dict[str, Path]):
    libraries = b"".join(path.read_bytes() for root in payloads.values() for path in root.rglob("libllama*.so*"))
    for name, words in UNDONE.items():
        for alternative in words.split("|"):
            assert alternative.encode() in libraries, name
