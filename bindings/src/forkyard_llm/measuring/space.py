"""What can be chosen on this machine, and how each engine's programs and the class `Llama` are asked for it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engines.cores import default_threads
from ..gguf_reader import GgufSummary
from .child import plain_environment, said_by
from .dialect import at_depth
from .engine import SERVER, Engine
from .finding import label_all
from .machine import thread_counts
from .records import Arm
from .running import chosen_environment
from .search import Dimension, Point, Space
from .server import ALL
from .settings import FIT, Host, Setting, settings
from .timing import tests_of

__all__ = ["BATCH_THREADS", "PAYLOAD", "THREADS", "Choices", "Workload", "choices"]

PAYLOAD, THREADS, BATCH_THREADS = "payload", "threads", "batch threads"
_OWN_THREADS = re.compile(r"-t, --threads <n>\s+\(default: \{?(\d+)")
_ROOM = 64
"""Tokens of a context beyond what the workload takes."""
_STEP = 256
_BATCH = 2048
"""What `Llama` gets at most for a batch: the engines' own default."""


@dataclass(frozen=True)
class Workload:
    """What the machine is tuned for."""

    prompt: int = 512
    generate: int = 128
    depth: int = 0
    """Tokens in the cache when generation begins."""
    parallel: int = 1
    """Requests at once; with several, llama-server is measured."""

    @property
    def tests(self) -> tuple[str, ...]:
        """Its tests, by their names in llama-bench's tables."""
        if self.parallel > 1:
            return (ALL,)
        prompt, generated = tests_of(self.prompt, 0), tests_of(0, self.generate)
        return (*prompt, *(at_depth(one, self.depth) for one in generated))

    @property
    def context(self) -> int:
        """Tokens that all requests take at most."""
        each = max(self.prompt, self.depth) + self.generate + _ROOM
        return self.parallel * -(-each // _STEP) * _STEP

    def tokens(self, test: str) -> int:
        """How many tokens a test stands for."""
        if test == ALL:
            return self.parallel * (self.prompt + self.generate)
        return self.prompt if test.startswith("pp") else self.generate


@dataclass(frozen=True)
class Choices:
    """The space of one machine, and the words for its points."""

    space: Space
    engines: Mapping[str, Engine]
    settings: tuple[Setting, ...]
    not_tried: tuple[str, ...]
    rivals: tuple[Point, ...] = ()
    """What users would take instead: every other payload that has devices, with its own `--fit`."""

    def values(self, point: Point) -> dict[str, str]:
        """Dimension -> value."""
        return {one.name: value for one, value in zip(self.space.dimensions, point, strict=True)}

    def engine(self, point: Point) -> Engine:
        """Whose program a point runs."""
        return self.engines[self.values(point)[PAYLOAD]]

    def name(self, point: Point) -> str:
        """A point for people: its payload and what differs from the default."""
        changed = {name: value for name, value in self.space.changes(point).items() if name != PAYLOAD}
        return ", ".join([self.values(point)[PAYLOAD], *(f"{name} {value}" for name, value in changed.items())])

    def lossy(self, point: Point) -> tuple[str, ...]:
        """The arguments of a point that change what the model says."""
        return tuple(
            word
            for one, value in self._chosen(point)
            if one.lossy and value != one.default
            for word in one.bench(value, self.engine(point))
        )

    def environment(self, point: Point) -> dict[str, str]:
        """The variables of a point."""
        own = {one.variable: value for one, value in self._chosen(point) if one.variable and value != one.default}
        return {**self.engine(point).environment, **own}

    def arms(self, point: Point, model: Path, workload: Workload) -> list[Arm]:
        """The commands that measure a point: two where prompt and generation cannot be measured by one."""
        values, engine = self.values(point), self.engine(point)
        threads, batch = values[THREADS], values.get(BATCH_THREADS, values[THREADS])
        environment = {**chosen_environment(os.environ), **self.environment(point)}
        mapped = "NUMA" in values and values.get("load") != "memory"

        def arm(suffix: str, program: str, words: Sequence[str], choice: Sequence[str], tests: Sequence[str]) -> Arm:
            command = (*self._prefix(point), program, *words)
            name = self.name(point) + suffix
            return Arm(name, command, tuple(tests), " ".join(choice), environment, mapped, engine, values)

        if workload.parallel > 1:
            command = self.server(point, model, workload)
            return [arm("", command[0], command[1:], command[3:], workload.tests)]
        own = self._words(point, server=False)
        # A warm-up takes as long as the prompt. Processors need none that is worth it; devices compile at first.
        cold: Sequence[str] = ()
        if not engine.devices():
            cold = (
                ("--no-warmup",) if "--no-warmup" in engine.options else ("-w", "0") if "-w" in engine.options else ()
            )
        after = ("-gp", f"{workload.depth},{workload.generate}")
        if not engine.depths and workload.depth:
            generation: Sequence[str] = ("-n", "0", *(after if workload.generate else ()))
        else:
            generation = ("-n", str(workload.generate), *(("-d", str(workload.depth)) if workload.depth else ()))
        prompt, none = ("-p", str(workload.prompt)), (("-p", "0"), ("-n", "0"))
        deep = bool(workload.depth) and engine.depths
        counted = ("-tgb", f"{threads},{batch}") if threads != batch else ("-t", threads)
        if (threads == batch or "-tgb" in engine.options) and not deep:
            parts = [("", (*prompt, *generation), counted, workload.tests)]
        else:
            first, second = workload.tests[: bool(workload.prompt)], workload.tests[bool(workload.prompt) :]
            parts = [
                (" (prompt)", (*prompt, *none[1]), ("-t", batch), first),
                (" (generation)", (*none[0], *generation), ("-t", threads), second),
            ]
        return [
            arm(
                suffix,
                str(engine.bench),
                ("-m", str(model), *counted, *own, *what, *cold, "-r", "1", "-o", "json"),
                (*counted, *own),
                tests,
            )
            for suffix, what, counted, tests in parts
            if tests
        ]

    def server(self, point: Point, model: Path, workload: Workload) -> tuple[str, ...]:
        """The llama-server command of a point, without what stands before the program."""
        values, engine = self.values(point), self.engine(point)
        program = str(engine.bench.with_name(SERVER))
        threads = ("-t", values[THREADS], "-tb", values.get(BATCH_THREADS, values[THREADS]))
        sizes = ("-c", str(workload.context), "-np", str(workload.parallel))
        return (program, "-m", str(model), *sizes, *threads, *self._words(point, server=True))

    def command(self, point: Point, model: Path, workload: Workload) -> tuple[str, ...]:
        """The whole command of a point's llama-server."""
        return (*self._prefix(point), *self.server(point, model, workload))

    def call(self, point: Point, model: Path, workload: Workload, more: Mapping[str, object]) -> tuple[str, list[str]]:
        """The `Llama(...)` call of a point and `more` keywords, and the names of what it cannot say."""
        values, engine = self.values(point), self.engine(point)
        batch = min(_BATCH, workload.context)
        given: dict[str, object] = {"engine": engine.name}
        if engine.variant:
            given["variant"] = engine.variant
        given |= {"n_ctx": workload.context, "n_batch": batch, "n_threads": int(values[THREADS])}
        if workload.parallel > 1:
            given["n_parallel"] = workload.parallel
        given["n_threads_batch"] = int(values.get(BATCH_THREADS, values[THREADS]))
        lacking = []
        for one, value in self._chosen(point):
            if one.name != "ubatch" and value == one.default and not one.always:
                continue
            if one.python is None or one.prefix.get(value):
                lacking.append(one.name)
            else:
                given |= one.python(value)
        given["n_ubatch"] = min(int(str(given.get("n_ubatch", batch))), int(str(given["n_batch"])))
        words = ", ".join(f"{name}={value!r}" for name, value in {**given, **more}.items())
        return f"Llama({str(model)!r}, {words})", lacking

    def _chosen(self, point: Point) -> list[tuple[Setting, str]]:
        values = self.values(point)
        return [(one, values[one.name]) for one in self.settings]

    def _prefix(self, point: Point) -> tuple[str, ...]:
        return tuple(word for one, value in self._chosen(point) for word in one.prefix.get(value, ()))

    def _words(self, point: Point, *, server: bool) -> tuple[str, ...]:
        engine = self.engine(point)
        return tuple(
            word
            for one, value in self._chosen(point)
            if value != one.default or one.always
            for word in (one.server if server else one.bench)(value, engine)
        )


def choices(
    engines: Sequence[Engine],
    workload: Workload,
    host: Host,
    model: GgufSummary | None = None,
    *,
    cores: int | None = None,
    lossy: bool = False,
) -> Choices:
    """The space of these engines on this machine.

    Args:
        workload: values that change nothing for it are left out.
        model: what its file says; None leaves out what depends on that.
        cores: physical cores (default: this process's).
        lossy: whether settings that cost quality are in it.
    """
    labelled = dict(label_all(engines))
    default = _own_threads(engines[0])
    counts = tuple(map(str, sorted({*thread_counts(cores), default})))
    dimensions = [Dimension(PAYLOAD, tuple(labelled)), Dimension(THREADS, counts, ordered=True)]
    if len(counts) > 1:
        dimensions.append(Dimension(BATCH_THREADS, counts, ordered=True))
    start = [next(iter(labelled)), *([str(default)] * (len(dimensions) - 1))]
    several = {"prompt": workload.prompt, "tokens": workload.context}
    found, reasons = settings(engines, host, model, lossy=lossy, **several)
    dimensions += [Dimension(one.name, one.values, one.ordered) for one in found]
    start += [one.default for one in found]
    point = tuple(start)
    rivals = []
    if any(FIT in one.values for one in found):
        rivals = [(label, *point[1:]) for label, engine in labelled.items() if engine.devices() and label != point[0]]
    fitting = _fitting(found, dimensions, labelled, host, reasons)
    return Choices(Space(tuple(dimensions), point, fitting), labelled, tuple(found), tuple(reasons), tuple(rivals))


def _fitting(
    found: Sequence[Setting],
    dimensions: Sequence[Dimension],
    engines: Mapping[str, Engine],
    host: Host,
    reasons: list[str],
) -> Callable[[Point], bool]:
    """Whether a point is one its engine can do, and that fits into memory."""

    def needs(values: Mapping[str, str]) -> int:
        return sum(one.memory(values[one.name], engines[values[PAYLOAD]]) for one in found)

    def allowed(point: Point) -> bool:
        values = {one.name: value for one, value in zip(dimensions, point, strict=True)}
        engine = engines[values[PAYLOAD]]
        # Neither engine has a plain path for a quantized V.
        if values.get("KV cache", "f16") != "f16" and values.get("flash attention") == "off":
            return False
        if host.memory is not None and needs(values) > host.memory:
            return False
        return all(values[one.name] == one.default or one.has(values[one.name], engine) for one in found)

    if host.memory is not None:
        for one in found:
            large = [
                value
                for value in one.values
                if value != one.default and any(one.memory(value, engine) > host.memory for engine in engines.values())
            ]
            reasons += [f"{one.name} {value}: it does not fit into {host.memory / 2**30:.1f} GiB" for value in large]
    return allowed


def _own_threads(engine: Engine) -> int:
    """How many threads an engine's llama-bench takes where nobody says; it may be few, as on hybrid processors."""
    said = said_by([str(engine.bench), "--help"], plain_environment(engine.environment))[1]
    match = _OWN_THREADS.search(said)
    return max(1, int(match[1])) if match else default_threads()
