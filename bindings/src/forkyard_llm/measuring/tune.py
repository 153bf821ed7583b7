"""Tune a model on this machine: measure, search, confirm through llama-server, and say what to run."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .child import RunFailed
from .prompts import CONFIRMING, PROMPTS
from .records import Arm, Sample
from .reporting import Reporter, Silent
from .running import Plan, chosen_environment, engine_environment, measure, run_arm
from .search import Found, Outcome, Point, Standing, search
from .server import started
from .space import BATCH_THREADS, THREADS, Choices, Workload
from .statistics import TIE, Gain, compare

__all__ = ["Evaluator", "Journal", "Tuned", "tune"]

MEASUREMENTS = 400
"""Measurements of points at most, whatever the time allows."""
_SLOWEST = 20
"""A run that takes so many times as long as the default's hangs."""
_SHORTEST_LIMIT_S = 60.0
_CONFIRMING_ROUNDS = 3
_BAD_DEFAULT = 1.3
"""Where threads alone gain so much, the default number is the problem."""


Keep = Callable[[Sequence[Arm], Sequence[Sample], Mapping[str, str]], None]


class Journal:
    """What was measured, line by line, so that a run that was ended goes on where it was."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        """Begin a file, or read it to go on.

        Raises:
            UsageError: it is of another run, or there and not to be resumed, or cannot be written.
        """
        self._path, self._known = path, dict[str, list[Any]]()
        with _explained(path):
            self._begin(path, identity, resume=resume)

    def _begin(self, path: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        first = json.dumps(identity, sort_keys=True)
        if path.exists() and path.stat().st_size:
            if not resume:
                msg = f"{path} is there already: go on with --resume, or remove it"
                raise UsageError(msg)
            whole = path.read_bytes()
            # A line that was cut off is measured again.
            kept = whole[: whole.rfind(b"\n") + 1]
            lines = kept.decode("utf-8", "replace").splitlines()
            if not lines or lines[0] != first:
                msg = f"{path} is of another model, workload, machine or version: begin anew, without --resume"
                raise UsageError(msg)
            try:
                for entry in map(json.loads, lines[1:]):
                    self._known.setdefault(json.dumps(entry["question"]), []).append(entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                msg = f"{path} is damaged ({error}): begin anew, without --resume"
                raise UsageError(msg) from error
            os.truncate(path, len(kept))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(first + "\n", encoding="utf-8")

    def answer(self, question: Any, ask: Callable[[], Any]) -> Any:
        """The recorded answer, or a new one, which is recorded."""
        # By question, not by order: a run with more time asks more before it comes to the same finalists. No answer is
        # used twice, so that the samples of finalists stay others than those that chose them.
        if known := self._known.get(json.dumps(question)):
            return known.pop(0)
        answer = ask()
        with _explained(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return answer


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}; what was measured before is still in it"
        raise UsageError(msg) from error


@dataclass(frozen=True)
class Tuned:
    """What a run came to."""

    choices: Choices
    found: Found
    best: Point
    """The default, if the winner was not confirmed."""
    confirmed: Gain | None
    """The winner relative to the default through llama-server; None if the default won before."""
    remarks: tuple[str, ...]
    command: tuple[str, ...]
    call: str

    @property
    def standing(self) -> Standing | None:
        """What finalists' samples say of the best point."""
        return next((one for one in self.found.standings if one.point == self.best), None)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        standing, name = self.standing, self.choices.name
        return {
            "changes": self.choices.space.changes(self.best),
            "speedup": standing.speedup if standing else 1.0,
            "interval": list(standing.interval) if standing else [1.0, 1.0],
            "confirmed": self.confirmed.as_json() if self.confirmed else None,
            "command": list(self.command),
            "environment": dict(self.choices.engine(self.best).environment),
            "call": self.call,
            "effects": self.found.effects,
            "finalists": [
                {"name": name(one.point), "speedup": one.speedup, "interval": list(one.interval), "safe": one.safe}
                for one in self.found.standings
            ],
            "failed": {name(point): why for point, why in self.found.failed.items()},
            "not_tried": list(self.choices.not_tried),
            "remarks": list(self.remarks),
            "measurements": self.found.measurements,
            "complete": self.found.complete,
        }

    def as_text(self, *, explain: bool = False) -> str:
        """For people."""
        lines, standing = [], self.standing
        if standing is None:
            lines.append("Keep the default: nothing is surely faster.")
        else:
            low, high = standing.interval
            lines.append(f"Fastest: {self.choices.name(self.best)}")
            lines.append(f"{standing.speedup:.2f}x the default ({low:.2f} to {high:.2f}), {standing.rounds} rounds")
            lines += [
                f"  {test}: {middle:.2f}x ({least:.2f} to {most:.2f})"
                for test, (middle, least, most) in standing.tests.items()
            ]
        lines += self.remarks
        environment = [f"{name}={value}" for name, value in self.choices.engine(self.best).environment.items()]
        lines += ["", "Server:", "  " + shlex.join([*(["env", *environment] if environment else []), *self.command])]
        lines += ["Python:", f"  {self.call}"]
        if explain:
            effects = sorted(self.found.effects.items(), key=lambda one: -one[1])
            lines += ["", "What mattered (fastest value over slowest):"]
            lines += [f"  {name}: {ratio:.2f}x" for name, ratio in effects]
        if self.found.failed:
            lines += ["", "Could not be measured:"]
            lines += [f"  {self.choices.name(point)}: {why}" for point, why in self.found.failed.items()]
        lines += ["", "Not tried:", *(f"  {one}" for one in self.choices.not_tried)]
        return "\n".join(lines)


class Evaluator:
    """Measures points beside the default, with the room's anchor."""

    def __init__(
        self,
        choices: Choices,
        model: Path,
        workload: Workload,
        log: Path,
        journal: Journal,
        keep: Keep = lambda *_: None,
    ) -> None:
        self._choices, self._model, self._workload, self._log = choices, model, workload, log
        self._journal, self._keep = journal, keep
        first = self._journal.answer("default", self._first)
        self.shares: dict[str, float] = first["shares"]
        self._limit_s = float(first["limit_s"])

    def _first(self) -> dict[str, Any]:
        """Each test's share of the default's seconds, and how long a run may last; the second run counts."""
        (arm,) = self._choices.arms(self._choices.space.default, self._model, self._workload)
        run_arm(arm, self._model, self._log)
        began = time.monotonic()
        results = run_arm(arm, self._model, self._log)
        limit_s = max(_SHORTEST_LIMIT_S, _SLOWEST * (time.monotonic() - began))
        seconds = {one.test: self._workload.tokens(one.test) / one.speed for one in results}
        return {
            "shares": {test: one / sum(seconds.values()) for test, one in seconds.items()},
            "limit_s": limit_s,
        }

    def __call__(self, points: Sequence[Point], fresh: bool = False) -> list[Outcome]:
        """See :data:`forkyard_llm.measuring.search.Evaluator`."""
        question = [*(["fresh"] if fresh else []), *map(list, points)]
        answers: list[Outcome] = self._journal.answer(question, lambda: self._measure(points))
        return answers

    def _measure(self, points: Sequence[Point]) -> list[Outcome]:
        (anchor,) = self._choices.arms(self._choices.space.default, self._model, self._workload)
        each = [self._choices.arms(one, self._model, self._workload) for one in points]
        samples: list[Sample] = []

        def run(arm: Arm) -> Any:
            return run_arm(arm, self._model, self._log, timeout_s=self._limit_s)

        arms = [anchor, *(arm for some in each for arm in some)]
        plan = Plan(1, anchor=anchor.name, warm_up=False, tolerant=True)
        measured = measure(arms, plan, run, Silent(), keep=samples.extend)
        self._keep(arms, samples, measured.failed)
        outcomes: list[Outcome] = []
        for some in each:
            names = [one.name for one in some]
            why = next((measured.failed[one] for one in names if one in measured.failed), None)
            kept = [one for one in samples if one.arm in names and one.kept and one.base]
            outcomes.append(why or {one.test: one.speed / one.base for one in kept if one.base})
        return outcomes


def tune(
    choices: Choices,
    model: Path,
    workload: Workload,
    log: Path,
    reporter: Reporter,
    *,
    minutes: float,
    journal: Journal,
    keep: Keep = lambda *_: None,
) -> Tuned:
    """The fastest settings that harm no test, confirmed through llama-server.

    Args:
        keep: gets arms, their samples, and why some failed, as soon as they are measured.

    Raises:
        RunFailed: the default cannot be measured.
    """
    began = time.monotonic()
    evaluate = Evaluator(choices, model, workload, log, journal, keep)

    said: list[Point] = []

    def say(point: Point, speedup: float) -> None:
        if said[-1:] == [point]:
            return
        said.append(point)
        reporter.note(f"best so far: {choices.name(point)}, about {speedup:.2f}x")

    found = search(
        choices.space,
        evaluate.shares,
        evaluate,
        budget=MEASUREMENTS,
        go_on=lambda share: time.monotonic() - began < 60 * minutes * share,
        on_best=say,
    )
    best, confirmed, remarks = found.best, None, list[str]()
    if not found.complete:
        remarks.append("The time ended before everything was known: --resume goes on, or give more with --budget.")
    if best != choices.space.default:
        try:
            ratios = journal.answer(["confirm", list(best)], lambda: _confirm(choices, best, model, workload, log))
            confirmed = compare(ratios, [1.0] * len(ratios))
            if confirmed.ratio < 1 + TIE:
                remarks.append(
                    f"{choices.name(best)} was not confirmed through llama-server ({confirmed.ratio:.2f}x the default)."
                )
                best = choices.space.default
            else:
                remarks.append(f"Confirmed through llama-server on other texts: {confirmed.ratio:.2f}x the default.")
        except RunFailed as error:
            remarks.append(f"{choices.name(best)} was not confirmed through llama-server: {error.why}")
            best = choices.space.default
    threads = max(found.effects.get(THREADS, 1), found.effects.get(BATCH_THREADS, 1))
    changed = choices.space.changes(best)
    if threads >= _BAD_DEFAULT and {THREADS, BATCH_THREADS} & set(changed):
        values = choices.values(choices.space.default)
        remarks.append(f"The default of {values[THREADS]} threads is slow on this machine.")
    context = _context(workload)
    call, lacking = choices.call(best, model, context)
    if lacking:
        remarks.append(f"The Python class has no setting for: {', '.join(lacking)}.")
    command = choices.server(best, model, context)
    return Tuned(choices, found, best, confirmed, tuple(remarks), command, call)


def _context(workload: Workload) -> int:
    """Room for the workload and some more, in steps of 256."""
    return -(-(workload.prompt + workload.generate + 64) // 256) * 256


def _confirm(choices: Choices, best: Point, model: Path, workload: Workload, log: Path) -> list[float]:
    """The default's seconds over the winner's, for each round and text that nothing was tuned with."""
    ratios: list[float] = []
    for number in range(_CONFIRMING_ROUNDS):
        points = [choices.space.default, best]
        seconds = {
            one: _seconds(choices, one, model, workload, log) for one in (points if number % 2 else points[::-1])
        }
        ratios += [old / new for old, new in zip(seconds[points[0]], seconds[best], strict=True)]
    return [statistics.median(ratios[at :: len(CONFIRMING)]) for at in range(len(CONFIRMING))]


def _seconds(choices: Choices, point: Point, model: Path, workload: Workload, log: Path) -> list[float]:
    """Of each confirming text, as llama-server's timings say."""
    command = choices.server(point, model, _context(workload))
    environment = engine_environment({**choices.engine(point).environment, **chosen_environment(os.environ)})
    found = []
    with started(command, log, environment) as server:
        server.complete(PROMPTS["warm-up"], 16)
        for text in CONFIRMING.values():
            words = server.tokens(text)
            asked = [words[at % len(words)] for at in range(max(1, workload.prompt))]
            said = server.complete(asked, max(1, workload.generate))
            found.append((said.prompt_ms + said.generated_ms) / 1000)
    return found
