"""Runs cases of the probe on an engine, in as few child processes as possible, and remembers the answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..conftest import SAME_BITS, libraries_of

PROBE = Path(__file__).with_name("numa_probe.py")
TIMEOUT = 1800.0
"""Seconds for one child; the longest, with hundreds of cases, takes about 20."""
OFF, MIRROR, SPLIT = 0, 4, 5
"""Values of ggml_numa_strategy."""
WEIGHTS, KV, ALL, BEST_EFFORT = 1, 2, 3, 4
"""Bits of ggml_numa_mirror_what."""

Case = Mapping[str, Any]


@dataclass(frozen=True)
class Mode:
    """How an engine is started: its strategy, how many nodes it is to believe in (0: as many as there are).

    ``device``: the address of a server that computes what a GPU would; only payloads built for it have that.
    ``same_bits``: without what other stacks compute in another way than the stock engine.
    """

    strategy: int = OFF
    nodes: int = 0
    what: int | None = None
    device: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    same_bits: bool = True

    def __str__(self) -> str:
        name = {OFF: "off", MIRROR: "mirror", SPLIT: "split"}[self.strategy]
        return f"{name}-{self.nodes}"


@dataclass(frozen=True)
class Answer:
    """What a case yielded, or how the child died in it."""

    results: tuple[str, ...] = ()
    report: Mapping[str, Any] | None = None
    huge: int | None = None
    seen: Sequence[Mapping[str, Any]] = ()
    refused: str = ""
    status: int = 0
    output: str = ""

    @property
    def ok(self) -> Answer:
        """Itself; fails the test if there is no answer."""
        assert self.status == 0, f"the engine died: exit {self.status}\n{self.output}"
        assert not self.refused, f"the engine refused: {self.refused}\n{self.output}"
        return self


@dataclass(frozen=True)
class Answers:
    """The answers of a run by the name of the case, what was left when all was unloaded, and all that was said."""

    cases: Mapping[str, Answer]
    end: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""


class Driver:
    """Runs requests on payloads; ``payload`` gives the package folder of a recipe, ``-stock`` behind it without stacks."""

    def __init__(self, payload: Callable[[str], Path], folder: Path) -> None:
        self._payload = payload
        self._folder = folder
        self._done: dict[str, Answers] = {}

    def payload(self, recipe: str) -> Path:
        return self._payload(recipe)

    def run(self, recipe: str, mode: Mode, cases: Sequence[Case], parse: Sequence[str] = ()) -> Answers:
        """Answers of all cases; when the child dies, those behind the deadly one get another child."""
        payload = self._payload(recipe)
        request = {
            "payload": str(payload),
            "libraries": libraries_of(payload),
            "strategy": mode.strategy,
            "what": mode.what,
            "device": mode.device,
            "parse": parse,
        }
        key = json.dumps([request, mode.nodes, mode.environment, mode.same_bits, cases], sort_keys=True)
        if key not in self._done:
            self._done[key] = self._run(request, mode, list(cases))
        return self._done[key]

    def _run(self, request: Mapping[str, Any], mode: Mode, cases: list[Case]) -> Answers:
        answers: dict[str, Answer] = {}
        while True:
            done, lines = self._child({**request, "cases": cases}, mode)
            output = done.stdout + done.stderr
            named = {line["name"]: line for line in lines}
            end = named.pop(None, {})
            for name, line in named.items():
                refused = line.get("refused", "")
                answers[name] = Answer(
                    tuple(line.get("results", ())),
                    line.get("report"),
                    line.get("huge"),
                    line.get("seen", ()),
                    refused,
                    output=output if refused else "",
                )
            if done.returncode == 0:
                return Answers(answers, end, output)
            rest = cases[len(named) :]
            if not rest:
                # It died after the last case, while unloading.
                answers[cases[-1]["name"]] = Answer(status=done.returncode, output=output[-3000:])
                return Answers(answers, end, output)
            answers[rest[0]["name"]] = Answer(status=done.returncode, output=output[-3000:])
            cases = rest[1:]
            if not cases:
                return Answers(answers, end, output)

    def _child(
        self, request: Mapping[str, Any], mode: Mode
    ) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        question, answers = self._folder / "request.json", self._folder / "answers.jsonl"
        question.write_text(json.dumps(request), encoding="utf-8")
        answers.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, str(PROBE), str(question), str(answers)],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(mode),
            timeout=TIMEOUT,
            check=False,
        )
        lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
        return done, [json.loads(line) for line in lines]


def environment(mode: Mode) -> dict[str, str]:
    """The environment of a child: no variable of an engine but those of the mode."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_"))}
    fake = {"GGML_NUMA_FAKE_NODES": str(mode.nodes)} if mode.nodes else {}
    # Idle threads of OpenMP sleep: there are more threads than cores here.
    same = SAME_BITS if mode.same_bits else {}
    return {**kept, "OMP_WAIT_POLICY": "passive", **fake, **same, **dict(mode.environment)}


def real_nodes() -> int:
    """How many NUMA nodes with CPUs this machine has."""
    folder = Path("/sys/devices/system/node")
    return sum(bool(path.read_text().strip()) for path in folder.glob("node[0-9]*/cpulist"))
