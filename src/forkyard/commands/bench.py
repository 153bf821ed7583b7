"""``forkyard bench``: measure built engines with their own llama-bench."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import click

from forkyard.benching.engine import unpacked
from forkyard.benching.nodes import read_nodes
from forkyard.benching.numa import Wishes, bench_numa, check
from forkyard.benching.scenario import MODES
from forkyard.benching.table import as_text
from forkyard.cache import Cache, write_atomic
from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.errors import UsageError
from forkyard.pullrequest.evidence.builds import host_variant
from forkyard.recipes import FAMILIES
from forkyard.workshop import Workshop


@click.group()
def bench() -> None:
    """Measure a built engine with its own llama-bench: arms in turn, medians with intervals, ties called ties."""


@bench.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--model", required=True, type=click.Path(path_type=Path), help="A GGUF file; the first of its parts.")
@click.option("--engine", type=click.Choice(FAMILIES), default="llama.cpp", show_default=True, help="Which engine.")
@click.option("--variant", help="Which build of it (default: the best usual variant this machine runs).")
@click.option("--wheel", type=click.Path(path_type=Path), help="Measure this payload wheel; build nothing.")
@click.option("--modes", help="Comma-separated, of isolate, distribute, mirror, split (default: all the engine has).")
@click.option("--threads-per-node", type=click.IntRange(1), help="Default: the physical cores of a node.")
@click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Rounds of all modes.")
@click.option("--prompt", type=click.IntRange(0), default=512, show_default=True, help="Tokens of the prompt; 0: none.")
@click.option("--generate", type=click.IntRange(0), default=128, show_default=True, help="Tokens generated; 0: none.")
@click.option("--fake-nodes", type=click.IntRange(2, 16), help="Pretend so many nodes on a machine with one.")
@click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    help="GB/s that one node's threads read from its own memory; adds what the model of bytes and barriers predicts.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the answer as JSON to this file, too.")
@sources
@answers
def numa(
    console: Console,
    arguments: tuple[str, ...],
    model: Path,
    engine: str,
    variant: str | None,
    wheel: Path | None,
    modes: str | None,
    threads_per_node: int | None,
    repetitions: int,
    prompt: int,
    generate: int,
    fake_nodes: int | None,
    bandwidth: float | None,
    out: Path | None,
    source: str | None,
    offline: bool,
) -> None:
    """Compare the modes of --numa on this machine, for token generation and prompt processing.

    ARGUMENTS after -- go to llama-bench in every mode, as in: -- -b 16 -ub 16 -rtr 1
    """
    if out is not None and out.is_dir():
        msg = f"{out} is a folder"
        raise UsageError(msg, next_step="give --out the name of a file")
    wishes = Wishes(
        model=model,
        modes=_modes(modes),
        prompt=prompt,
        generate=generate,
        rounds=repetitions,
        threads_per_node=threads_per_node,
        fake_nodes=fake_nodes,
        bandwidth=bandwidth * 1e9 if bandwidth is not None else None,
        extra=arguments,
    )
    nodes = read_nodes()
    check(wishes, nodes)
    cache = Cache.default()
    cache.prepare()
    payload = wheel or _built(console, engine, variant, source=source, offline=offline)
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    log = cache.logs / f"bench-numa-{moment}.log"
    with unpacked(payload, cache.scratch) as found:
        answer = bench_numa(found, wishes, nodes, log, console)
    document = answer.as_json()
    if out is not None:
        write_atomic(out, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())
    console.note(f"log: {log}")
    console.result(document, as_text(answer))


def _modes(text: str | None) -> tuple[str, ...] | None:
    """The modes a ``--modes`` option names, each once, in the order of the table."""
    if text is None:
        return None
    named = {word.strip() for word in text.split(",") if word.strip()}
    unknown = sorted(named - set(MODES))
    if unknown:
        msg = f"there is no mode {unknown[0]!r}"
        raise UsageError(msg, next_step=f"choose from {', '.join(MODES)}")
    if len(named) < 2:
        msg = "one mode alone cannot be compared"
        raise UsageError(msg, next_step="name two or more, separated by commas")
    return tuple(name for name in MODES if name in named)


def _built(console: Console, engine: str, variant: str | None, *, source: str | None, offline: bool) -> Path:
    """The engine's wheel, built if that was not done before."""
    shop = Workshop.open()
    chosen = variant or host_variant(shop.variants, engine, shop.toolchain)
    plans, _ = shop.plans(chosen, (engine,))
    (built,) = shop.build(plans, console, source=source, offline=offline)
    return built.wheel
