"""The scenario ``split`` as one function: how the engines share a model between devices, and with which KV cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UsageError
from .child import RunFailed
from .dialect import Device, cause, read_devices
from .engine import Engine
from .keeping import kept
from .loopback import lent_devices
from .machine import MemoryNode, describe
from .records import Arm
from .reporting import Reporter
from .running import Plan, chosen_environment, measure_benches, run_arm
from .split_table import Answer, Row, answer, as_text
from .store import Store
from .subject import Subject, labelled, told
from .timing import Timing

MODES = ("layer", "row", "tensor", "graph")
"""Words after ``--split-mode``, in the order of the table's rows."""
CACHE_TYPES = ("f16", "q8_0", "q4_0")
DEPTHS = (0, 8192, 32768)
_ALL_LAYERS = "999"
_TRIAL = Timing(prompt=8, generate=1, depths=(0,))
"""Tokens of the prompt and of the generation that show whether an arm works at all."""
_CHANGED = "changing split mode to 'layer'"
"""What ik_llama.cpp says when it does something else than it was asked."""


@dataclass(frozen=True)
class Wishes:
    """What the user asked for."""

    model: Path
    modes: tuple[str, ...] | None
    """``None``: all that each engine has."""
    cache_types: tuple[str, ...]
    timing: Timing
    rounds: int
    minutes: float | None
    """Begin no further round after so many."""
    devices: tuple[str, ...] = ()
    """Names of the engine's devices; none: those it chooses."""
    rpc_devices: int | None = None
    """Pretend so many devices by RPC servers on this machine."""
    extra: tuple[str, ...] = ()


def check(wishes: Wishes) -> None:
    """What can be said before anything is built.

    Raises:
        UsageError: no such model or test, or wishes that exclude each other.
    """
    if not wishes.model.is_file():
        msg = f"there is no file {wishes.model}"
        raise UsageError(msg, next_step="name a GGUF file with --model")
    if not wishes.cache_types:
        msg = "no KV type is named"
        raise UsageError(msg, next_step="give --cache-types one or more, separated by commas")
    if not wishes.timing.tests:
        msg = "neither a prompt nor generation is to be measured"
        raise UsageError(msg, next_step="give --prompt or --generate a number above 0")
    if wishes.devices and wishes.rpc_devices:
        msg = "--devices chooses among the machine's devices, --rpc-devices pretends others"
        raise UsageError(msg, next_step="leave out one of them")
    if len(wishes.devices) == 1:
        msg = f"{wishes.devices[0]} alone cannot share a model"
        raise UsageError(msg, next_step="name two or more devices, separated by commas")


def bench_split(
    engines: Sequence[Engine],
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
        UsageError: an engine cannot do what was named, or there is nothing to compare.
        RunFailed: an engine does not work with the model at all, or every arm failed.
    """
    environment = chosen_environment(os.environ)
    threads = max(1, sum(node.cores for node in nodes) // max(1, wishes.rpc_devices or 1))
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        rows: list[Row] = []
        for subject in labelled(engines):
            words = _device_words(stack, subject.label, subject.engine, wishes, threads, log)
            rows += _rows(replace(subject, words=words), wishes, notes)
        _refuse_what_none_has(rows, wishes, notes)
        rows = _on_devices(rows, wishes, environment, log, reporter)
        arms = {row: _arm(row, wishes, environment) for row in rows}
        refused = _try_all(arms, wishes, environment, log, reporter)
        working = tuple(arm for row, arm in arms.items() if row not in refused)
        if len(working) < 2:
            msg = "fewer than two ways to share the model work here: there is nothing to compare"
            raise UsageError(
                msg,
                why="; ".join(f"{row.name}: {why}" for row, why in refused.items()) or None,
                next_step="name other --modes or --cache-types",
            )
        machine = {**describe(nodes), "environment": environment}
        keeping = kept("split", wishes.model, tuple(arms.values()), keep, machine)
        plan = Plan(wishes.rounds, wishes.minutes, tolerant=True)
        measured = measure_benches(working, plan, wishes.model, log, reporter, keep=keeping.take)
        refused |= {
            row: told(row.subject, measured.failed[row.name], wishes.model)
            for row in rows
            if row.name in measured.failed
        }
        found = answer(
            rows,
            refused,
            measured,
            machine=machine,
            model=wishes.model.name,
            tests=wishes.timing.tests,
            loopback=bool(wishes.rpc_devices),
            notes=notes,
        )
        devices = {one.label: [device.as_json() for device in one.devices] for one in found.subjects}
        keeping.end(
            measured,
            as_text(found),
            facts={"devices": devices, "rpc_loopback": found.loopback},
            remarks=found.remarks,
            failed={row.name: why for row, why in refused.items()},
        )
    return found


def _device_words(
    stack: contextlib.ExitStack, label: str, engine: Engine, wishes: Wishes, threads: int, log: Path
) -> tuple[str, ...]:
    """The arguments that name the devices, pretended ones started."""
    if wishes.devices:
        if not engine.chooses_devices:
            msg = f"the llama-bench of {label} takes no names of devices"
            raise UsageError(msg, next_step="leave out --devices and choose with CUDA_VISIBLE_DEVICES")
        return ("-dev", "/".join(wishes.devices))
    if not wishes.rpc_devices:
        return ()
    if engine.rpc_server is None or not engine.chooses_devices:
        msg = f"{label} cannot pretend devices"
        raise UsageError(
            msg,
            why="its payload carries no RPC server"
            if engine.rpc_server is None
            else "its RPC servers do not work beside each other",
            next_step="measure llama.cpp alone, with --variant rpc or a wheel of it, or leave out --rpc-devices",
        )
    log = log.with_stem(f"{log.stem}-{label.replace(' ', '-')}")
    addresses = stack.enter_context(lent_devices(engine.rpc_server, wishes.rpc_devices, threads, log))
    # -dev knows the servers' devices only after --rpc.
    return ("--rpc", ",".join(addresses), "-dev", "/".join(f"RPC{number}" for number in range(len(addresses))))


def _rows(subject: Subject, wishes: Wishes, notes: list[str]) -> Iterator[Row]:
    """What of the wishes the engine's llama-bench has words for."""
    engine = subject.engine
    known = [word for word in wishes.cache_types if engine.takes("-ctk", word, "-ctv", word)]
    notes += [f"{subject.label} has no KV type {word}" for word in wishes.cache_types if word not in known]
    absent = wishes.timing.absent(subject.engine, subject.label)
    if absent.keys() >= set(wishes.timing.tests):
        notes.append(f"{subject.label} is left out: {next(iter(absent.values()))}")
        return
    for mode in wishes.modes or MODES:
        if mode in engine.splits:
            yield from (Row(subject, mode, word, absent) for word in known)
        elif wishes.modes is not None:
            notes.append(f"{subject.label} has no --split-mode {mode}")


def _refuse_what_none_has(rows: Sequence[Row], wishes: Wishes, notes: Sequence[str]) -> None:
    """Refuse a word that was named and that no engine knows."""
    if rows:
        lacking = [word for word in wishes.modes or () if word not in {row.mode for row in rows}]
        lacking += [word for word in wishes.cache_types if word not in {row.cache_type for row in rows}]
        if not lacking:
            return
    msg = f"no engine that is measured has {lacking[0]}" if rows else "no engine can measure what was asked"
    raise UsageError(msg, why="; ".join(notes) or None, next_step="name other --modes, --cache-types or --engine")


def _command(row: Row, wishes: Wishes, timing: Timing) -> tuple[str, ...]:
    engine = row.subject.engine
    return (
        str(engine.bench),
        *("-m", str(wishes.model)),
        *row.subject.words,
        *("-ngl", _ALL_LAYERS),
        *engine.flash_attention,
        *row.choice,
        *timing.words(engine),
        *("-r", "1"),
        *wishes.extra,
        *("-o", "json"),
    )


def _arm(row: Row, wishes: Wishes, environment: Mapping[str, str]) -> Arm:
    return Arm(
        name=row.name,
        command=_command(row, wishes, wishes.timing),
        tests=tuple(test for test in wishes.timing.tests if test not in row.absent),
        choice=" ".join([row.subject.label, *row.choice]),
        environment=environment,
        engine=row.subject.engine,
        values={**row.subject.values, "split mode": row.mode, "cache": row.cache_type},
    )


def _trial(row: Row, wishes: Wishes, environment: Mapping[str, str]) -> Arm:
    """A short run that says very much."""
    command = (*_command(row, wishes, _TRIAL), "-v")
    return replace(_arm(row, wishes, environment), command=command, tests=_TRIAL.tests)


def _on_devices(
    rows: Sequence[Row], wishes: Wishes, environment: Mapping[str, str], log: Path, reporter: Reporter
) -> list[Row]:
    """The rows with the devices of their engines: those that it chooses for layer split, in all modes.

    Left to itself, llama.cpp would add a graphics unit in the processor to tensor split alone.
    """
    subjects = {}
    for one in dict.fromkeys(row.subject for row in rows):
        devices = _devices(one, wishes, environment, log, reporter)
        named = ("-dev", "/".join(device.name for device in devices)) if one.engine.chooses_devices else ()
        subjects[one] = replace(one, words=one.words or named, devices=devices)
    return [replace(row, subject=subjects[row.subject]) for row in rows]


def _devices(
    subject: Subject, wishes: Wishes, environment: Mapping[str, str], log: Path, reporter: Reporter
) -> tuple[Device, ...]:
    """The devices that the engine shares the model between.

    Raises:
        UsageError: there are fewer than two.
        RunFailed: the engine cannot load the model.
    """
    lines: list[str] = []
    with reporter.step(f"looking for the devices of {subject.label}"):
        trial = _trial(Row(subject, "layer", "f16", {}), wishes, environment)
        run_arm(trial, wishes.model, log, lines.append)
    found = read_devices(lines)
    if len(found) > 1:
        return found
    engine = subject.engine
    msg = f"{subject.label} has {'one device' if found else 'no device'} here, and sharing a model needs two"
    missing = f"{', '.join(engine.missing)} was not found" if engine.missing and not found else None
    one = f"it uses {found[0].shown}" if found else "it computes on the CPU"
    raise UsageError(
        msg,
        why=missing or one,
        next_step="run it where a payload for GPUs finds two of them, or with --rpc-devices 3, which pretends devices "
        "by RPC servers: that shows that the modes work, never what they gain",
    )


def _try_all(
    arms: Mapping[Row, Arm], wishes: Wishes, environment: Mapping[str, str], log: Path, reporter: Reporter
) -> dict[Row, str]:
    """Run every arm for a moment; those that do not work, with the engine's reason."""
    refused = {}
    with reporter.step("trying", "arms") as step:
        for number, row in enumerate(arms):
            step.update(number, len(arms), row.name)
            lines: list[str] = []
            try:
                run_arm(_trial(row, wishes, environment), wishes.model, log, lines.append)
            except RunFailed as error:
                why = (error.why).partition(":")[0]
                refused[row] = told(row.subject, f"{why}: {cause(lines)}", wishes.model)
            else:
                if any(_CHANGED in line for line in lines):
                    refused[row] = f"the engine changes it to layer for this model: {cause(lines)}"
            if row in refused:
                reporter.warn(f"{row.name} does not work: {refused[row]}")
        step.update(len(arms), len(arms))
    return refused
