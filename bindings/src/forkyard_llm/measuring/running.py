"""Run every arm of a measurement in turn, round after round, until it is known well enough or the time is over.

With an anchor, arms are run in groups, and the anchor before and after each. Where its two speeds differ, the machine
drifted, and what was measured between them is run again. Gains are relative to the mean of the two.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .child import RunFailed, ended, plain_environment, stream
from .dialect import Result, last_words, read_results
from .engine import TOOL
from .records import Arm, Sample
from .reporting import Reporter
from .statistics import FEWEST, summarize

__all__ = [
    "Measured",
    "Plan",
    "arm_environment",
    "chosen_environment",
    "engine_environment",
    "measure",
    "measure_benches",
    "run_arm",
    "shown",
]

RUN_TIMEOUT_S = 2 * 3600.0
"""Of one run: loading the model and copying it to all nodes may take long, too."""
DRIFT = (0.08, 0.25)
"""The anchor's speeds before and after a group may differ by so much: at least, and at most."""
_USUAL = 3
"""Between the two, by so many times what they usually differ by: short runs differ more, on any machine."""
_KNOWN = 8
"""Pairs of the anchor's runs after which that is known."""
GROUP = 4
"""Arms between two runs of the anchor."""
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

Runner = Callable[[Arm], Sequence[Result]]


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int
    """At most."""
    minutes: float | None = None
    """Begin no further round after so many; the first is always run."""
    narrow: float | None = None
    """Stop before `rounds` once every interval reaches at most this share of its median to either side."""
    anchor: str | None = None
    """The arm that the others are relative to."""
    warm_up: bool = True
    """Run the anchor once before anything counts."""
    again: int = 2
    """How often a group is run again, if the machine drifted, before the machine is taken as it is."""
    tolerant: bool = False
    """Leave an arm out from where it fails, with the reason, and go on with the others."""


@dataclass
class Measured:
    """What the runs said: arm -> test -> one value for each round that counts."""

    speeds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bases: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """The anchor's speeds around each of them; empty without an anchor."""
    local: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Percent of bytes read from the own node, where the engine counts them."""
    commands: dict[str, str] = field(default_factory=dict)
    """Arm -> its command, as :func:`shown`."""
    failed: dict[str, str] = field(default_factory=dict)
    """Arm -> why it could not be measured."""
    rounds: int = 0
    """Rounds that were run to their end."""
    dropped: int = 0
    """Runs that were thrown away because the machine drifted."""
    groups: int = 0
    """Groups between two runs of the anchor that were counted."""
    drifting: int = 0
    """Those that were counted although the machine drifted, as it did so every time."""
    model: str = ""
    """What the engine calls the model."""

    @property
    def restless(self) -> str:
        """What has to be known of a machine that did not come to rest; empty for one that did."""
        if not self.drifting:
            return ""
        return f"the machine's speed changed in {self.drifting} of {self.groups} stretches, however often they were run"


def chosen_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that choose devices: the engines get them as they are, and the answer names them."""
    return {name: value for name, value in sorted(environment.items()) if name in _CHOOSING or name.startswith(_TUNING)}


def engine_environment(chosen: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a run: nothing of the caller's but ``chosen``."""
    return plain_environment({**_QUIET_ABORT, **chosen})


def arm_environment(arm: Arm) -> dict[str, str]:
    """The whole environment of an arm's program."""
    return engine_environment({**(arm.engine.environment if arm.engine else {}), **arm.environment})


def shown(command: Sequence[str], model: Path) -> str:
    """The command as one would type it beside the engine and the model: it says nothing of this machine's folders."""
    return shlex.join([Path(command[0]).name, *(model.name if word == str(model) else word for word in command[1:])])


def measure(
    arms: Sequence[Arm],
    plan: Plan,
    run: Runner,
    reporter: Reporter,
    *,
    keep: Callable[[Sequence[Sample]], None] = lambda _: None,
    differences: dict[str, list[float]] | None = None,
) -> Measured:
    """Run the rounds.

    Args:
        run: runs an arm once, as :func:`run_arm` does.
        keep: gets the samples of every group as soon as it is over, those that do not count as well.
        differences: test -> by what shares the anchor's speeds differed before; gets what they do now.

    Raises:
        RunFailed: a run failed; of a tolerant measurement, every arm did, or the anchor.
    """
    return _Measurement(tuple(arms), plan, run, reporter, keep, {} if differences is None else differences).go()


def measure_benches(
    arms: Sequence[Arm],
    plan: Plan,
    model: Path,
    log: Path,
    reporter: Reporter,
    *,
    keep: Callable[[Sequence[Sample]], None] = lambda _: None,
) -> Measured:
    """As :func:`measure`, of arms that run llama-bench on ``model``, with their commands."""
    measured = measure(arms, plan, lambda arm: run_arm(arm, model, log), reporter, keep=keep)
    measured.commands = {arm.name: shown(arm.command, model) for arm in arms}
    return measured


class _Measurement:
    def __init__(
        self,
        arms: tuple[Arm, ...],
        plan: Plan,
        run: Runner,
        reporter: Reporter,
        keep: Callable[..., None],
        differences: dict[str, list[float]],
    ) -> None:
        self._arms, self._plan, self._run, self._reporter, self._keep = arms, plan, run, reporter, keep
        self._anchor = next((arm for arm in arms if arm.name == plan.anchor), None)
        self._measured = Measured()
        self._started = time.monotonic()
        self._before: list[Sample] = []
        self._differences = differences

    def go(self) -> Measured:
        plan, measured = self._plan, self._measured
        with self._reporter.step("measuring", "runs") as self._step:
            self._done, self._total = 0, plan.rounds * len(self._arms)
            for number in range(plan.rounds):
                if number and plan.minutes is not None and time.monotonic() - self._started >= 60 * plan.minutes:
                    self._reporter.note(f"{plan.minutes:g} minutes are over: {number} of {plan.rounds} rounds were run")
                    break
                self._round(number)
                measured.rounds = number + 1
                if self._known():
                    break
            self._step.update(self._done, self._done)
        if measured.restless:
            self._reporter.warn(f"{measured.restless}: let the machine rest, and repeat")
        return measured

    def _round(self, number: int) -> None:
        """Every arm once; each round begins with another, so that drift favours none."""
        first = number % len(self._arms)
        arms = self._arms[first:] + self._arms[:first]
        if self._anchor is None:
            samples = [sample for arm in arms for sample in self._sampled(arm, number)]
            self._count(samples)
            return
        if not number and self._plan.warm_up:
            self._run(self._anchor)  # the first run finds caches cold and clocks low
        others = [arm for arm in arms if arm is not self._anchor]
        self._before = self._before or self._sampled(self._anchor, number)
        for start in range(0, max(1, len(others)), GROUP):
            self._group(others[start : start + GROUP], number)

    def _group(self, arms: Sequence[Arm], number: int) -> None:
        """Some arms between two runs of the anchor."""
        assert self._anchor is not None
        for attempt in range(self._plan.again + 1):
            samples = [sample for arm in arms for sample in self._sampled(arm, number)]
            after = self._sampled(self._anchor, number)
            base = {
                one.test: ((one.speed + other.speed) / 2, abs(one.speed - other.speed) / min(one.speed, other.speed))
                for one, other in zip(self._before, after, strict=True)
            }
            found = [self._drifts(test, one) for test, (_, one) in base.items()]
            drifts = any(found)
            kept = not drifts or attempt == self._plan.again
            self._before = after
            whole = [*(samples), *after]
            self._count([_with(one, base.get(one.test, (None, 0.0))[0], kept=kept) for one in whole])
            if kept:
                self._measured.groups += 1
                self._measured.drifting += drifts
                return
            self._measured.dropped += len(arms) + 1

    def _drifts(self, test: str, now: float) -> bool:
        """Whether the anchor's speeds in a test differ more than they may; remembers by how much they do."""
        seen = self._differences.setdefault(test, [])
        usual = _USUAL * statistics.median(seen) if len(seen) >= _KNOWN else 0.0
        seen.append(now)
        return now > min(max(DRIFT[0], usual), DRIFT[1])

    def _sampled(self, arm: Arm, number: int) -> list[Sample]:
        """What one run of an arm says; nothing if it fails, or did before."""
        measured, plan = self._measured, self._plan
        if arm.name in measured.failed:
            return []
        self._step.update(self._done, max(self._total, self._done + 1), arm.name)
        self._done += 1
        at, load = time.time(), os.getloadavg()[0]
        try:
            results = self._run(arm)
        except RunFailed as error:
            left = [one for one in self._arms if one.name not in measured.failed and one is not arm]
            if not plan.tolerant or not left or arm is self._anchor:
                raise
            measured.failed[arm.name] = error.why
            # Some rounds of it alone cannot be compared with all rounds of another.
            measured.speeds.pop(arm.name, None)
            measured.bases.pop(arm.name, None)
            self._reporter.warn(f"{arm.name} is left out from here on: {error.why}")
            return []
        for result in results:
            measured.model = result.model or measured.model
            if result.local is not None:
                measured.local.setdefault(arm.name, {}).setdefault(result.test, []).append(result.local)
        return [Sample(arm.name, number, result.test, result.speed, at, load) for result in results]

    def _count(self, samples: Sequence[Sample]) -> None:
        self._keep(samples)
        for one in samples:
            if one.kept and one.arm not in self._measured.failed:
                self._measured.speeds.setdefault(one.arm, {}).setdefault(one.test, []).append(one.speed)
                if one.base is not None:
                    self._measured.bases.setdefault(one.arm, {}).setdefault(one.test, []).append(one.base)

    def _known(self) -> bool:
        """Whether every interval is as narrow as was asked."""
        narrow, measured = self._plan.narrow, self._measured
        if narrow is None or measured.rounds < FEWEST:
            return False
        return all(reach <= narrow for reach in _reaches(measured))


def _reaches(measured: Measured) -> Iterator[float]:
    """How far the intervals reach from their medians, as a share of them."""
    for arm, tests in measured.speeds.items():
        for test, speeds in tests.items():
            bases = measured.bases.get(arm, {}).get(test)
            values = [one / base for one, base in zip(speeds, bases, strict=True)] if bases else speeds
            found = summarize(values)
            low, high = found.interval
            yield max(high - found.median, found.median - low) / found.median


def _with(one: Sample, base: float | None, *, kept: bool) -> Sample:
    return Sample(one.arm, one.round, one.test, one.speed, one.at, one.load, base, kept)


def run_arm(
    arm: Arm,
    model: Path,
    log: Path,
    on_line: Callable[[str], None] = lambda _: None,
    timeout_s: float = RUN_TIMEOUT_S,
) -> list[Result]:
    """Run an arm's llama-bench once.

    Args:
        on_line: gets every line that it prints.
        timeout_s: after so long it hangs, and is ended.

    Raises:
        RunFailed: it failed, or did not answer what it was asked.
    """
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        on_line(line)

    if arm.mapped:
        _forget(model)
    status = stream(arm.command, log=log, on_line=take, timeout_s=timeout_s, env=arm_environment(arm))
    results = read_results("\n".join(lines)) if status == 0 else None
    if results is None or sorted(result.test for result in results) != sorted(arm.tests):
        msg = f"{TOOL} failed with {arm.choice}"
        raise RunFailed(msg, f"{ended(status)}: {last_words(lines)}", log)
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
