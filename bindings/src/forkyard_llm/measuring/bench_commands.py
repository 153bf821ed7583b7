"""The commands `bench` and `compare`: what is measured, samples into the store, and tables for people."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Sequence
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


def _measuring(function: _F) -> _F:
    """The options that every measurement has; in the order of the help."""
    options = (
        model_option,
        click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Rounds at most."),
        click.option("--minutes", type=click.FloatRange(min=0), help="Begin no further round after so many."),
        click.option(
            "--narrow",
            type=click.FloatRange(min=0),
            default=2.0,
            show_default=True,
            help="Stop early once no interval reaches further than so many percent; 0: never.",
        ),
        offline_option,
        json_option,
        click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS OF THE PROGRAM...]"),
    )
    for option in reversed(options):
        function = option(function)
    return function


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
    from ..selection import select
    from .exporting import as_markdown
    from .finding import each_usable, engine_of, found
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
        engines = [stack.enter_context(found(one[0])) for one in named]
        if not engines and scenario == "variants":
            engines = each_usable()
        elif not engines:
            from ..payloads import ENGINES

            usable = {one.name: one for one in reversed(each_usable())}
            engines = [usable[name] for name in ENGINES if name in usable] or [engine_of(select())]
        wanted = Wishes(
            path, narrow=narrow / 100 or None, extra=words, own=tuple(tuple(one[1:]) for one in named), **wishes
        )
        store = stack.enter_context(contextlib.closing(Store()))
        log = store.path.parent / "logs" / f"bench-{scenario}-{time.strftime('%Y%m%dT%H%M%S')}.log"
        recorded = bench(
            scenario,
            engines,
            wanted,
            log,
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
