"""``forkyard bench``: the scenarios ``threads``, ``variants``, ``batch``, ``spec``, ``experts`` and ``stock``.

They build what is compared, and measure it. What they measure and how is the bindings' (``forkyard_llm.measuring``), as
in ``forkyard-llm bench``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from forkyard_llm.measuring.engine import Engine
from forkyard_llm.measuring.exporting import as_document, as_markdown
from forkyard_llm.measuring.scenarios import SCENARIOS, Wishes, conclusions
from forkyard_llm.measuring.scenarios import bench as measure

from forkyard.benching.engine import unpacked
from forkyard.cache import Cache
from forkyard.commands.answering import answers, sources, words_of
from forkyard.commands.bench import (
    bench,
    built,
    check_out,
    depths_of,
    explained_here,
    finish,
    installed,
    log_of,
    measuring,
    several,
    store,
)
from forkyard.console import Console
from forkyard.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])
STOCK = "stock"
_DEPTHS = click.option("--depths", default="0", show_default=True, help="Tokens in the cache before a test begins.")
_THREADS = click.option("--threads", help="Comma-separated numbers of threads (default: as many as help).")
_PARALLEL = click.option("--parallel", default="1,2,4,8", show_default=True, help="Requests at once.")
_DRAFT = click.option("--draft", type=click.Path(path_type=Path), help="A small model that guesses for the large one.")

_EXPERT_CACHES = click.option(
    "--expert-caches", default="auto", show_default=True, help="Sizes in MiB or auto, where a payload has it."
)

_ABOUT = {
    "threads": "Find the number of threads that is fastest, for prompts and for generation.",
    "variants": "Compare engines and builds: --variant may name several, separated by commas.",
    "batch": "Measure several requests at once through llama-server: the speed of all together.",
    "spec": "Compare ways to guess tokens ahead (n-grams, a draft model, MTP) through llama-server.",
    "experts": "Find where the experts of a mixture are best kept: on the device, on the CPU, or some of each.",
    STOCK: "Compare each engine with its unpatched upstream: stacks that are off must cost nothing.",
}
_OPTIONS = {
    "threads": (_DEPTHS, _THREADS),
    "variants": (_DEPTHS, _THREADS),
    "batch": (_PARALLEL, _THREADS),
    "spec": (_DRAFT, _THREADS),
    "experts": (_EXPERT_CACHES, _DEPTHS, _THREADS),
    STOCK: (_DEPTHS, _THREADS),
}


def _define(name: str) -> None:
    def command(
        console: Console,
        arguments: tuple[str, ...],
        model: Path,
        engines: tuple[str, ...],
        variant: str | None,
        wheels: tuple[Path, ...],
        repetitions: int,
        minutes: float | None,
        out: Path | None,
        source: str | None,
        offline: bool,
        **wishes: Any,
    ) -> None:
        check_out(out)
        for file in (model, wishes.get("draft")):
            if file is not None and not file.is_file():
                msg = f"there is no file {file}"
                raise UsageError(msg, next_step="name a GGUF file")
        for key in wishes.keys() & {"depths", "threads", "parallel"}:
            wishes[key] = depths_of(wishes[key], f"--{key}") if wishes[key] else ()
        if "expert_caches" in wishes:
            wishes["expert_caches"] = tuple(words_of(wishes["expert_caches"]))
        cache = Cache.default()
        cache.prepare()
        payloads = wheels or _payloads(console, name, engines, variant, source=source, offline=offline)
        wanted = Wishes(model, rounds=repetitions, minutes=minutes, narrow=None, extra=arguments, **wishes)
        log = log_of(cache, name)
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(unpacked(payload, cache.scratch, installed(cache))) for payload in payloads]
            stack.enter_context(explained_here())
            kept = stack.enter_context(store())
            runs = []
            for group in _groups(name, found):
                recorded = measure(name, group, wanted, log, console, begin=kept.begin, keep=kept.add)
                kept.end(recorded)
                runs.append(recorded)
        documents = [{**as_document(run), "conclusions": conclusions(run)} for run in runs]
        texts = ["\n".join([as_markdown(run), "", *conclusions(run)]) for run in runs]
        finish(console, {"scenario": name, "runs": documents}, "\n\n".join(texts), out, log)

    command.__doc__ = f"{_ABOUT[name]}\n\nARGUMENTS after -- go to the program that is measured, in every arm."
    decorated: Any = command
    arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    for option in (answers, sources, *_OPTIONS[name], several, measuring, arguments):
        decorated = option(decorated)
    made = bench.command(name=name)(decorated)
    if name == "spec":  # its prompts are texts of ours
        made.params = [one for one in made.params if one.name != "prompt"]


def _groups(name: str, engines: Sequence[Engine]) -> list[list[Engine]]:
    """What is measured beside each other: of ``stock`` an engine and its own upstream."""
    if name != STOCK:
        return [list(engines)]
    names = dict.fromkeys(engine.name for engine in engines)
    return [[engine for engine in engines if engine.name == one] for one in names]


def _payloads(
    console: Console, name: str, engines: Sequence[str], variant: str | None, *, source: str | None, offline: bool
) -> list[Path]:
    """The wheels that a scenario compares."""
    variants: Sequence[str | None] = words_of(variant) if variant else [None]
    stacks: Sequence[Sequence[str] | None] = ((), None) if name == STOCK else (None,)
    return [
        wheel
        for some in stacks
        for one in variants
        for wheel in built(console, engines, one, source=source, offline=offline, stacks=some)
    ]


for _name in _ABOUT:
    assert _name in SCENARIOS
    _define(_name)
