"""Tune a model on this machine: measure, search, confirm through llama-server, and say what to run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .child import RunFailed
from .dialect import Result
from .engine import Engine
from .guesses import NONE, Guess
from .prompts import CONFIRMING, PROMPTS
from .quality import Reading, sample_text
from .records import Arm, Sample
from .reporting import Reporter, Silent
from .running import RUN_TIMEOUT_S, Plan, arm_environment, chosen_environment, measure, run_arm
from .search import Dimension, Failure, Found, Outcome, Point, Space, Standing, search
from .server import run_batch_arm, run_prompts_arm, started
from .space import BATCH_THREADS, THREADS, Choices, Workload
from .statistics import TIE, Gain, compare

__all__ = ["LENGTHS", "Evaluator", "Journal", "Judge", "Tuned", "benches", "tune"]

MEASUREMENTS = 400
"""Measurements of points at most, whatever the time allows."""
LENGTHS = (3, 6, 12)
"""Tokens that a draft model, or MTP, is tried to guess at once."""
_GUESSING = 0.3
"""Share of the time that is kept for them, where the engine can guess."""
_FEWEST_SHARE = 0.1
"""With less of the time left they are not tried."""
_JUDGED = 1024
"""Tokens whose probabilities are compared for the quality of a lossy setting, about."""
_GENERATED = 64
"""Tokens that are generated to know the speed of generation, at most: more of them take longer and say the same."""
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


class Judge:
    """What lossy settings cost: KL divergence from the same payload with f16, once for each payload and setting.

    Args:
        most: settings with a larger one, in nats a token, are out.
    """

    def __init__(
        self, choices: Choices, model: Path, workload: Workload, log: Path, journal: Journal, most: float
    ) -> None:
        self._choices, self._model, self._log, self._journal, self._most = choices, model, log, journal, most
        self._context = min(2048, max(512, workload.depth))
        self._folder = tempfile.TemporaryDirectory(prefix="forkyard-llm-")
        self.found: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}

    def __call__(self, point: Point) -> Failure | None:
        """Why a point is out, if it costs too much."""
        words, payload = self._choices.lossy(point), point[0]
        if not words:
            return None
        if (payload, words) not in self.found:
            engine = self._choices.engine(point)
            said = self._journal.answer(["quality", payload, *words], lambda: self._measure(engine, words))
            self.found[payload, words] = said
        said = self.found[payload, words]
        if "failed" in said:
            return f"its quality could not be measured: {said['failed']}"
        if not said["kld_mean"] <= self._most:
            return f"KL divergence {said['kld_mean']:.4f} from f16, more than {self._most:g} (--max-kld)"
        return None

    def of(self, point: Point) -> dict[str, Any] | None:
        """What a point costs, if it changes what the model says."""
        return self.found.get((point[0], self._choices.lossy(point)))

    def _measure(self, engine: Engine, words: tuple[str, ...]) -> dict[str, Any]:
        folder = Path(self._folder.name)
        windows = max(1, 2 * _JUDGED // self._context)
        layers, chosen = 999 if engine.devices() else 0, chosen_environment(os.environ)
        text, logits = sample_text(folder), folder / hashlib.sha256(str(engine.bench).encode()).hexdigest()
        reading = Reading(self._model, text, self._context, windows, layers, chosen, self._log)
        try:
            if not logits.exists():
                reading.keep(engine, logits.with_suffix(".part"))
                logits.with_suffix(".part").rename(logits)
            return reading.compare(engine, words, logits).as_json()
        except RunFailed as error:
            return {"failed": error.why}


@dataclass(frozen=True)
class Tuned:
    """What a run came to."""

    choices: Choices
    found: Found
    best: Point
    """The default, if the winner was not confirmed."""
    guess: Guess
    """How it guesses tokens ahead, or not."""
    guessing: Found | None
    """What trying guesses on the best settings came to."""
    confirmed: Gain | None
    """The winner relative to the default through llama-server; None if the default won before."""
    quality: Mapping[str, Any] | None
    """What it costs, if it changes what the model says."""
    remarks: tuple[str, ...]
    command: tuple[str, ...]
    call: str

    @property
    def standing(self) -> Standing | None:
        """What finalists' samples say of the best point."""
        return next((one for one in self.found.standings if one.point == self.best), None)

    @property
    def guessed(self) -> Standing | None:
        """What the guesses gain beside the best settings without them."""
        standings = self.guessing.standings if self.guessing and self.guess.words else []
        return next((one for one in standings if one.point == (self.guess.name,)), None)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        standing, name = self.standing, self.choices.name
        return {
            "changes": self.choices.space.changes(self.best),
            "speedup": standing.speedup if standing else 1.0,
            "interval": list(standing.interval) if standing else [1.0, 1.0],
            "guesses": {
                "chosen": self.guess.name,
                "finalists": [_said(one, one.point[0]) for one in self.guessing.standings] if self.guessing else [],
                "failed": {point[0]: why for point, why in self.guessing.failed.items()} if self.guessing else {},
            },
            "confirmed": self.confirmed.as_json() if self.confirmed else None,
            "quality": self.quality,
            "command": list(self.command),
            "environment": self.choices.environment(self.best),
            "call": self.call,
            "effects": self.found.effects,
            "finalists": [_said(one, name(one.point)) for one in self.found.standings],
            "failed": {name(point): why for point, why in self.found.failed.items()},
            "not_tried": list(self.choices.not_tried),
            "remarks": list(self.remarks),
            "measurements": self.found.measurements + (self.guessing.measurements if self.guessing else 0),
            "complete": self.found.complete,
        }

    def as_text(self, *, explain: bool = False) -> str:
        """For people."""
        lines, standing = [], self.standing
        if standing is None and self.found.complete:
            lines.append("Keep the default: nothing is surely faster.")
        elif standing is None:
            lines.append("Keep the default for now: it is not known yet what is surely faster.")
            lines += [
                f"  {one.speedup:.2f}x in {one.rounds} rounds: {self.choices.name(one.point)}"
                for one in self.found.standings[:3]
            ]
        else:
            lines.append(f"Fastest: {self.choices.name(self.best)}")
            lines += _told(standing, "the default")
        if self.guessed:
            lines.append(f"Guessing tokens ahead: {self.guess.name}")
            lines += _told(self.guessed, "the same without")
        if self.quality:
            lines.append(
                f"It changes what the model says: KL divergence {self.quality['kld_mean']:.4f} from f16, "
                f"the same likeliest token in {self.quality['same_top_percent']:.1f} %."
            )
        lines += self.remarks
        environment = [f"{name}={value}" for name, value in self.choices.environment(self.best).items()]
        lines += ["", "Server:", "  " + shlex.join([*(["env", *environment] if environment else []), *self.command])]
        lines += ["Python:", f"  {self.call}"]
        if explain:
            effects = sorted(
                [*self.found.effects.items(), *(self.guessing.effects.items() if self.guessing else ())],
                key=lambda one: -one[1],
            )
            lines += ["", "What mattered (fastest value over slowest):"]
            lines += [f"  {name}: {ratio:.2f}x" for name, ratio in effects]
            lines += ["", "Finalists, relative to the default:"]
            lines += [
                f"  {one.speedup:.2f}x ({one.interval[0]:.2f} to {one.interval[1]:.2f}) {self.choices.name(one.point)}"
                + ("" if one.safe else ": not surely faster without a loss")
                for one in self.found.standings
            ]
        failed = {self.choices.name(point): why for point, why in self.found.failed.items()}
        failed |= {point[0]: why for point, why in self.guessing.failed.items()} if self.guessing else {}
        if failed:
            lines += ["", "Could not be measured, or is out:"]
            lines += [f"  {name}: {why}" for name, why in failed.items()]
        lines += ["", "Not tried:", *(f"  {one}" for one in self.choices.not_tried)]
        return "\n".join(lines)


def _said(one: Standing, name: str) -> dict[str, Any]:
    return {"name": name, "speedup": one.speedup, "interval": list(one.interval), "safe": one.safe}


def _told(one: Standing, what: str) -> list[str]:
    low, high = one.interval
    return [
        f"{one.speedup:.2f}x {what} ({low:.2f} to {high:.2f}), {one.rounds} rounds",
        *(f"  {test}: {middle:.2f}x ({least:.2f} to {most:.2f})" for test, (middle, least, most) in one.tests.items()),
    ]


@dataclass(frozen=True)
class Measuring:
    """How points of a space are measured."""

    space: Space
    arms: Callable[[Point], Sequence[Arm]]
    """The commands of a point."""
    run: Callable[[Arm, float], Sequence[Result]]
    """Runs one once, for so many seconds at most."""
    tokens: Callable[[str], float]
    """How many tokens a test stands for."""
    stage: str = ""
    """Sets its questions apart from those of others in the journal."""
    judge: Callable[[Point], Failure | None] = lambda _: None
    """Why a point that is faster than the default is out."""


def benches(
    choices: Choices,
    model: Path,
    workload: Workload,
    log: Path,
    judge: Callable[[Point], Failure | None] = lambda _: None,
) -> Measuring:
    """Points by llama-bench; by llama-server if there are several requests at once."""

    def run(arm: Arm, limit_s: float) -> Sequence[Result]:
        if workload.parallel > 1:
            return run_batch_arm(arm, log, workload.prompt, workload.generate, workload.parallel)
        return run_arm(arm, model, log, timeout_s=limit_s)

    short = replace(workload, generate=min(workload.generate, _GENERATED)) if workload.parallel == 1 else workload
    return Measuring(choices.space, lambda one: choices.arms(one, model, short), run, workload.tokens, judge=judge)


def _guessing(
    choices: Choices, best: Point, guesses: Mapping[str, Guess], model: Path, workload: Workload, log: Path
) -> Measuring:
    """Ways to guess, by llama-server, beside the best settings without any."""
    tests = tuple(name for name in PROMPTS if name != "warm-up")
    tokens = max(1, workload.generate)

    def arms(point: Point) -> list[Arm]:
        (name,) = point
        command = (*choices.command(best, model, workload), *guesses[name].words)
        environment = {**chosen_environment(os.environ), **choices.environment(best)}
        values = {**choices.values(best), "guesses": name}
        words = " ".join(guesses[name].words)
        return [Arm(f"guesses {name}", command, tests, words, environment, engine=choices.engine(best), values=values)]

    return Measuring(
        Space((Dimension("guesses", tuple(guesses)),), (NONE,)),
        arms,
        lambda arm, _: run_prompts_arm(arm, log, tokens),
        lambda _: tokens,
        "guesses",
    )


class Evaluator:
    """Measures points beside the default, with the room's anchor."""

    def __init__(self, how: Measuring, journal: Journal, keep: Keep = lambda *_: None) -> None:
        self._how, self._journal, self._keep = how, journal, keep
        self._stage = [how.stage] if how.stage else []
        self._differences: dict[str, list[float]] = {}
        first = self._journal.answer([*self._stage, "default"], self._first)
        self.shares: dict[str, float] = first["shares"]
        self._limit_s = float(first["limit_s"])

    def _first(self) -> dict[str, Any]:
        """Each test's share of the default's seconds, and how long a run may last; the second run counts."""
        arms = self._how.arms(self._how.space.default)
        seconds: dict[str, float] = {}
        limit_s = _SHORTEST_LIMIT_S
        for arm in arms:
            self._how.run(arm, RUN_TIMEOUT_S)
            began = time.monotonic()
            results = self._how.run(arm, RUN_TIMEOUT_S)
            limit_s = max(limit_s, _SLOWEST * (time.monotonic() - began))
            seconds |= {one.test: self._how.tokens(one.test) / one.speed for one in results}
        return {"shares": {test: one / sum(seconds.values()) for test, one in seconds.items()}, "limit_s": limit_s}

    def __call__(self, points: Sequence[Point], fresh: bool = False) -> list[Outcome]:
        """See :data:`forkyard_llm.measuring.search.Evaluator`."""
        question = [*self._stage, *(["fresh"] if fresh else []), *map(list, points)]
        answers: list[Outcome] = self._journal.answer(question, lambda: self._measure(points))
        # Quality takes long to measure, and what is no faster needs none.
        return [
            answer if isinstance(answer, str) or self._speedup(answer) <= 1 else self._how.judge(point) or answer
            for point, answer in zip(points, answers, strict=True)
        ]

    def _speedup(self, ratios: Mapping[str, float]) -> float:
        """Of the whole workload; 0 if a test is missing."""
        if not all(ratios.get(test) for test in self.shares):
            return 0.0
        return 1 / sum(share / ratios[test] for test, share in self.shares.items())

    def _run(self, arm: Arm) -> Sequence[Result]:
        return self._how.run(arm, self._limit_s)

    def _measure(self, points: Sequence[Point]) -> list[Outcome]:
        anchors = self._how.arms(self._how.space.default)
        each = [self._how.arms(one) for one in points]
        kept: list[Sample] = []
        failed: dict[str, str] = {}
        # Where the default takes two commands, each of them is the anchor of those that measure the same.
        for anchor in anchors:
            arms = [anchor, *(arm for some in each for arm in some if set(arm.tests) & set(anchor.tests))]
            # The search bears what a machine that drifts makes of some samples; to run them again costs half the time.
            plan = Plan(1, anchor=anchor.name, warm_up=False, again=0, tolerant=True)
            samples: list[Sample] = []
            measured = measure(arms, plan, self._run, Silent(), keep=samples.extend, differences=self._differences)
            self._keep(arms, samples, measured.failed)
            kept += [one for one in samples if one.kept and one.base]
            failed |= measured.failed
        outcomes: list[Outcome] = []
        for some in each:
            names = [one.name for one in some]
            why = next((failed[one] for one in names if one in failed), None)
            mine = [one for one in kept if one.arm in names]
            outcomes.append(why or {one.test: one.speed / one.base for one in mine if one.base})
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
    judge: Judge | None = None,
    guesses: Callable[[Engine], Sequence[Guess]] = lambda _: (),
) -> Tuned:
    """The fastest settings that harm no test, confirmed through llama-server.

    Args:
        keep: gets arms, their samples, and why some failed, as soon as they are measured.
        judge: rules out what costs too much quality; None if nothing in the space does.
        guesses: the ways an engine can guess tokens ahead.

    Raises:
        RunFailed: the default cannot be measured.
    """
    began = time.monotonic()
    default = choices.space.default
    guessable = workload.parallel == 1 and workload.generate > 0
    share = 1 - _GUESSING if guessable and guesses(choices.engine(default)) else 1.0
    evaluate = Evaluator(benches(choices, model, workload, log, judge or (lambda _: None)), journal, keep)

    said: list[Point] = [default]

    def say(point: Point, speedup: float) -> None:
        if said[-1] == point:
            return
        said.append(point)
        reporter.note(f"best so far: {choices.name(point)}, about {speedup:.2f}x")

    with _interruptible(reporter, lambda: choices.command(said[-1], model, workload)):
        found = search(
            choices.space,
            evaluate.shares,
            evaluate,
            budget=MEASUREMENTS,
            rivals=choices.rivals,
            # What the finalists need they may take from the guesses.
            go_on=lambda part: time.monotonic() - began < 60 * minutes * (share * part if part < 1 else 1),
            on_best=say,
        )
    best, remarks = found.best, list[str]()
    if not found.complete:
        remarks.append("The time ended before everything was known: --resume goes on, or give more with --budget.")
    if found.unseen:
        remarks.append(f"No time was left to try: {', '.join(found.unseen)}. Give more with --budget.")
    known = {one.name: one for one in guesses(choices.engine(best))} if guessable else {}
    guess, guessing = Guess(NONE), None
    since = time.monotonic()
    left = 60 * minutes - (since - began)
    if len(known) > 1 and left < 60 * minutes * _FEWEST_SHARE:
        remarks.append("No time was left for guessing tokens ahead.")
    elif len(known) > 1:
        reporter.note(f"guessing tokens ahead: {', '.join(name for name in known if name != NONE)}")
        try:
            how = _guessing(choices, best, known, model, workload, log)
            with _interruptible(reporter, lambda: choices.command(best, model, workload)):
                evaluate = Evaluator(how, journal, keep)
                guessing = search(
                    how.space,
                    evaluate.shares,
                    evaluate,
                    budget=MEASUREMENTS,
                    go_on=lambda part: time.monotonic() - since < left * part,
                )
            guess = known[guessing.best[0]]
        except RunFailed as error:
            remarks.append(f"Guesses could not be measured: {error.why}")
    with _interruptible(reporter, lambda: (*choices.command(found.best, model, workload), *guess.words)):
        best, guess, confirmed, more = _confirmed(choices, best, guess, model, workload, log, journal)
    remarks += more
    threads = max(found.effects.get(THREADS, 1), found.effects.get(BATCH_THREADS, 1))
    changed = choices.space.changes(best)
    if threads >= _BAD_DEFAULT and {THREADS, BATCH_THREADS} & set(changed):
        values = choices.values(default)
        remarks.append(f"The default of {values[THREADS]} threads is slow on this machine.")
    call, lacking = choices.call(best, model, workload, guess.python)
    if lacking:
        remarks.append(f"The Python class has no setting for: {', '.join(lacking)}.")
    command = (*choices.command(best, model, workload), *guess.words)
    quality = judge.of(best) if judge else None
    return Tuned(choices, found, best, guess, guessing, confirmed, quality, tuple(remarks), command, call)


@contextlib.contextmanager
def _interruptible(reporter: Reporter, command: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Who ends the block with Ctrl-C gets the command of the best so far."""
    try:
        yield
    except KeyboardInterrupt:
        reporter.note(f"best so far, not confirmed: {shlex.join(command())}")
        raise


def _confirmed(
    choices: Choices, best: Point, guess: Guess, model: Path, workload: Workload, log: Path, journal: Journal
) -> tuple[Point, Guess, Gain | None, list[str]]:
    """The winner with its guesses, or without, or the default: the first that llama-server confirms; and remarks."""
    default, none, remarks = choices.space.default, Guess(NONE), list[str]()
    for one in dict.fromkeys((guess.name, NONE)):
        chosen = guess if one == guess.name else none
        if best == default and not chosen.words:
            break
        name = ", ".join([choices.name(best), *([f"guesses {one}"] if chosen.words else [])])
        try:
            question = ["confirm", one, *best]
            ratios = journal.answer(question, lambda: _confirm(choices, best, chosen, model, workload, log))  # noqa: B023
        except RunFailed as error:
            remarks.append(f"{name} was not confirmed through llama-server: {error.why}")
            continue
        confirmed = compare(ratios, [1.0] * len(ratios))
        if confirmed.ratio >= 1 + TIE:
            remarks.append(f"Confirmed through llama-server on other texts: {confirmed.ratio:.2f}x the default.")
            return best, chosen, confirmed, remarks
        remarks.append(f"{name} was not confirmed through llama-server ({confirmed.ratio:.2f}x the default).")
    return default, none, None, remarks


def _confirm(choices: Choices, best: Point, guess: Guess, model: Path, workload: Workload, log: Path) -> list[float]:
    """The default's seconds over the winner's, the median of the rounds for each text that nothing was tuned with."""
    ratios: list[list[float]] = []
    for number in range(_CONFIRMING_ROUNDS):
        both = [(choices.space.default, Guess(NONE)), (best, guess)]
        seconds = [_seconds(choices, *one, model, workload, log) for one in (both if number % 2 else both[::-1])]
        old, new = seconds if number % 2 else seconds[::-1]
        ratios.append([before / after for before, after in zip(old, new, strict=True)])
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def _seconds(choices: Choices, point: Point, guess: Guess, model: Path, workload: Workload, log: Path) -> list[float]:
    """Of each confirming text, as llama-server's timings say; of all of them at once if requests come in parallel."""
    command = (*choices.command(point, model, workload), *guess.words)
    environment = {**chosen_environment(os.environ), **choices.environment(point)}
    arm = Arm("confirming", command, workload.tests, "", environment, engine=choices.engine(point))
    if workload.parallel > 1:
        several = (workload.prompt, workload.generate, workload.parallel)
        return [1 / one.speed for one in run_batch_arm(arm, log, *several, CONFIRMING) if one.test in workload.tests]
    found = []
    with started(command, log, arm_environment(arm)) as server:
        server.complete(PROMPTS["warm-up"], 16)
        for text in CONFIRMING.values():
            words = server.tokens(text)
            asked = [words[at % len(words)] for at in range(max(1, workload.prompt, workload.depth))]
            said = server.complete(asked, max(1, workload.generate))
            found.append((said.prompt_ms + said.generated_ms) / 1000)
    return found
