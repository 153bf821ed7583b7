"""What can be chosen on this machine, and how each engine's programs and the class `Llama` are asked for it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..engines.cores import default_threads
from .child import plain_environment, said_by
from .engine import SERVER, Engine
from .finding import label_all
from .machine import thread_counts
from .records import Arm
from .running import chosen_environment
from .search import Dimension, Point, Space
from .timing import tests_of

__all__ = ["BATCH_THREADS", "PAYLOAD", "THREADS", "Choices", "Workload", "choices"]

PAYLOAD, THREADS, BATCH_THREADS = "payload", "threads", "batch threads"
_FLASH, _LOAD, _NUMA, _UBATCH = "flash attention", "load", "NUMA", "ubatch"
_OWN_THREADS = re.compile(r"-t, --threads <n>\s+\(default: \{?(\d+)")
_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Workload:
    """What the machine is tuned for."""

    prompt: int = 512
    generate: int = 128

    @property
    def tests(self) -> tuple[str, ...]:
        """Its tests, by their names in llama-bench's tables."""
        return tests_of(self.prompt, self.generate)

    def tokens(self, test: str) -> int:
        """How many tokens a test stands for."""
        return self.prompt if test.startswith("pp") else self.generate


@dataclass(frozen=True)
class _Setting:
    """An option of both engines: the flags of llama-bench and llama-server, and the keyword of `Llama`."""

    name: str
    default: str
    values: tuple[str, ...]
    bench: str
    server: str
    keyword: str = ""
    """Empty: `Llama` has none."""
    ordered: bool = False


_SETTINGS = (
    _Setting(_UBATCH, "512", ("64", "128", "256", "512", "1024", "2048"), "-ub", "-ub", "n_ubatch", ordered=True),
    _Setting(_FLASH, "engine's", ("engine's", "off", "on"), "-fa", "-fa", "flash_attn"),
    _Setting(_NUMA, "engine's", ("engine's", "distribute", "isolate"), "--numa", "--numa", "numa"),
    _Setting("poll", "engine's", ("engine's", "0", "100"), "--poll", "--poll"),
    _Setting("run-time repack", "engine's", ("engine's", "1"), "-rtr", "-rtr"),
    _Setting(_LOAD, "engine's", ("engine's", "memory"), "", "", "use_mmap"),
)
"""Beside payload and threads, the most important first."""
_SWITCHES = frozenset({"run-time repack"})
"""What llama-server turns on by the flag alone."""


@dataclass(frozen=True)
class Choices:
    """The space of one machine, and the words for its points."""

    space: Space
    engines: Mapping[str, Engine]
    not_tried: tuple[str, ...]

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

    def arms(self, point: Point, model: Path, workload: Workload) -> list[Arm]:
        """The llama-bench commands that measure a point: two where prompt and generation have their own threads."""
        values, engine = self.values(point), self.engine(point)
        words = [word for one in _SETTINGS for word in _bench_words(one, values.get(one.name, one.default), engine)]
        threads, batch = values[THREADS], values.get(BATCH_THREADS, values[THREADS])
        parts: list[tuple[str, Workload, list[str]]]
        if threads == batch:
            parts = [("", workload, ["-t", threads])]
        elif "-tgb" in engine.options:
            parts = [("", workload, ["-tgb", f"{threads},{batch}"])]
        else:
            parts = [
                (" (prompt)", Workload(workload.prompt, 0), ["-t", batch]),
                (" (generation)", Workload(0, workload.generate), ["-t", threads]),
            ]
        return [
            Arm(
                self.name(point) + suffix,
                (
                    *(str(engine.bench), "-m", str(model), *counted, *words),
                    *("-p", str(part.prompt), "-n", str(part.generate), "-r", "1", "-o", "json"),
                ),
                part.tests,
                " ".join([*counted, *words]),
                environment=chosen_environment(os.environ),
                mapped=_NUMA in values and values.get(_LOAD) != "memory",
                engine=engine,
                values=values,
            )
            for suffix, part, counted in parts
            if part.tests
        ]

    def server(self, point: Point, model: Path, context: int) -> tuple[str, ...]:
        """The llama-server command of a point."""
        values, engine = self.values(point), self.engine(point)
        words = [word for one in _SETTINGS for word in _server_words(one, values.get(one.name, one.default), engine)]
        program = str(engine.bench.with_name(SERVER))
        threads = ("-t", values[THREADS], "-tb", values.get(BATCH_THREADS, values[THREADS]))
        return (program, "-m", str(model), "-c", str(context), "-np", "1", *threads, *words)

    def call(self, point: Point, model: Path, context: int) -> tuple[str, list[str]]:
        """The `Llama(...)` call of a point, and the names of what it cannot say."""
        values, engine = self.values(point), self.engine(point)
        batch = min(2048, context)
        given: dict[str, object] = {"engine": engine.name}
        if engine.variant:
            given["variant"] = engine.variant
        given |= {"n_ctx": context, "n_batch": batch, "n_threads": int(values[THREADS])}
        given["n_threads_batch"] = int(values.get(BATCH_THREADS, values[THREADS]))
        lacking = []
        for one in _SETTINGS:
            value = values.get(one.name, one.default)
            if one.name == _UBATCH:
                given[one.keyword] = min(int(value), batch)
            elif value == one.default:
                continue
            elif not one.keyword:
                lacking.append(one.name)
            elif one.name == _LOAD:
                given[one.keyword] = False
            else:
                given[one.keyword] = {"on": True, "off": False}.get(value, value)
        words = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"Llama({str(model)!r}, {words})", lacking


def choices(
    engines: Sequence[Engine], workload: Workload, *, nodes: int | None = None, cores: int | None = None
) -> Choices:
    """The space of these engines on this machine.

    Args:
        workload: values that change nothing for it are left out.
        nodes: NUMA nodes (default: this machine's).
        cores: physical cores (default: this process's).
    """
    labelled = dict(label_all(engines))
    nodes = len(list(_NODES.glob("node[0-9]*"))) if nodes is None else nodes
    default = _own_threads(engines[0])
    counts = tuple(map(str, sorted({*thread_counts(cores), default})))
    dimensions = [Dimension(PAYLOAD, tuple(labelled)), Dimension(THREADS, counts, ordered=True)]
    if len(counts) > 1:
        dimensions.append(Dimension(BATCH_THREADS, counts, ordered=True))
    not_tried = [
        "KV cache types: they cost quality",
        "GPU layers, split modes, expert placement, --fit: only settings of the processor are tuned",
        "CPU masks, batch (-b), -mla and -fmoe of ik_llama.cpp, speculative decoding, expert caches",
    ]
    start = [next(iter(labelled)), *([str(default)] * (len(dimensions) - 1))]
    for one in _SETTINGS:
        if one.name == _UBATCH:
            # What is larger than the prompt computes it at once, as the smallest of them does.
            useful = [value for value in one.values if int(value) // 2 < workload.prompt or value == one.default]
            one = replace(one, values=tuple(useful))
        having = [label for label, engine in labelled.items() if not one.bench or one.bench in engine.options]
        if one.name == _NUMA and nodes < 2:
            not_tried.append("NUMA modes: this machine has one node")
        elif not having:
            not_tried.append(f"{one.name}: no payload's llama-bench has {one.bench}")
        else:
            not_tried += [f"{one.name}: {label} has no {one.bench}" for label in labelled if label not in having]
            dimensions.append(Dimension(one.name, one.values, one.ordered))
            start.append(one.default)
    return Choices(
        Space(tuple(dimensions), tuple(start), _allowed(tuple(dimensions), labelled)), labelled, tuple(not_tried)
    )


def _allowed(dimensions: Sequence[Dimension], engines: Mapping[str, Engine]) -> Callable[[Point], bool]:
    flags = {one.name: one.bench for one in _SETTINGS if one.bench}
    defaults = {one.name: one.default for one in _SETTINGS}

    def allowed(point: Point) -> bool:
        values = {one.name: value for one, value in zip(dimensions, point, strict=True)}
        options = engines[values[PAYLOAD]].options
        return all(value == defaults[name] or flags[name] in options for name, value in values.items() if name in flags)

    return allowed


def _own_threads(engine: Engine) -> int:
    """How many threads an engine's llama-bench takes where nobody says; it may be few, as on hybrid processors."""
    said = said_by([str(engine.bench), "--help"], plain_environment(engine.environment))[1]
    match = _OWN_THREADS.search(said)
    return max(1, int(match[1])) if match else default_threads()


def _bench_words(one: _Setting, value: str, engine: Engine) -> tuple[str, ...]:
    if value == one.default:
        return ()
    if one.name == _LOAD:
        return engine.load[False]
    if one.name == _FLASH:
        on = engine.flash_attention
        return on if value == "on" else (on[0], "off" if on[1] == "on" else "0")
    return (one.bench, value)


def _server_words(one: _Setting, value: str, engine: Engine) -> tuple[str, ...]:
    if value == one.default:
        return ()
    if one.name == _LOAD:
        return ("--load-mode", "none") if engine.reads("--load-mode", SERVER) else ("--no-mmap",)
    return (one.server,) if one.name in _SWITCHES else (one.server, value)
