"""What numa-mirror costs where it gains nothing: switched off, and mirrored for two pretended nodes on one real node.

    nox -s bench -- tests/benchmarks/test_numa_cost.py -s

Processes, the engine without the stack, with it switched off (twice), and with it mirroring, compute in turn: 16 tokens
one by one (generation), or 64 at once (a prompt), behind a cache of 64 tokens. A turn takes a tenth of a second or so,
so that what else the machine does hits all of them. Where a process's memory happens to lie alone makes it faster or slower by a percent or two as
long as it lives, so all are started anew FORKYARD_BENCH_STARTS (default 15) times, and of each pair of medians the
ratio is taken. FORKYARD_BENCH_SECONDS (default 4) is the time for a length after each start, FORKYARD_BENCH_THREADS
(default 1,2) are the numbers of threads. Nothing fails by time.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from forkyard_llm.measuring.statistics import compare

from ..integration.conftest import libraries_of
from ..integration.numa.driver import MIRROR, OFF

CHILD = Path(__file__).with_name("numa_cost_child.py")
SECONDS = float(os.environ.get("FORKYARD_BENCH_SECONDS", "4"))
STARTS = int(os.environ.get("FORKYARD_BENCH_STARTS", "15"))
THREADS = [int(count) for count in os.environ.get("FORKYARD_BENCH_THREADS", "1,2").split(",")]
LENGTHS = {"generation": (1, 16), "prompt": (64, 1)}
"""Tokens at once, and how many times in a turn: single ones last too short beside the waking of threads."""
WARM_UP = 3
PAUSE_S = 0.02
ARMS: Mapping[str, tuple[str, int, str]] = {
    "without": ("-stock", OFF, "0"),
    "off": ("", OFF, "0"),
    "off again": ("", OFF, "0"),
    "mirror": ("", MIRROR, "2"),
}
"""What of the engine an arm runs, its strategy and its pretended nodes. Two equal arms show what the method can tell."""
PAIRS = {"off": "without", "mirror": "off", "off again": "off"}


class Arm:
    """A process that computes when asked."""

    def __init__(self, process: subprocess.Popen[str], pause: float) -> None:
        self._process = process
        self._pause = pause

    def turn(self, tokens: int, times: int) -> float:
        """Tokens per second of one turn."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(tokens, times, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        # Its threads spin a while before they sleep, against the arm whose turn is next.
        time.sleep(self._pause)
        assert answer, f"the engine ended with {self._process.wait()}"
        return tokens * times * 1e9 / int(answer)


@contextmanager
def started(
    engine: str, threads: int, payload: Callable[[str], Path], model: Path, log: Path
) -> Iterator[dict[str, Arm]]:
    """All arms, loaded."""
    with ExitStack() as stack:
        arms: dict[str, Arm] = {}
        for name, (kind, strategy, nodes) in ARMS.items():
            package = payload(engine + kind)
            words = [str(package), json.dumps(libraries_of(package)), str(model), str(strategy), str(threads)]
            environment = {**os.environ, "GGML_NUMA_FAKE_NODES": nodes}
            process = subprocess.Popen(
                [sys.executable, str(CHILD), *words],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("a")),
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            arms[name] = Arm(process, PAUSE_S if threads > 1 else 0.0)
        yield arms


def measure(
    arms: dict[str, Arm], tokens: int, times: int, seconds: float, generator: random.Random
) -> dict[str, float]:
    """The median speed of each arm, over turns taken in an order that changes every round."""
    order = list(arms.values())
    for arm in order * WARM_UP:
        arm.turn(tokens, times)
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        names = list(arms)
        generator.shuffle(names)
        for name in names:
            speeds[name].append(arms[name].turn(tokens, times))
    return {name: statistics.median(values) for name, values in speeds.items()}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_cost(engine: str, threads: int, engine_payload: Callable[[str], Path], smollm2: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    medians: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(STARTS):
        with started(engine, threads, engine_payload, smollm2, tmp_path / "log") as arms:
            for what, (tokens, times) in LENGTHS.items():
                for name, speed in measure(arms, tokens, times, SECONDS, generator).items():
                    medians[what, name].append(speed)
    print(f"\n{engine}, {threads} threads, {STARTS} starts of all arms")
    for what in LENGTHS:
        for name, base in PAIRS.items():
            gain = compare(medians[what, name], medians[what, base])
            low, high = gain.interval
            words = f"{gain.ratio:.4f} ({low:.4f} to {high:.4f}), {statistics.median(medians[what, base]):.1f} tokens/s"
            print(f"{what}, {name} against {base}: {words}", flush=True)
