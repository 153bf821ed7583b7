"""The scenario ``numa`` as one function: choose what can be compared, measure, answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .engine import Engine
from .keeping import kept
from .machine import MemoryNode, describe
from .numa_modes import MODES, Mode, Scenario
from .numa_table import Answer, Foretold, answer, as_text
from .reporting import Reporter
from .running import Plan, measure_benches
from .store import Store


@dataclass(frozen=True)
class Wishes:
    """What the user asked for."""

    model: Path
    modes: tuple[str, ...] | None
    """``None``: all that the engine has."""
    prompt: int
    generate: int
    rounds: int
    minutes: float | None
    """Begin no further round after so many."""
    threads_per_node: int | None
    fake_nodes: int | None
    foretell: Callable[[Path, Scenario], Foretold] | None = None
    """What else predicts generation, for the figures to stand beside."""
    extra: tuple[str, ...] = ()


def check(wishes: Wishes, nodes: Sequence[MemoryNode]) -> None:
    """What can be said before anything is built.

    Raises:
        UsageError: there is nothing to compare, or no such model or test.
    """
    if not wishes.model.is_file():
        msg = f"there is no file {wishes.model}"
        raise UsageError(msg, next_step="name a GGUF file with --model")
    if not wishes.prompt and not wishes.generate:
        msg = "neither a prompt nor generation is to be measured"
        raise UsageError(msg, next_step="give --prompt or --generate a number above 0")
    if wishes.fake_nodes is not None and len(nodes) > 1:
        msg = f"this machine has {len(nodes)} memory nodes; pretended ones would be measured instead of them"
        raise UsageError(msg, next_step="leave out --fake-nodes")
    if len(nodes) < 2 and wishes.fake_nodes is None:
        msg = "this machine has one memory node that this process may use: there is nothing to compare"
        raise UsageError(
            msg,
            why="isolate, distribute, mirror and split differ only in which node's memory a thread reads",
            next_step="run it on a machine with two sockets, or with --fake-nodes 2, which pretends two nodes over the "
            "one there is: that shows that the modes work and what they cost, never what they gain",
        )


def plan_scenario(wishes: Wishes, nodes: Sequence[MemoryNode], engine: Engine, reporter: Reporter) -> Scenario:
    """The scenario for this machine and engine.

    Raises:
        UsageError: the engine lacks a mode that was named, or fewer than two are left.
    """
    count = wishes.fake_nodes or len(nodes)
    per_node = wishes.threads_per_node or _cores(nodes, count)
    modes: list[Mode] = []
    for name in wishes.modes or tuple(MODES):
        if name in engine.modes:
            modes.append(MODES[name])
        elif wishes.modes is not None:
            msg = f"{engine.wheel} has no --numa {name}"
            raise UsageError(
                msg,
                why=f"its llama-bench knows {', '.join(sorted(engine.modes)) or 'no modes'}",
                next_step="build it with the stack numa-mirror, or name other --modes",
            )
        else:
            reporter.note(f"left out: {engine.wheel} has no --numa {name}")
    if len(modes) < 2:
        msg = "fewer than two modes are left to compare"
        raise UsageError(msg, next_step="name two or more with --modes, or build with the stack numa-mirror")
    return Scenario(
        modes=tuple(modes),
        prompt=wishes.prompt,
        generate=wishes.generate,
        rounds=wishes.rounds,
        threads_per_node=per_node,
        nodes=count,
        fake=wishes.fake_nodes is not None,
        extra=wishes.extra,
    )


def bench_numa(
    engine: Engine,
    wishes: Wishes,
    nodes: tuple[MemoryNode, ...],
    log: Path,
    reporter: Reporter,
    keep: Store | None = None,
) -> Answer:
    """Measure and answer.

    Args:
        keep: where samples go as soon as they are there.

    Raises:
        UsageError: as :func:`plan_scenario`.
        RunFailed: a run failed.
    """
    scenario = plan_scenario(wishes, nodes, engine, reporter)
    # Before the runs: a file that cannot be read is said at once.
    foretold = wishes.foretell(wishes.model, scenario) if wishes.foretell else None
    arms = scenario.arms(engine, wishes.model)
    keeping = kept("numa", wishes.model, arms, keep, describe(nodes))
    plan = Plan(scenario.rounds, wishes.minutes)
    measured = measure_benches(arms, plan, wishes.model, log, reporter, keep=keeping.take)
    found = answer(engine, scenario, measured, describe(nodes), wishes.model.name, foretold)
    facts = {
        "nodes": scenario.nodes,
        "fake_nodes": scenario.fake,
        "threads_per_node": scenario.threads_per_node,
        "local_percent": {line.test: dict(line.local) for line in found.lines},
        "prediction": foretold.as_json() if foretold else None,
    }
    keeping.end(measured, as_text(found), facts=facts, remarks=found.remarks)
    return found


def _cores(nodes: Sequence[MemoryNode], count: int) -> int:
    """Threads for each node: the physical cores of the smallest, shared out if nodes are pretended."""
    smallest = min(node.cores for node in nodes)
    return smallest if count == len(nodes) else max(1, sum(node.cores for node in nodes) // count)
