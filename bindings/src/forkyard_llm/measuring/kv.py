"""The scenario ``kv`` as one function: what each KV cache costs in memory, speed and quality."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .child import RunFailed
from .engine import Engine
from .keeping import kept
from .kv_table import Answer, Cache, Row, answer, as_text
from .machine import MemoryNode, describe
from .quality import Quality, Reading
from .records import Arm, Sample
from .reporting import Reporter
from .running import Measured, Plan, chosen_environment, measure_benches
from .store import Store
from .subject import Subject, labelled, told
from .timing import Timing

CACHES = (
    *("f16", "q8_0", "q4_0", "q4_0:centers", "q4_0:hadamard", "ftq4", "ftq4:hadamard", "ftq4/ftq3"),
    *("ftq3", "ftq3:hadamard", "ftq4+128", "ftq2"),
)
"""What is measured unless others are named, of those an engine has."""
FEWEST_TOKENS = 100
"""Of which llama-perplexity computes statistics."""
_WORD = re.compile(r"(?P<k>\w+)(?:/(?P<v>\w+))?(?:\+(?P<tail>[1-9]\d{0,5}))?(?::(?P<way>\w+))?", re.ASCII)
_WAYS = {"": (), "centers": ("--kv-center", "on"), "hadamard": ("-khad", "-vhad")}
"""What may follow a colon: arguments for both programs."""


@dataclass(frozen=True)
class Wishes:
    """What the user asked for."""

    model: Path
    caches: tuple[str, ...] | None
    """``None``: :data:`CACHES`, of those each engine has."""
    timing: Timing
    """Without tests, no speed is measured."""
    rounds: int
    minutes: float | None
    """Begin no further round after so many."""
    text: Path
    """What is read for the quality."""
    context: int
    """Tokens of a window of it."""
    windows: int
    gpu_layers: int
    extra: tuple[str, ...] = ()


def read_cache(word: str) -> Cache:
    """What ``K[/V][+TAIL][:WAY]`` means.

    Raises:
        UsageError: the word means nothing.
    """
    match = _WORD.fullmatch(word)
    if match is None or (match["way"] or "") not in _WAYS:
        msg = f"{word!r} is no KV cache"
        raise UsageError(
            msg,
            next_step="write K, K/V, K+TAIL or K/V+TAIL, and :centers or :hadamard behind it, as in q8_0,ftq4/ftq3+128",
        )
    return Cache(word, match["k"], match["v"] or match["k"], int(match["tail"] or 0), _WAYS[match["way"] or ""])


def check(wishes: Wishes) -> None:
    """What can be said before anything is built.

    Raises:
        UsageError: no such model, text or cache, or too little of the text.
    """
    for file, option in ((wishes.model, "a GGUF file with --model"), (wishes.text, "a text with --text")):
        if not file.is_file():
            msg = f"there is no file {file}"
            raise UsageError(msg, next_step=f"name {option}")
    if wishes.caches == ():
        msg = "no KV cache is named"
        raise UsageError(msg, next_step="give --caches one or more, separated by commas")
    for word in wishes.caches or ():
        read_cache(word)
    # llama-perplexity judges the second half of each window, and says nothing of fewer tokens.
    judged = wishes.windows * (wishes.context - wishes.context // 2 - 1)
    if judged < FEWEST_TOKENS:
        msg = f"{judged} tokens are too few to judge quality by"
        raise UsageError(msg, next_step=f"give --context or --windows more: at least {FEWEST_TOKENS} tokens")


def bench_kv(
    engines: Sequence[Engine],
    wishes: Wishes,
    nodes: tuple[MemoryNode, ...],
    scratch: Path,
    log: Path,
    reporter: Reporter,
    keep: Store | None = None,
) -> Answer:
    """Measure and answer. The logits that quality is compared with lie in ``scratch`` meanwhile.

    Args:
        keep: where samples go as soon as they are there.

    Raises:
        UsageError: no engine has what was named.
        RunFailed: an engine does not work with the model at all.
    """
    environment = chosen_environment(os.environ)
    notes: list[str] = []
    subjects = list(labelled(engines))
    rows = [row for subject in subjects for row in _rows(subject, wishes, notes)]
    _refuse_what_none_has(rows, wishes, notes)
    reading = Reading(wishes.model, wishes.text, wishes.context, wishes.windows, wishes.gpu_layers, environment, log)
    qualities: dict[Row, Quality] = {}
    refused: dict[Row, str] = {}
    with reporter.step("comparing with f16", "caches") as step:
        done = 0
        for subject in subjects:
            with tempfile.TemporaryDirectory(prefix="logits-", dir=scratch) as name:
                folder = Path(name)
                step.update(done, len(rows), f"{subject.label}, f16")
                base = reading.keep(subject.engine, folder / "f16")
                for row in (row for row in rows if row.subject is subject):
                    step.update(done, len(rows), row.name)
                    done += 1
                    try:
                        words = row.cache.words
                        plain = words == read_cache("f16").words
                        qualities[row] = base if plain else reading.compare(subject.engine, words, folder / "f16")
                    except RunFailed as error:
                        refused[row] = told(subject, error.why, wishes.model)
                        reporter.warn(f"{row.name} does not work: {refused[row]}")
        step.update(done, done)
    arms = [_arm(row, wishes, environment) for row in rows]
    machine = {**describe(nodes), "environment": environment}
    keeping = kept("kv", wishes.model, arms, keep, machine)
    timed = [arm for row, arm in zip(rows, arms, strict=True) if arm.tests and row not in refused]
    measured = _speeds(timed, wishes, log, reporter, keeping.take)
    refused |= {
        row: told(row.subject, measured.failed[row.name], wishes.model) for row in rows if row.name in measured.failed
    }
    found = answer(
        rows,
        qualities,
        refused,
        measured,
        machine=machine,
        model=wishes.model.name,
        text=wishes.text.name,
        context=wishes.context,
        windows=wishes.windows,
        tests=wishes.timing.tests,
        notes=notes,
    )
    facts = {
        "text": found.text,
        "context": found.context,
        "windows": found.windows,
        "kld": {row.name: {"mean": one.mean, "mib": one.mib} for row, one in qualities.items()},
        "quality": {row.name: one.as_json() for row, one in qualities.items()},
    }
    failed = {row.name: why for row, why in refused.items()}
    keeping.end(measured, as_text(found), facts=facts, remarks=found.remarks, failed=failed)
    return found


def _rows(subject: Subject, wishes: Wishes, notes: list[str]) -> Iterator[Row]:
    """What of the wishes the engine has."""
    absent = wishes.timing.absent(subject.engine, subject.label)
    for word in wishes.caches or CACHES:
        cache = read_cache(word)
        if not subject.engine.takes(*cache.plain):
            notes.append(f"{subject.label} has no KV cache {word}")
        elif cache.way and not subject.engine.reads(cache.way[0]):
            notes.append(f"{subject.label} has no {cache.way[0]}")
        elif cache.way and not subject.engine.takes(*cache.words):
            why = f"the llama-bench of {subject.label} has no {cache.way[0]}"
            yield Row(subject, cache, dict.fromkeys(wishes.timing.tests, why))
        else:
            yield Row(subject, cache, absent)


def _refuse_what_none_has(rows: Sequence[Row], wishes: Wishes, notes: Sequence[str]) -> None:
    """Refuse a word that was named and that no engine knows."""
    lacking = [word for word in wishes.caches or () if word not in {row.cache.name for row in rows}]
    if lacking or not rows:
        msg = f"no engine that is measured has the KV cache {lacking[0]}" if lacking else "no engine has any KV cache"
        raise UsageError(msg, why="; ".join(notes) or None, next_step="name other --caches or --engine")


def _speeds(
    arms: Sequence[Arm], wishes: Wishes, log: Path, reporter: Reporter, keep: Callable[[Sequence[Sample]], None]
) -> Measured:
    if not arms:
        return Measured()
    plan = Plan(wishes.rounds, wishes.minutes, tolerant=True)
    try:
        return measure_benches(arms, plan, wishes.model, log, reporter, keep=keep)
    except RunFailed as error:
        # None can be timed. What is known of their quality took longer, and stays.
        reporter.warn(f"no cache could be timed: {error.why}")
        return Measured(failed=dict.fromkeys((arm.name for arm in arms), error.why))


def _arm(row: Row, wishes: Wishes, environment: Mapping[str, str]) -> Arm:
    engine = row.subject.engine
    command = (
        *(str(engine.bench), "-m", str(wishes.model)),
        *("-ngl", str(wishes.gpu_layers)),
        *engine.flash_attention,
        *row.cache.words,
        *wishes.timing.words(engine),
        *("-r", "1"),
        *wishes.extra,
        *("-o", "json"),
    )
    return Arm(
        name=row.name,
        command=command,
        tests=tuple(test for test in wishes.timing.tests if test not in row.absent),
        choice=f"{row.subject.label} {' '.join(row.cache.words)}",
        environment=environment,
        engine=engine,
        values={**row.subject.values, "cache": row.cache.name},
    )
