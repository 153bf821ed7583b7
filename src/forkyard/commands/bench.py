"""``forkyard bench``: measure built engines with their own llama-bench."""

from __future__ import annotations

import contextlib
import datetime
import json
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from forkyard_llm.errors import ForkyardLlmError
from forkyard_llm.errors import UsageError as Unfit
from forkyard_llm.measuring import kv as kv_scenario
from forkyard_llm.measuring import kv_table
from forkyard_llm.measuring import numa as numa_scenario
from forkyard_llm.measuring import split as split_scenario
from forkyard_llm.measuring.child import RunFailed
from forkyard_llm.measuring.machine import read_nodes
from forkyard_llm.measuring.numa_modes import MODES
from forkyard_llm.measuring.numa_table import as_text
from forkyard_llm.measuring.quality import sample_text
from forkyard_llm.measuring.split_table import as_text as split_as_text
from forkyard_llm.measuring.store import Store
from forkyard_llm.measuring.timing import Timing

from forkyard.benching.engine import unpacked
from forkyard.benching.foretelling import foretell
from forkyard.cache import Cache, write_atomic
from forkyard.commands.answering import answers, sources, words_of
from forkyard.console import Console
from forkyard.errors import UsageError
from forkyard.recipes import FAMILIES, supported
from forkyard.scratch import owned_folder
from forkyard.verifying import default_variant
from forkyard.workshop import Workshop

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)
_RPC = "rpc"
"""The variant whose devices are RPC servers."""


@click.group()
def bench() -> None:
    """Measure a built engine with its own llama-bench: arms in turn, medians with intervals, ties called ties."""


def measuring(function: _F) -> _F:
    """The options that all scenarios share; in the order of the help."""
    options = (
        click.option("--model", required=True, type=_FILE, help="A GGUF file; the first of its parts."),
        click.option("--variant", help="Which build of it (default: the best usual variant this machine runs)."),
        click.option("--repetitions", type=click.IntRange(1), default=6, show_default=True, help="Rounds of all arms."),
        click.option("--minutes", type=click.FloatRange(min=0), help="Begin no further round after so many."),
        click.option(
            "--prompt", type=click.IntRange(0), default=512, show_default=True, help="Tokens of the prompt; 0: none."
        ),
        click.option(
            "--generate", type=click.IntRange(0), default=128, show_default=True, help="Tokens generated; 0: none."
        ),
        click.option("--out", type=_FILE, help="Write the answer as JSON to this file, too."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def several(function: _F) -> _F:
    """The options of scenarios that measure several engines at once."""
    wheel = click.option(
        "--wheel", "wheels", multiple=True, type=_FILE, help="Measure this payload wheel, too; build nothing."
    )
    engine = click.option(
        "--engine", "engines", multiple=True, type=click.Choice(FAMILIES), help="Default: all with the variant."
    )
    return engine(wheel(function))


@bench.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@measuring
@click.option("--engine", type=click.Choice(FAMILIES), default="llama.cpp", show_default=True, help="Which engine.")
@click.option("--wheel", type=_FILE, help="Measure this payload wheel; build nothing.")
@click.option("--modes", help="Comma-separated, of isolate, distribute, mirror, split (default: all the engine has).")
@click.option("--threads-per-node", type=click.IntRange(1), help="Default: the physical cores of a node.")
@click.option("--fake-nodes", type=click.IntRange(2, 16), help="Pretend so many nodes on a machine with one.")
@click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    help="GB/s that one node's threads read from its own memory; adds what the model of bytes and barriers predicts.",
)
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
    minutes: float | None,
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
    check_out(out)
    wishes = numa_scenario.Wishes(
        model=model,
        modes=_modes(modes),
        prompt=prompt,
        generate=generate,
        rounds=repetitions,
        minutes=minutes,
        threads_per_node=threads_per_node,
        fake_nodes=fake_nodes,
        extra=arguments,
        foretell=None if bandwidth is None else lambda file, found: foretell(file, found, bandwidth * 1e9),
    )
    nodes = read_nodes()
    with explained_here():
        numa_scenario.check(wishes, nodes)
    cache = Cache.default()
    cache.prepare()
    payload = wheel or built(console, (engine,), variant, source=source, offline=offline)[0]
    log = log_of(cache, "numa")
    with unpacked(payload, cache.scratch, installed(cache)) as found, explained_here(), store() as keep:
        answer = numa_scenario.bench_numa(found, wishes, nodes, log, console, keep)
    finish(console, answer.as_json(), as_text(answer), out, log)


@bench.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@measuring
@several
@click.option("--modes", help="Comma-separated, of layer, row, tensor, graph (default: all that each engine has).")
@click.option(
    "--cache-types",
    default=",".join(split_scenario.CACHE_TYPES),
    show_default=True,
    help="Comma-separated KV types, of those an engine knows.",
)
@click.option(
    "--depths",
    default=",".join(map(str, split_scenario.DEPTHS)),
    show_default=True,
    help="Comma-separated numbers of tokens in the KV cache before a test begins.",
)
@click.option("--devices", help="Comma-separated names such as CUDA0,CUDA1 (default: those the engine chooses).")
@click.option(
    "--rpc-devices",
    type=click.IntRange(2, 16),
    help="Pretend so many devices by RPC servers on this machine; with --variant rpc unless another is named.",
)
@sources
@answers
def split(
    console: Console,
    arguments: tuple[str, ...],
    model: Path,
    engines: tuple[str, ...],
    variant: str | None,
    wheels: tuple[Path, ...],
    modes: str | None,
    cache_types: str,
    depths: str,
    devices: str | None,
    rpc_devices: int | None,
    repetitions: int,
    minutes: float | None,
    prompt: int,
    generate: int,
    out: Path | None,
    source: str | None,
    offline: bool,
) -> None:
    """Compare ways to share a model between devices, with several KV types, at several depths.

    ARGUMENTS after -- go to llama-bench in every mode, as in: -- -ts 3/1
    """
    check_out(out)
    wishes = split_scenario.Wishes(
        model=model,
        modes=_chosen(modes, "mode", split_scenario.MODES) if modes is not None else None,
        cache_types=tuple(dict.fromkeys(words_of(cache_types))),
        timing=Timing(prompt, generate, depths_of(depths)),
        rounds=repetitions,
        minutes=minutes,
        devices=tuple(words_of(devices)),
        rpc_devices=rpc_devices,
        extra=arguments,
    )
    with explained_here():
        split_scenario.check(wishes)
    if not wheels and variant is None and rpc_devices is None:
        msg = "no variant is named, and those for processors alone have no devices to share a model between"
        raise UsageError(
            msg, next_step="name one for your GPUs with --variant (`forkyard variants`), or a wheel with --wheel"
        )
    cache = Cache.default()
    cache.prepare()
    payloads = wheels or built(console, engines, variant or _RPC, source=source, offline=offline)
    log = log_of(cache, "split")
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(unpacked(payload, cache.scratch, installed(cache))) for payload in payloads]
        stack.enter_context(explained_here())
        keep = stack.enter_context(store())
        answer = split_scenario.bench_split(found, wishes, read_nodes(), log, console, keep)
    finish(console, answer.as_json(), split_as_text(answer), out, log)


@bench.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@measuring
@several
@click.option(
    "--caches",
    help="Comma-separated, each K, K/V, K+TAIL or K/V+TAIL with types of K and V, :centers or :hadamard behind "
    f"(default: those an engine has of {','.join(kv_scenario.CACHES)}).",
)
@click.option(
    "--depths", default="0,4096", show_default=True, help="Comma-separated: tokens in the cache before a test begins."
)
@click.option("--text", type=_FILE, help="What is read for the quality (default: the help topics of Python).")
@click.option(
    "--context", type=click.IntRange(64), default=4096, show_default=True, help="Tokens of a window of the text."
)
@click.option("--windows", type=click.IntRange(1), default=4, show_default=True, help="Windows that are read.")
@click.option(
    "--gpu-layers", type=click.IntRange(0), default=999, show_default=True, help="Layers on GPUs, where there are any."
)
@click.option("--plot", type=_FILE, help="Draw error against memory and speed into this file (.svg, .png).")
@sources
@answers
def kv(
    console: Console,
    arguments: tuple[str, ...],
    model: Path,
    engines: tuple[str, ...],
    variant: str | None,
    wheels: tuple[Path, ...],
    caches: str | None,
    depths: str,
    text: Path | None,
    context: int,
    windows: int,
    gpu_layers: int,
    plot: Path | None,
    repetitions: int,
    minutes: float | None,
    prompt: int,
    generate: int,
    out: Path | None,
    source: str | None,
    offline: bool,
) -> None:
    """Compare KV caches: memory, KL divergence from f16, and speed at several depths.

    ARGUMENTS after -- go to llama-bench in every arm, as in: -- -t 8
    """
    check_out(out)
    if plot is not None:
        with explained_here():
            kv_table.check_plot(plot)
    cache = Cache.default()
    cache.prepare()
    with owned_folder(cache.scratch, "kv-") as folder:
        wishes = kv_scenario.Wishes(
            model=model,
            caches=tuple(dict.fromkeys(words_of(caches))) if caches is not None else None,
            timing=Timing(prompt, generate, depths_of(depths)),
            rounds=repetitions,
            minutes=minutes,
            text=text or sample_text(folder),
            context=context,
            windows=windows,
            gpu_layers=gpu_layers,
            extra=arguments,
        )
        with explained_here():
            kv_scenario.check(wishes)
        payloads = wheels or built(console, engines, variant, source=source, offline=offline)
        log = log_of(cache, "kv")
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(unpacked(payload, cache.scratch, installed(cache))) for payload in payloads]
            stack.enter_context(explained_here())
            keep = stack.enter_context(store())
            answer = kv_scenario.bench_kv(found, wishes, read_nodes(), folder, log, console, keep)
    if plot is not None:
        kv_table.plot(answer, plot)
    finish(console, answer.as_json(), kv_table.as_text(answer), out, log)


@contextlib.contextmanager
def explained_here() -> Iterator[None]:
    """Errors of the bindings as forkyard's own; a run that failed is said by `unpacked`, as a failed build."""
    try:
        yield
    except RunFailed:
        raise
    except Unfit as error:
        raise UsageError(error.what, why=error.why, next_step=error.next_step) from error
    except ForkyardLlmError as error:
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def store() -> Iterator[Store]:
    """The measurements of this user, those of `forkyard-llm` among them."""
    with contextlib.closing(Store()) as found:
        yield found


def check_out(out: Path | None) -> None:
    """Refuse an ``--out`` that cannot be written, before anything is measured."""
    if out is not None and out.is_dir():
        msg = f"{out} is a folder"
        raise UsageError(msg, next_step="give --out the name of a file")


def log_of(cache: Cache, scenario: str) -> Path:
    """The file that everything goes into that the programs say."""
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return cache.logs / f"bench-{scenario}-{moment}.log"


def finish(console: Console, document: dict[str, Any], text: str, out: Path | None, log: Path) -> None:
    """Give the answer."""
    if out is not None:
        write_atomic(out, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())
    console.note(f"log: {log}")
    console.result(document, text)


def installed(cache: Cache) -> list[Path]:
    """Where libraries that a payload requires may be: Python's own packages, and the toolkits of builds."""
    return [Path(sysconfig.get_path("platlib")), *sorted((cache.root / "toolkits").glob("*"))]


def _modes(text: str | None) -> tuple[str, ...] | None:
    """The modes that ``--modes`` of numa names."""
    return None if text is None else _chosen(text, "mode", tuple(MODES), fewest=2)


def _chosen(text: str, what: str, known: Sequence[str], fewest: int = 1) -> tuple[str, ...]:
    """What an option names, each once, in the order of the table."""
    named = set(words_of(text))
    unknown = sorted(named - set(known))
    if unknown:
        msg = f"there is no {what} {unknown[0]!r}"
        raise UsageError(msg, next_step=f"choose from {', '.join(known)}")
    if len(named) < fewest:
        msg = f"{'one' if named else 'no'} {what} alone cannot be compared"
        raise UsageError(msg, next_step=f"name {fewest} or more, separated by commas")
    return tuple(name for name in known if name in named)


def depths_of(text: str, option: str = "--depths") -> tuple[int, ...]:
    """The numbers that an option names, each once, the smallest first."""
    words = words_of(text)
    if not words or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        msg = f"{text!r} is no list of numbers"
        raise UsageError(msg, next_step=f"give {option} numbers, separated by commas, as in 0,8192")
    return tuple(sorted({int(word) for word in words}))


def built(
    console: Console,
    engines: Sequence[str],
    variant: str | None,
    *,
    source: str | None,
    offline: bool,
    stacks: Sequence[str] | None = None,
) -> list[Path]:
    """The engines' wheels, built if that was not done before; without names those that have the variant."""
    shop = Workshop.open()
    chosen = variant or default_variant(shop.variants, engines[0] if engines else FAMILIES[0], shop.toolchain)
    if not engines:
        shop.variants.get(chosen)
        engines = [family for family in FAMILIES if chosen in supported(shop.variants, family)]
    plans, _ = shop.plans(chosen, tuple(engines), stacks)
    return [built.wheel for built in shop.build(plans, console, source=source, offline=offline)]
