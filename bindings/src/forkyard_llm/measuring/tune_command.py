"""The command `tune`."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

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
@click.option("--budget", default="10m", show_default=True, metavar="TIME", help="Such as 90s, 10m, 2h.")
@click.option(
    "--payload",
    "payloads",
    multiple=True,
    metavar="WHAT",
    help="An engine, a payload, a wheel or a folder; may be repeated; the first is the default. Default: all.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep what is measured in this file.")
@click.option("--resume", is_flag=True, help="Go on with the file of --out.")
@click.option("--explain", is_flag=True, help="Say which setting mattered.")
@offline_option
@json_option
def tune(
    model: str,
    prompt: int,
    generate: int,
    budget: str,
    payloads: tuple[str, ...],
    out: Path | None,
    resume: bool,
    explain: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Find the fastest settings for MODEL on this machine.

    Engine, threads and more are tried beside the default. What is recommended is surely faster than the default and
    loses nothing, for prompts and for generation, or it is the default.
    """
    match = _BUDGET.fullmatch(budget)
    if match is None:
        msg = f"--budget {budget}: take a number with s, m or h behind it, such as 10m"
        raise UsageError(msg)
    if not prompt and not generate:
        msg = "--prompt 0 --generate 0 leaves nothing to measure"
        raise UsageError(msg)
    from ..cache import cache_dir
    from ..gguf_check import check
    from .finding import each_usable, found
    from .reporting import Console
    from .space import Workload, choices
    from .tune import Journal
    from .tune import tune as run

    path = the_model(model, offline)
    check(path)
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(found(word)) for word in payloads] or each_usable()
        if not engines:
            msg = "there is no payload to tune: install one (forkyard-llm doctor says which fit)"
            raise UsageError(msg)
        space, workload = choices(engines), Workload(prompt, generate)
        identity = {
            "tune": 1,
            "model": [path.name, path.stat().st_size],
            "workload": [prompt, generate],
            "space": [[one.name, *one.values] for one in space.space.dimensions],
            "default": list(space.space.default),
            "payloads": [one.build_key for one in engines],
        }
        log = cache_dir() / "logs" / f"tune-{time.strftime('%Y%m%dT%H%M%S')}.log"
        journal = Journal(out, identity, resume=resume)
        minutes = float(match[1]) * {"s": 1 / 60, "m": 1, "h": 60}[match[2]]
        try:
            tuned = run(space, path, workload, log, Console(error_console), minutes=minutes, journal=journal)
        except KeyboardInterrupt:
            if out is not None:
                error_console.print(f"go on with: --out {out} --resume", soft_wrap=True)
            raise
    if as_json:
        print_json(tuned.as_json())
    else:
        click.echo(tuned.as_text(explain=explain))
