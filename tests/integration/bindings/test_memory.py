"""What a process has in memory does not grow: over models that come and go, and over generations, on both engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from . import tiny_texts

pytestmark = [pytest.mark.usefixtures("built_payloads"), pytest.mark.deep, pytest.mark.timeout(3600)]

ENGINES = ("llama.cpp", "ik_llama.cpp")
WAYS = {"plain": {}, "parallel": {"n_parallel": 4}, "isolated": {"isolate": True}}
GROWTH = 1.01
# A process of its own for each: what tests before have left does not count. Prints the bytes before and after.
PROBE = """
import gc, json, os, sys
from forkyard_llm import Llama

model, engine, options, what, warm, count = (json.loads(word) for word in sys.argv[1:])
KINDS = [
    {}, {"stream": True}, {"grammar": "root ::= [ab]+"}, {"stop": ["a"], "logprobs": 2, "repeat_penalty": 1.1},
    {"logits_processor": lambda tokens, logits: None},
]

def opened():
    return Llama(model, engine=engine, n_ctx=128, n_batch=32, n_threads=1, **options)

def use(llm, number):
    arguments = {"max_tokens": 4, "temperature": 0.8, "seed": number}
    kind = number % (len(KINDS) + 2)
    if kind == len(KINDS):
        llm.create_chat_completion([{"role": "user", "content": "ab"}], **arguments)
    elif kind > len(KINDS):
        next(llm("ab", stream=True, **arguments))  # which is dropped
    else:
        answer = llm("ab ab ba", **KINDS[kind], **arguments)
        if "stream" in KINDS[kind]:
            list(answer)

def step(number):
    if what == "models":
        with opened() as llm:
            use(llm, number)
    else:
        use(kept, number)

def resident():
    gc.collect()
    pids = [os.getpid()]
    if what == "generations" and options.get("isolate"):
        pids.append(kept._process._child._process.pid)
    sizes = [int(open(f"/proc/{pid}/statm").read().split()[1]) for pid in pids]
    return [size * os.sysconf("SC_PAGE_SIZE") for size in sizes]

kept = opened() if what == "generations" else None
for number in range(warm):
    step(number)
before = resident()
for number in range(count):
    step(number)
print(json.dumps([before, resident()]))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    tiny_texts.write_decoder(path, bytes_as_tokens=True)
    return path


def grown(tiny: Path, engine: str, way: str, what: str, count: int, environment: Mapping[str, str]) -> str:
    """What each process has before and after, if one has grown too much."""
    words = (str(tiny), engine, WAYS[way], what, count // 10, count)
    command = [sys.executable, "-c", PROBE, *map(json.dumps, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    said = ", ".join(f"{new} bytes of {old}" for old, new in zip(before, after, strict=True))
    print(f"{engine}, {way}, {count} {what}: {said}")
    return said if any(new > old * GROWTH for old, new in zip(before, after, strict=True)) else ""


@pytest.mark.parametrize(("way", "count"), [("plain", 1000), ("parallel", 1000), ("isolated", 100)])
@pytest.mark.parametrize("engine", ENGINES)
def test_models_that_come_and_go(tiny: Path, engine: str, way: str, count: int, environment: dict[str, str]):
    assert grown(tiny, engine, way, "models", count, environment) == ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ENGINES)
def test_generations(tiny: Path, engine: str, way: str, environment: dict[str, str]):
    assert grown(tiny, engine, way, "generations", 10_000, environment) == ""
