"""Run every mode of a scenario in turn, round after round."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forkyard.benching.dialect import Result, last_words, read_results
from forkyard.benching.engine import TOOL, Engine
from forkyard.benching.scenario import Mode, Scenario
from forkyard.console import Reporter
from forkyard.errors import BuildError
from forkyard.process import clean_environment, show, stream

RUN_TIMEOUT_S = 2 * 3600.0
"""Of one run: loading the model and copying it to all nodes may take long, too."""
_QUIET_ABORT = {"GGML_NO_BACKTRACE": "1"}
"""An engine that aborts would start a debugger to print where."""
_FAKE = "GGML_NUMA_FAKE_NODES"


@dataclass
class Measured:
    """What the runs said: mode -> test -> one value for each round."""

    speeds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    local: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Percent of bytes read from the own node, where the engine counts them."""
    commands: dict[str, str] = field(default_factory=dict)
    """Mode -> its command, as :func:`shown`."""
    model: str = ""
    """What the engine calls the model."""


def command_of(engine: Engine, scenario: Scenario, mode: Mode, model: Path) -> list[str]:
    """The llama-bench command of one run."""
    return [
        str(engine.bench),
        *("-m", str(model)),
        *("--numa", mode.name),
        *("-t", str(mode.threads(scenario.threads_per_node, scenario.nodes))),
        *("-p", str(scenario.prompt)),
        *("-n", str(scenario.generate)),
        *("-r", "1"),
        *engine.load[mode.mapped],
        *scenario.extra,
        *("-o", "json"),
    ]


def shown(command: Sequence[str], model: Path) -> str:
    """The command as one would type it beside the engine and the model: it says nothing of this machine's folders."""
    return show([TOOL, *(model.name if word == str(model) else word for word in command[1:])])


def measure(engine: Engine, scenario: Scenario, model: Path, log: Path, reporter: Reporter) -> Measured:
    """Run all rounds.

    Raises:
        BuildError: a run failed or said nothing that can be read.
    """
    measured = Measured()
    environment = clean_environment(
        extra={**_QUIET_ABORT, **({_FAKE: str(scenario.nodes)} if scenario.fake else {})},
    )
    total = scenario.rounds * len(scenario.modes)
    done = 0
    with reporter.step("measuring", "runs") as step:
        for number in range(scenario.rounds):
            for mode in scenario.order(number):
                step.update(done, total, mode.name)
                if mode.mapped:
                    _forget(model)
                command = command_of(engine, scenario, mode, model)
                measured.commands.setdefault(mode.name, shown(command, model))
                for result in _run(command, scenario, mode, environment, log):
                    measured.model = result.model
                    measured.speeds.setdefault(mode.name, {}).setdefault(result.test, []).append(result.speed)
                    if result.local is not None:
                        measured.local.setdefault(mode.name, {}).setdefault(result.test, []).append(result.local)
                done += 1
        step.update(done, total)
    return measured


def _run(command: list[str], scenario: Scenario, mode: Mode, environment: dict[str, str], log: Path) -> list[Result]:
    lines: list[str] = []
    status = stream(command, log=log, on_line=lines.append, timeout_s=RUN_TIMEOUT_S, env=environment)
    results = read_results("\n".join(lines)) if status == 0 else None
    if results is None or sorted(result.test for result in results) != sorted(scenario.tests):
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}" if status else "no such answer"
        msg = f"{TOOL} failed with --numa {mode.name}"
        raise BuildError(
            msg,
            where=str(log),
            why=f"{why}: {last_words(lines)}",
            next_step="leave the mode out with --modes, or run the command in the log by itself",
        )
    return results


def _forget(model: Path) -> None:
    """Ask the kernel to drop the file's pages, which may lie where an earlier run touched them.

    Without it the mode that maps the file would be measured with pages that other modes placed. Pages that somebody
    else has mapped stay.
    """
    head, dash, rest = model.name.partition("-00001-of-")
    for path in model.parent.glob(f"{head}-*-of-{rest}") if dash else (model,):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
