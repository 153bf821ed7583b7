"""Run every arm of a scenario in turn, round after round."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forkyard.benching.dialect import Result, last_words, read_results
from forkyard.benching.engine import TOOL
from forkyard.benching.scenario import Arm, in_turn
from forkyard.console import Reporter
from forkyard.errors import BuildError
from forkyard.process import clean_environment, show, stream

RUN_TIMEOUT_S = 2 * 3600.0
"""Of one run: loading the model and copying it to all nodes may take long, too."""
_QUIET_ABORT = {"GGML_NO_BACKTRACE": "1"}
"""An engine that aborts would start a debugger to print where."""

_CHOOSING = frozenset(
    {
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("ONEAPI_DEVICE_SELECTOR", "ZE_AFFINITY_MASK", "VK_DRIVER_FILES", "VK_ICD_FILENAMES"),
    }
)
"""Variables of drivers that choose devices."""
_TUNING = ("GGML_", "NCCL_")
"""Beginnings of variables by which the engines and NCCL choose devices, and how those talk to each other."""


@dataclass
class Measured:
    """What the runs said: arm -> test -> one value for each round."""

    speeds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    local: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Percent of bytes read from the own node, where the engine counts them."""
    commands: dict[str, str] = field(default_factory=dict)
    """Arm -> its command, as :func:`shown`."""
    failed: dict[str, str] = field(default_factory=dict)
    """Arm -> why it could not be measured."""
    rounds: int = 0
    """Rounds that were run to their end."""
    model: str = ""
    """What the engine calls the model."""


def chosen_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that choose devices: the engines get them as they are, and the answer names them."""
    return {name: value for name, value in sorted(environment.items()) if name in _CHOOSING or name.startswith(_TUNING)}


def engine_environment(chosen: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a run: nothing of the caller's but ``chosen``."""
    return clean_environment(extra={**_QUIET_ABORT, **chosen})


def ended(status: int) -> str:
    """How a run that failed ended."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}" if status else "no such answer"


def shown(command: Sequence[str], model: Path) -> str:
    """The command as one would type it beside the engine and the model: it says nothing of this machine's folders."""
    return show([TOOL, *(model.name if word == str(model) else word for word in command[1:])])


def measure(
    arms: tuple[Arm, ...],
    rounds: int,
    model: Path,
    log: Path,
    reporter: Reporter,
    *,
    minutes: float | None = None,
    tolerant: bool = False,
) -> Measured:
    """Run all rounds.

    Args:
        minutes: begin no further round after so many; the first is always run.
        tolerant: leave an arm out from where it fails, with the reason, and go on with the others.

    Raises:
        BuildError: a run failed or said nothing that can be read; of a tolerant measurement, every arm did.
    """
    measured = Measured()
    started = time.monotonic()
    with reporter.step("measuring", "runs") as step:
        done = 0
        for number in range(rounds):
            if number and minutes is not None and time.monotonic() - started >= 60 * minutes:
                reporter.note(f"{minutes:g} minutes are over: {number} of {rounds} rounds were run")
                break
            for arm in in_turn(arms, number):
                step.update(done, rounds * len(arms), arm.name)
                done += 1
                if arm.name in measured.failed:
                    continue
                measured.commands.setdefault(arm.name, shown(arm.command, model))
                try:
                    results = run_arm(arm, model, log)
                except BuildError as error:
                    if not tolerant or len(measured.failed) + 1 == len(arms):
                        raise
                    measured.failed[arm.name] = error.why or error.what
                    # Some rounds of it alone cannot be compared with all rounds of another.
                    measured.speeds.pop(arm.name, None)
                    reporter.warn(f"{arm.name} is left out from here on: {measured.failed[arm.name]}")
                    continue
                for result in results:
                    measured.model = result.model
                    measured.speeds.setdefault(arm.name, {}).setdefault(result.test, []).append(result.speed)
                    if result.local is not None:
                        measured.local.setdefault(arm.name, {}).setdefault(result.test, []).append(result.local)
            measured.rounds = number + 1
        step.update(done, done)
    return measured


def run_arm(arm: Arm, model: Path, log: Path, on_line: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Run an arm once.

    Args:
        on_line: gets every line that it prints.

    Raises:
        BuildError: it failed, or did not answer what it was asked.
    """
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        on_line(line)

    if arm.mapped:
        _forget(model)
    environment = engine_environment(arm.environment)
    status = stream(arm.command, log=log, on_line=take, timeout_s=RUN_TIMEOUT_S, env=environment)
    results = read_results("\n".join(lines)) if status == 0 else None
    if results is None or sorted(result.test for result in results) != sorted(arm.tests):
        msg = f"{TOOL} failed with {arm.choice}"
        raise BuildError(
            msg,
            where=str(log),
            why=f"{ended(status)}: {last_words(lines)}",
            next_step="leave it out with --modes, or run the command in the log by itself",
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
