"""What `bench` compares, as data: the arms of each scenario, its anchor, and how an arm of it is run."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engines.cores import default_threads
from ..errors import UsageError
from ..gguf_reader import read
from .child import RunFailed
from .dialect import Result
from .engine import SERVER, Engine
from .finding import label_all
from .guesses import guesses
from .machine import describe, thread_counts
from .prompts import PROMPTS
from .records import Arm, Recorded, RunInfo, Sample
from .reporting import Reporter
from .running import Measured, Plan, chosen_environment, measure, run_arm
from .server import ALL, GENERATED, run_batch_arm, run_prompts_arm
from .statistics import Gain, compare, summarize
from .timing import Timing

__all__ = ["SCENARIOS", "Planned", "Wishes", "bench", "conclusions", "label_all", "verdicts"]

PARALLEL = (1, 2, 4, 8)
_EXPERT_CACHE = "--expert-cache"
_PROMPT_ROOM = 1024
"""Tokens; the longest prompt of the scenario ``spec`` has some 300."""


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; each scenario has a use for some of it."""

    model: Path
    prompt: int = 512
    """Tokens of the prompt test; 0: none."""
    generate: int = 128
    """Tokens that are generated; 0: none."""
    depths: tuple[int, ...] = (0,)
    """Tokens in the KV cache before a test begins."""
    threads: tuple[int, ...] = ()
    """Numbers of threads; none: the scenario's own."""
    parallel: tuple[int, ...] = PARALLEL
    """Requests at once, of the scenario ``batch``."""
    draft: Path | None = None
    """The draft model of the scenario ``spec``."""
    expert_caches: tuple[str, ...] = ()
    """Sizes for ``--expert-cache``, of the scenario ``experts``."""
    rounds: int = 10
    minutes: float | None = None
    narrow: float | None = 0.02
    extra: tuple[str, ...] = ()
    """More arguments for the program, the same in every arm."""
    own: tuple[tuple[str, ...], ...] = ()
    """Arguments of each payload alone, in their order."""


@dataclass(frozen=True)
class Planned:
    """What is about to be measured."""

    arms: tuple[Arm, ...]
    anchor: str
    """The arm that the others are relative to."""
    run: Callable[[Arm, Path], Sequence[Result]]
    """Runs an arm once; the second argument is the log."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """One comparison that `bench` knows."""

    plan: Callable[[Sequence[tuple[str, Engine]], Wishes], Planned]
    fewest: int = 1
    """Engines that it needs."""
    through_server: bool = False
    """Whether it measures answers of llama-server, which generate."""


def bench(
    name: str,
    engines: Sequence[Engine],
    wishes: Wishes,
    log: Path,
    reporter: Reporter,
    *,
    begin: Callable[[RunInfo, Sequence[Arm]], None] = lambda *_: None,
    keep: Callable[[str, Sequence[Sample]], None] = lambda *_: None,
) -> Recorded:
    """Measure a scenario.

    Args:
        begin: is told the run and its arms before anything is measured.
        keep: gets the run's id and samples, as soon as they are there.

    Raises:
        UsageError: there is nothing to compare.
        RunFailed: the anchor cannot be measured, or no other arm.
    """
    scenario = SCENARIOS[name]
    if len(engines) < scenario.fewest:
        msg = f"the scenario {name} compares {scenario.fewest} or more payloads, and there is {len(engines)}"
        raise UsageError(msg)
    if not wishes.generate and (not wishes.prompt or scenario.through_server):
        msg = "nothing is to be generated, and no prompt to be measured alone: give --generate a number above 0"
        raise UsageError(msg)
    if name != "threads" and len(wishes.threads) > 1:
        msg = f"the scenario {name} runs with one number of threads, and {len(wishes.threads)} are named"
        raise UsageError(msg)
    planned = scenario.plan(label_all(engines), wishes)
    if len(planned.arms) < 2:
        why = "; ".join(planned.remarks)
        msg = f"there is nothing to compare in the scenario {name}" + (f": {why}" if why else "")
        raise UsageError(msg)
    info = RunInfo(
        id=uuid.uuid4().hex,
        scenario=name,
        created=time.time(),
        model=wishes.model.name,
        model_bytes=wishes.model.stat().st_size,
        machine=describe(),
        anchor=planned.anchor,
        remarks=planned.remarks,
    )
    begin(info, planned.arms)
    samples: list[Sample] = []

    def take(new: Sequence[Sample]) -> None:
        samples.extend(new)
        keep(info.id, new)

    plan = Plan(wishes.rounds, wishes.minutes, wishes.narrow, planned.anchor, tolerant=True)
    measured = measure(planned.arms, plan, lambda arm: planned.run(arm, log), reporter, keep=take)
    if len(measured.failed) == len(planned.arms) - 1:
        msg = f"nothing can be compared with {planned.anchor}"
        raise RunFailed(msg, "; ".join(f"{arm}: {why}" for arm, why in measured.failed.items()), log)
    return Recorded(_after(info, measured), planned.arms, samples, measured.failed)


def _after(info: RunInfo, measured: Measured) -> RunInfo:
    """The run with what is known of it afterwards."""
    said = list(info.remarks)
    if measured.dropped:
        said.append(f"{measured.dropped} runs were thrown away because the machine's speed changed, and repeated.")
    if measured.restless:
        said.append(f"Rough figures: {measured.restless}.")
    return RunInfo(**{**vars(info), "model_type": measured.model, "remarks": tuple(said)})


def conclusions(recorded: Recorded) -> list[str]:
    """For each test the fastest arm, what cannot be told from it, and what it gains over the anchor.

    Nothing without an anchor: the table of such a run has its own factors.
    """
    anchor, said = recorded.info.anchor, list[str]()
    if anchor is None:
        return said
    for test in dict.fromkeys(one.test for one in recorded.samples):
        ratios = {}
        for arm in recorded.arms:
            kept = [one for one in recorded.samples if one.kept and (one.arm, one.test) == (arm.name, test)]
            if kept and arm.name not in recorded.failed:
                ratios[arm.name] = [1.0 if arm.name == anchor else one.speed / (one.base or one.speed) for one in kept]
        if len(ratios) < 2:
            continue
        best = max(ratios, key=lambda name: summarize(ratios[name]).median)
        level = [name for name in ratios if name != best and _level(ratios[best], ratios[name])]
        speed = summarize(recorded.speeds(best, test)).median
        text = f"{test}: {best} is fastest ({speed:.2f} t/s)"
        if best != anchor and anchor not in level:
            gain = compare(ratios[best], [1.0] * len(ratios[best]))
            text += f", {gain.ratio:.2f}x {anchor} ({gain.interval[0]:.2f} to {gain.interval[1]:.2f})"
        said.append(text + (f"; not to be told from it: {', '.join(level)}" if level else ""))
    return said


def _level(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two arms cannot be told apart, in the rounds that both have."""
    count = min(len(one), len(other))
    return compare(one[:count], other[:count]).verdict == "tie"


def verdicts(recorded: Recorded) -> dict[tuple[str, str], Gain]:
    """(arm, test) -> what it gains over the anchor around it."""
    found = {}
    for arm in recorded.arms:
        for test in arm.tests if arm.name != recorded.info.anchor and arm.name not in recorded.failed else ():
            kept = [one for one in recorded.samples if one.kept and (one.arm, one.test) == (arm.name, test)]
            pairs = [(one.speed, one.base) for one in kept if one.base is not None]
            if pairs:
                found[arm.name, test] = compare([speed for speed, _ in pairs], [base for _, base in pairs])
    return found


# -- the scenarios -----------------------------------------------------------------------------------------------------


def _bench_arm(name: str, engine: Engine, wishes: Wishes, words: Sequence[str], **values: str) -> Arm:
    """An arm that runs llama-bench."""
    timing = Timing(wishes.prompt, wishes.generate, wishes.depths)
    absent = timing.absent(engine, name)
    tests = tuple(test for test in timing.tests if test not in absent)
    command = (str(engine.bench), "-m", str(wishes.model), *words, *timing.words(engine), "-r", "1")
    return _arm(name, engine, (*command, *wishes.extra, "-o", "json"), tests, words, **values)


def _arm(
    name: str, engine: Engine, command: tuple[str, ...], tests: tuple[str, ...], choice: Sequence[str], **values: str
) -> Arm:
    known = {"engine": engine.name, "variant": engine.variant, "build_key": engine.build_key}
    environment = chosen_environment(os.environ)
    return Arm(name, command, tests, " ".join(choice), environment, engine=engine, values={**known, **values})


def _bench_run(wishes: Wishes) -> Callable[[Arm, Path], Sequence[Result]]:
    return lambda arm, log: run_arm(arm, wishes.model, log)


def _threads(engines: Sequence[tuple[str, Engine]], wishes: Wishes) -> Planned:
    counts = sorted({*(wishes.threads or thread_counts()), default_threads()})
    arms = [
        _bench_arm(f"{label}, {count} threads", engine, wishes, ["-t", str(count)], threads=str(count))
        for label, engine in engines
        for count in counts
    ]
    anchor = f"{engines[0][0]}, {default_threads()} threads"
    return Planned(tuple(arms), anchor, _bench_run(wishes))


def _variants(engines: Sequence[tuple[str, Engine]], wishes: Wishes) -> Planned:
    arms = [_bench_arm(label, engine, wishes, ["-t", _count(wishes)]) for label, engine in engines]
    return Planned(tuple(arms), arms[0].name, _bench_run(wishes))


def _stock(engines: Sequence[tuple[str, Engine]], wishes: Wishes) -> Planned:
    if len({engine.name for _, engine in engines}) > 1:
        msg = "an engine is compared with its own upstream: measure one engine at a time"
        raise UsageError(msg)
    stock = [engine for _, engine in engines if not engine.stacks]
    if len(stock) != 1:
        msg = f"of one engine one payload without stacks is needed, and {len(stock)} of {len(engines)} have none"
        raise UsageError(msg)
    named = [(label if engine.stacks else f"{engine.recipe} without stacks", engine) for label, engine in engines]
    # What it is compared with stands first.
    named.sort(key=lambda one: bool(one[1].stacks))
    return _variants(named, wishes)


def _compare(engines: Sequence[tuple[str, Engine]], wishes: Wishes) -> Planned:
    own = wishes.own or ((),) * len(engines)
    same = len({engine.bench for _, engine in engines}) == 1
    names = [
        " ".join([engine.recipe if same else label, *words])
        for (label, engine), words in zip(engines, own, strict=True)
    ]
    if len(set(names)) < len(names):
        # The same twice: how far apart two measurements of one thing are on this machine.
        names = [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]
    arms = [
        _bench_arm(name, engine, wishes, [*([] if "-t" in words else ["-t", str(default_threads())]), *words])
        for name, (_, engine), words in zip(names, engines, own, strict=True)
    ]
    return Planned(tuple(arms), arms[0].name, _bench_run(wishes))


def _batch(engines: Sequence[tuple[str, Engine]], wishes: Wishes) -> Planned:
    if not wishes.prompt:
        msg = "a request has a prompt: give --prompt a number above 0"
        raise UsageError(msg)
    arms: list[Arm] = []
    remarks: list[str] = []
    for label, engine, server in _servers(engines, remarks):
        for count in wishes.parallel:
            context = str(count * (wishes.prompt + wishes.generate + 64))
            words = ["-np", str(count), "-c", context]
            command = (server, "-m", str(wishes.model), "-t", _count(wishes), *words, *wishes.extra)
            name = f"{label}, {count} at once"
            arms.append(_arm(name, engine, command, (GENERATED, ALL), words, parallel=str(count)))

    def run(arm: Arm, log: Path) -> Sequence[Result]:
        return run_batch_arm(arm, log, wishes.prompt, wishes.generate, int(arm.values["parallel"]))

    return Planned(tuple(arms), arms[0].name if arms else "", run, tuple(remarks))


def _spec(engines: Sequence[tuple[str, Engine]], wishes: Wishes) -> Planned:
    arms: list[Arm] = []
    remarks: list[str] = []
    tests = tuple(name for name in PROMPTS if name != "warm-up")
    context = str(wishes.generate + _PROMPT_ROOM)
    model = read(wishes.model)
    for label, engine, server in _servers(engines, remarks):
        for one in guesses(engine, model, wishes.draft, label, remarks):
            command = (server, "-m", str(wishes.model), "-t", _count(wishes), "-np", "1", "-c", context, *one.words)
            name = f"{label}, {one.name}"
            arms.append(_arm(name, engine, (*command, *wishes.extra), tests, one.words, guesses=one.name))

    def run(arm: Arm, log: Path) -> Sequence[Result]:
        return run_prompts_arm(arm, log, wishes.generate)

    return Planned(tuple(arms), arms[0].name if arms else "", run, tuple(remarks))


def _experts(engines: Sequence[tuple[str, Engine]], wishes: Wishes) -> Planned:
    model = read(wishes.model)
    experts = model.values.get(f"{model.architecture}.expert_count")
    if experts is None or not any(experts.numbers):
        msg = f"{wishes.model.name} is no mixture of experts: there is nothing to keep elsewhere"
        raise UsageError(msg)
    layers = model.layers
    some = sorted({layers // 4, layers // 2, 3 * layers // 4} - {0, layers})
    arms: list[Arm] = []
    remarks: list[str] = []
    for label, engine in engines:
        # What RPC servers lend is not listed before they are named.
        if not engine.devices() and "--rpc" not in wishes.extra:
            remarks.append(f"{label} finds no device beside the processor")
            continue
        # The first is what fits every card.
        ways: list[tuple[str, tuple[str, ...]]] = [("all experts on the CPU", ("--n-cpu-moe", str(layers)))]
        ways += [(f"experts of {one} of {layers} layers on the CPU", ("--n-cpu-moe", str(one))) for one in some]
        ways += [("all experts on the CPU by -ot", ("-ot", "exps=CPU")), ("all on the device", ())]
        if _EXPERT_CACHE in engine.options:
            ways += [(f"expert cache {one}", (_EXPERT_CACHE, one)) for one in wishes.expert_caches]
        elif wishes.expert_caches:
            remarks.append(f"{label} has no {_EXPERT_CACHE}")
        arms += [
            _bench_arm(f"{label}, {name}", engine, wishes, ["-t", _count(wishes), "-ngl", "999", *words], experts=name)
            for name, words in ways
            if not words or words[0] in engine.options
        ]
    return Planned(tuple(arms), arms[0].name if arms else "", _bench_run(wishes), tuple(remarks))


def _count(wishes: Wishes) -> str:
    return str(wishes.threads[0] if wishes.threads else default_threads())


def _servers(engines: Sequence[tuple[str, Engine]], remarks: list[str]) -> Iterator[tuple[str, Engine, str]]:
    """The engines with their llama-server, and a remark for those without."""
    for label, engine in engines:
        server = engine.program(SERVER)
        if server is None:
            remarks.append(f"{label} has no {SERVER}")
        else:
            yield label, engine, str(server)


SCENARIOS: Mapping[str, Scenario] = {
    "threads": Scenario(_threads),
    "variants": Scenario(_variants, fewest=2),
    "stock": Scenario(_stock, fewest=2),
    "compare": Scenario(_compare, fewest=2),
    "experts": Scenario(_experts),
    "batch": Scenario(_batch, through_server=True),
    "spec": Scenario(_spec, through_server=True),
}
"""By name. Those that compare nodes, devices and KV caches have tables of their own: numa.py, split.py, kv.py."""
