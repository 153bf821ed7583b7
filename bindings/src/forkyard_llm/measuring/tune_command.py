"""The command `tune`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from ..command_options import EXIT_CODES, error_console, json_option, offline_option, the_model
from ..errors import UsageError
from ..text import print_json

__all__ = ["tune"]

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)([smh])")


@click.command(epilog=EXIT_CODES)
@click.argument("model", metavar="MODEL")
@click.option("--prompt", type=click.IntRange(0), default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--generate", type=click.IntRange(0), default=128, show_default=True, help="Tokens of an answer.")
@click.option("--depth", type=click.IntRange(0), default=0, show_default=True, help="Tokens in the cache before.")
@click.option("--parallel", type=click.IntRange(1), default=1, show_default=True, help="Requests at once.")
@click.option("--draft", metavar="NAME_OR_PATH", help="A small model that guesses tokens for MODEL.")
@click.option("--lossy", is_flag=True, help="Try smaller types of the KV cache, too, and measure what they cost.")
@click.option(
    "--max-kld",
    type=click.FloatRange(min=0),
    default=0.02,
    show_default=True,
    help="With --lossy: the largest mean KL divergence from f16 that is accepted.",
)
@click.option(
    "--memory", type=click.FloatRange(min=0, min_open=True), metavar="GIB", help="Use no more. Default: what is free."
)
@click.option("--budget", default="10m", show_default=True, metavar="TIME", help="Such as 90s, 10m, 2h.")
@click.option(
    "--payload",
    "payloads",
    multiple=True,
    metavar="WHAT",
    help="An engine, a payload, a wheel or a folder; may be repeated; the first is the default. Default: all.",
)
@click.option("--resume", is_flag=True, help="Go on where a run of the same model, workload and payloads was ended.")
@click.option("--explain", is_flag=True, help="Say which setting mattered.")
@offline_option
@json_option
def tune(
    model: str,
    prompt: int,
    generate: int,
    depth: int,
    parallel: int,
    draft: str | None,
    lossy: bool,
    max_kld: float,
    memory: float | None,
    budget: str,
    payloads: tuple[str, ...],
    resume: bool,
    explain: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Find the fastest settings for MODEL on this machine.

    Engine, threads and more are tried beside the default, and then ways to guess tokens ahead. What is recommended is
    surely faster than the default and loses nothing, for prompts and for generation, or it is the default.
    """
    match = _BUDGET.fullmatch(budget)
    if match is None:
        msg = f"--budget {budget}: take a number with s, m or h behind it, such as 10m"
        raise UsageError(msg)
    if not prompt and not generate:
        msg = "--prompt 0 --generate 0 leaves nothing to measure"
        raise UsageError(msg)
    if parallel > 1 and not (prompt and generate):
        msg = f"--parallel {parallel}: requests at once have a prompt and an answer; give both a number above 0"
        raise UsageError(msg)
    from filelock import FileLock, Timeout

    from ..cache import cache_dir
    from ..gguf_check import check
    from .engine import SERVER, Engine
    from .finding import each_usable, found
    from .guesses import Guess, guesses
    from .machine import describe
    from .records import Arm, RunInfo, Sample
    from .reporting import Console
    from .settings import Host
    from .space import Workload, choices
    from .store import Store
    from .tune import LENGTHS, Journal, Judge
    from .tune import tune as run

    path = the_model(model, offline)
    summary = check(path)
    drafting = None if draft is None else the_model(draft, offline)
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(found(word)) for word in payloads] or each_usable()
        if not engines:
            msg = "there is no payload to tune: install one (forkyard-llm doctor says which fit)"
            raise UsageError(msg)
        workload = Workload(prompt, generate, depth, parallel)
        host = Host.here(None if memory is None else int(memory * 2**30))
        space = choices(engines, workload, host, summary, lossy=lossy)
        unknown = [f"guessing tokens: {one.recipe} has no {SERVER}" for one in engines if one.program(SERVER) is None]
        if drafting is None:
            unknown.append("guessing by a draft model: none is named (--draft)")
        space = replace(space, not_tried=(*space.not_tried, *unknown))
        identity = {
            "tune": 2,
            "model": [path.name, path.stat().st_size],
            "workload": [prompt, generate, depth, parallel],
            "draft": None if drafting is None else drafting.name,
            "max_kld": max_kld if lossy else None,
            "space": [[one.name, *one.values] for one in space.space.dimensions],
            "default": list(space.space.default),
            "payloads": [one.build_key for one in engines],
        }
        folder = cache_dir()
        log = folder / "logs" / f"tune-{time.strftime('%Y%m%dT%H%M%S')}.log"
        journal = folder / "tune" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FileLock(journal.with_suffix(".lock"), timeout=0))
        except Timeout as error:
            msg = "the same is being tuned by another process: wait for it, as two at once measure each other"
            raise UsageError(msg) from error
        if not resume:
            journal.unlink(missing_ok=True)
        store = stack.enter_context(contextlib.closing(Store()))
        anchors = space.arms(space.space.default, path, workload)
        name = anchors[0].name
        info = RunInfo(uuid.uuid4().hex, "tune", time.time(), path.name, path.stat().st_size, describe(), name)
        store.begin(info, anchors)

        def keep(arms: Sequence[Arm], samples: Sequence[Sample], failed: Mapping[str, str]) -> None:
            store.add_arms(info.id, arms)
            store.add(info.id, samples)
            for arm, why in failed.items():
                store.fail(info.id, arm, why)

        def ways(engine: Engine) -> list[Guess]:
            if engine.program(SERVER) is None:
                return []
            return guesses(engine, summary, drafting, engine.recipe, [], LENGTHS)

        minutes = float(match[1]) * {"s": 1 / 60, "m": 1, "h": 60}[match[2]]
        reporter = Console(error_console)
        try:
            kept = Journal(journal, identity, resume=resume)
            judge = Judge(space, path, workload, log, kept, max_kld) if lossy else None
            limits: dict[str, Any] = {"minutes": minutes, "journal": kept, "keep": keep}
            tuned = run(space, path, workload, log, reporter, judge=judge, guesses=ways, **limits)
        except KeyboardInterrupt:
            reporter.note("the same command with --resume goes on from here")
            raise
        store.finish(info.id)
        reporter.note(f"run {info.id[:8]}: forkyard-llm results show {info.id[:8]}")
    if as_json:
        print_json(tuned.as_json())
    else:
        click.echo(tuned.as_text(explain=explain))
