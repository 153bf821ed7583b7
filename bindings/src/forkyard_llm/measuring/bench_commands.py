"""The commands `bench` and `compare`: what is measured, samples into the store, and tables for people."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ..command_options import (
    EXIT_CODES,
    engine_option,
    error_console,
    json_option,
    model_option,
    offline_option,
    payload_and_model,
    the_model,
    variant_option,
)
from ..errors import UsageError
from ..text import print_json

__all__ = ["bench", "compare"]

_F = TypeVar("_F", bound=Callable[..., Any])
SLOWER = 10
"""What `compare --fail-if-slower` exits with."""


class _Bench(click.Group):
    """A group that runs the command `default` unless another is named."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Bench, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure tokens per second.

    Without a scenario: the payload's own llama-bench (`run`). A scenario measures several things in turn, with
    intervals, until they are known well enough, keeps every sample (`forkyard-llm results`), and calls ties ties.
    """


@bench.command(epilog=EXIT_CODES)
@model_option
@engine_option
@variant_option
@offline_option
@json_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- LLAMA-BENCH-ARGS...]")
def run(model: str, engine: str, variant: str | None, offline: bool, as_json: bool, words: tuple[str, ...]) -> None:
    """Run the payload's own llama-bench once (the default)."""
    from ..program_commands import bench as run_bench

    document = run_bench(*payload_and_model(engine, variant, model, offline), words, as_json=as_json)
    if as_json:
        print_json(document)


def _numbers(text: str | None, option: str, fewest: int = 1) -> tuple[int, ...]:
    """Numbers with commas between, each once, the smallest first."""
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isascii() and word.isdigit() and len(word) < 10 and int(word) >= fewest for word in words):
        msg = f"{option} {text}: take numbers from {fewest} on, with commas between"
        raise UsageError(msg)
    return tuple(sorted({int(word) for word in words}))


_NARROW = click.option(
    "--narrow",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Stop early once no interval reaches further than so many percent; 0: never.",
)
_ROUNDS = (
    model_option,
    click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Rounds at most."),
    click.option("--minutes", type=click.FloatRange(min=0), help="Begin no further round after so many."),
)
_ENDING = (
    offline_option,
    json_option,
    click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS OF THE PROGRAM...]"),
)


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Options, in the order of the help."""

    def add(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_measuring = _options(*_ROUNDS, _NARROW, *_ENDING)
"""What every measurement with an anchor has."""
_in_turn = _options(*_ROUNDS, *_ENDING)
"""What the others have, whose arms are only run in turn."""


_PROMPT = click.option(
    "--prompt", type=click.IntRange(0), default=512, show_default=True, help="Tokens of the prompt; 0: none."
)
_GENERATE = click.option(
    "--generate", type=click.IntRange(0), default=128, show_default=True, help="Tokens generated; 0: none."
)
_DEPTHS = click.option("--depths", default="0", show_default=True, help="Tokens in the cache before a test begins.")
_THREADS = click.option("--threads", metavar="A,B...", help="Numbers of threads; default: as many as help.")
_ONE_THREADS = click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads; default: cores.")
_PAYLOADS = click.option(
    "--payload",
    "payloads",
    multiple=True,
    metavar="WHAT",
    help="An engine, a payload, a wheel, a folder or a llama-bench; may be repeated. Default: what is installed.",
)


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@_PROMPT
@_GENERATE
@_DEPTHS
@_THREADS
@_measuring
def threads(threads: str | None, depths: str, **others: Any) -> None:
    """Which number of threads is fastest, for prompts and for generation, on the best payload of each engine."""
    _measure("threads", threads=_numbers(threads, "--threads"), depths=_numbers(depths, "--depths", 0), **others)


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@_PROMPT
@_GENERATE
@_DEPTHS
@_ONE_THREADS
@_measuring
def variants(threads: int | None, depths: str, **others: Any) -> None:
    """Which payload is fastest: engines, instruction sets, builds."""
    counted = () if threads is None else (threads,)
    _measure("variants", threads=counted, depths=_numbers(depths, "--depths", 0), **others)


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@click.option("--parallel", default="1,2,4,8", show_default=True, help="Requests at once.")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens of each prompt.")
@click.option("--generate", type=click.IntRange(1), default=64, show_default=True, help="Tokens of each answer.")
@_ONE_THREADS
@_measuring
def batch(threads: int | None, parallel: str, **others: Any) -> None:
    """How fast several requests are together, through llama-server."""
    counted = () if threads is None else (threads,)
    _measure("batch", threads=counted, parallel=_numbers(parallel, "--parallel"), **others)


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@click.option("--draft", metavar="NAME_OR_PATH", help="A small model that guesses for the large one.")
@click.option("--generate", type=click.IntRange(1), default=128, show_default=True, help="Tokens of each answer.")
@_ONE_THREADS
@_measuring
def spec(threads: int | None, draft: str | None, offline: bool, **others: Any) -> None:
    """What guessing tokens ahead gains (n-grams, a draft model, MTP), through llama-server."""
    counted = () if threads is None else (threads,)
    path = None if draft is None else the_model(draft, offline)
    _measure("spec", threads=counted, draft=path, offline=offline, **others)


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@click.option(
    "--expert-caches", default="auto", show_default=True, help="Sizes in MiB or auto, where a payload has it."
)
@_PROMPT
@_GENERATE
@_DEPTHS
@_ONE_THREADS
@_measuring
def experts(threads: int | None, depths: str, expert_caches: str, **others: Any) -> None:
    """Where the experts of a mixture are best kept: on the device, on the CPU, or some of each (needs a device)."""
    counted, sizes = () if threads is None else (threads,), _words(expert_caches)
    _measure("experts", threads=counted, depths=_numbers(depths, "--depths", 0), expert_caches=sizes, **others)


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@click.option("--modes", help="Of isolate, distribute, mirror, split, with commas. Default: all the engine has.")
@click.option("--threads-per-node", type=click.IntRange(1), help="Default: the physical cores of a node.")
@click.option("--fake-nodes", type=click.IntRange(2, 16), help="Pretend so many nodes on a machine with one.")
@_PROMPT
@_GENERATE
@_in_turn
def numa(modes: str | None, **others: Any) -> None:
    """Which way to use several memory nodes is fastest (--numa), with one payload."""
    from .machine import read_nodes
    from .numa import Wishes, bench_numa, check
    from .numa_modes import MODES
    from .numa_table import as_text

    if len(others["payloads"]) > 1:
        msg = "bench numa compares the modes of one payload"
        raise UsageError(msg, next_step="give --payload once, and measure the others each in a run of its own")
    with _opened("numa", **others) as room:
        nodes, named = read_nodes(), ("threads_per_node", "fake_nodes", "prompt", "generate")
        given = {name: others[name] for name in named}
        wishes = Wishes(modes=_chosen(modes, "--modes", tuple(MODES)), **given, **room.common)
        check(wishes, nodes)
        engine = next((one for one in room.engines if one.modes), room.engines[0])
        found = bench_numa(engine, wishes, nodes, room.log, room.reporter, room.store)
        _tell(found.as_json(), as_text(found), as_json=others["as_json"])


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@click.option("--modes", help="Of layer, row, tensor, graph, with commas. Default: all that each engine has.")
@click.option("--cache-types", default="f16,q8_0,q4_0", show_default=True, help="KV types, of those an engine knows.")
@click.option("--devices", default="", help="Names such as CUDA0,CUDA1. Default: those the engine chooses.")
@click.option("--rpc-devices", type=click.IntRange(2, 16), help="Pretend so many by RPC servers on this machine.")
@click.option("--depths", default="0,8192", show_default=True, help="Tokens in the cache before a test begins.")
@_PROMPT
@_GENERATE
@_in_turn
def split(modes: str | None, cache_types: str, devices: str, **others: Any) -> None:
    """Which way to share a model between devices is fastest, with which type of the KV cache."""
    from .machine import read_nodes
    from .split import MODES, Wishes, bench_split, check
    from .split_table import as_text

    with _opened("split", **others) as room:
        wishes = Wishes(
            modes=_chosen(modes, "--modes", MODES),
            cache_types=_words(cache_types),
            timing=_timing(**others),
            devices=_words(devices),
            rpc_devices=others["rpc_devices"],
            **room.common,
        )
        check(wishes)
        found = bench_split(room.engines, wishes, read_nodes(), room.log, room.reporter, room.store)
        _tell(found.as_json(), as_text(found), as_json=others["as_json"])


@bench.command(epilog=EXIT_CODES)
@_PAYLOADS
@click.option(
    "--caches",
    help="Each K, K/V, K+TAIL or K/V+TAIL with types of K and V, :centers or :hadamard behind. Default: many.",
)
@click.option("--depths", default="0,4096", show_default=True, help="Tokens in the cache before a test begins.")
@click.option("--text", type=click.Path(path_type=Path), help="Read for the quality. Default: the help of Python.")
@click.option("--context", type=click.IntRange(64), default=4096, show_default=True, help="Tokens of a window of it.")
@click.option("--windows", type=click.IntRange(1), default=4, show_default=True, help="Windows that are read.")
@click.option("--gpu-layers", type=click.IntRange(0), default=999, show_default=True, help="Layers on GPUs.")
@_PROMPT
@_GENERATE
@_in_turn
def kv(caches: str | None, text: Path | None, **others: Any) -> None:
    """What each KV cache costs: memory, KL divergence from f16, and speed at several depths."""
    from .kv import Wishes, bench_kv, check
    from .kv_table import as_text
    from .machine import read_nodes
    from .quality import sample_text

    with _opened("kv", **others) as room, tempfile.TemporaryDirectory(prefix="forkyard-llm-") as name:
        folder = Path(name)
        wishes = Wishes(
            caches=None if caches is None else _words(caches),
            timing=_timing(**others),
            text=text or sample_text(folder),
            **{key: others[key] for key in ("context", "windows", "gpu_layers")},
            **room.common,
        )
        check(wishes)
        found = bench_kv(room.engines, wishes, read_nodes(), folder, room.log, room.reporter, room.store)
        _tell(found.as_json(), as_text(found), as_json=others["as_json"])


@click.command(epilog=EXIT_CODES + f"  {SLOWER}   it is slower (with --fail-if-slower)\n")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@_PROMPT
@_GENERATE
@_DEPTHS
@click.option("--fail-if-slower", is_flag=True, help=f"Exit with {SLOWER} if B is slower than A in any test.")
@_measuring
def compare(first: str, second: str, depths: str, fail_if_slower: bool, as_json: bool, **others: Any) -> int:
    """Measure whether B is faster or slower than A on this machine, or a tie.

    A and B are an engine, a payload, a wheel, a folder or the llama-bench of any build, with arguments of llama-bench
    behind it if you like: forkyard-llm compare -m MODEL "llama.cpp -t 4" "build/bin/llama-bench -t 8"
    """
    recorded = _measure(
        "compare", payloads=(first, second), depths=_numbers(depths, "--depths", 0), as_json=as_json, **others
    )
    from .scenarios import verdicts

    slower = any(gain.verdict == "slower" for gain in verdicts(recorded).values())
    return SLOWER if fail_if_slower and slower else 0


def _words(text: str) -> tuple[str, ...]:
    """Words with commas between, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _chosen(text: str | None, option: str, known: Sequence[str]) -> tuple[str, ...] | None:
    """Some of what there is, in its order; None: the user named none."""
    if text is None:
        return None
    named = _words(text)
    if not named or not set(named) <= set(known):
        msg = f"{option} {text}: choose from {', '.join(known)}"
        raise UsageError(msg)
    return tuple(one for one in known if one in named)


def _timing(*, prompt: int, generate: int, depths: str, **_: Any) -> Any:
    from .timing import Timing

    return Timing(prompt, generate, _numbers(depths, "--depths", 0))


@dataclass(frozen=True)
class _Room:
    """What a scenario with a table of its own is measured with."""

    engines: Sequence[Any]
    common: dict[str, Any]
    """Of every one's wishes."""
    log: Path
    reporter: Any
    store: Any


@contextlib.contextmanager
def _opened(
    scenario: str,
    *,
    payloads: Sequence[str],
    model: str,
    offline: bool,
    rounds: int,
    minutes: float | None,
    words: tuple[str, ...],
    **_: Any,
) -> Iterator[_Room]:
    from ..gguf_check import check
    from ..programs import MODEL_OPTIONS, refuse
    from .reporting import Console
    from .store import Store

    refuse(words, {**MODEL_OPTIONS, **dict.fromkeys(("-o", "--output", "-r", "--repetitions"), "--rounds")})
    path = the_model(model, offline)
    check(path)
    with contextlib.ExitStack() as stack:
        engines = _engines(stack, payloads)
        store = stack.enter_context(contextlib.closing(Store()))
        common = {"model": path, "rounds": rounds, "minutes": minutes, "extra": words}
        yield _Room(engines, common, _log(store, scenario), Console(error_console), store)


def _engines(stack: contextlib.ExitStack, payloads: Sequence[str], *, every: bool = False) -> list[Any]:
    """What `--payload` names; without it the best payload of each engine, or every one that works here."""
    from ..payloads import ENGINES
    from ..selection import select
    from .finding import each_usable, engine_of, found

    if payloads:
        return [stack.enter_context(found(word)) for word in payloads]
    usable = each_usable()
    if every and usable:
        return usable
    best = {one.name: one for one in reversed(usable)}
    return [best[name] for name in ENGINES if name in best] or [engine_of(select())]


def _log(store: Any, scenario: str) -> Path:
    path: Path = store.path.parent / "logs" / f"bench-{scenario}-{time.strftime('%Y%m%dT%H%M%S')}.log"
    return path


def _tell(document: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        click.echo(text)


def _measure(
    scenario: str,
    *,
    payloads: Sequence[str],
    model: str,
    offline: bool,
    as_json: bool,
    narrow: float,
    words: tuple[str, ...],
    **wishes: Any,
) -> Any:
    """Measure, keep, print."""
    from ..gguf_check import check
    from ..programs import MODEL_OPTIONS, refuse
    from .exporting import as_markdown
    from .reporting import Console
    from .scenarios import Wishes, bench, conclusions
    from .store import Store

    refuse(words, {**MODEL_OPTIONS, **dict.fromkeys(("-o", "--output", "-r", "--repetitions"), "--rounds")})
    path = the_model(model, offline)
    check(path)
    with contextlib.ExitStack() as stack:
        named = [shlex.split(word) for word in payloads]
        if not all(named):
            msg = "an empty name names no payload"
            raise UsageError(msg)
        engines = _engines(stack, [one[0] for one in named], every=scenario == "variants")
        wanted = Wishes(
            path, narrow=narrow / 100 or None, extra=words, own=tuple(tuple(one[1:]) for one in named), **wishes
        )
        store = stack.enter_context(contextlib.closing(Store()))
        recorded = bench(
            scenario,
            engines,
            wanted,
            _log(store, scenario),
            Console(error_console),
            begin=store.begin,
            keep=store.add,
        )
        store.end(recorded)
        recorded = store.read(recorded.info.id)
    said = conclusions(recorded)
    if as_json:
        from .exporting import as_document

        print_json({**as_document(recorded), "conclusions": said})
    else:
        click.echo(as_markdown(recorded))
        click.echo("\n" + "\n".join(said))
        error_console.print(f"run {recorded.info.id[:8]}: forkyard-llm results show {recorded.info.id[:8]}")
    return recorded
