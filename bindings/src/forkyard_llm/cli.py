"""The `forkyard-llm` command: arguments in, text or JSON out, exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from . import __version__
from .command_options import (
    EXIT_CODES,
    engine_option,
    error_console,
    json_option,
    model_option,
    offline_option,
    payload_and_model,
    remote_rpc_option,
    the_model,
    threads_option,
    variant_option,
)
from .engines.numa import STRATEGIES, WORDS
from .engines.options import NO_POOLING, RANK
from .errors import ForkyardLlmError, ModelError, UsageError
from .fetching import shown_progress
from .log import configure
from .measuring.bench_commands import bench, compare
from .measuring.results_commands import results
from .measuring.tune_command import tune
from .models import get, known_models, local_path, remove, verify
from .text import prepare_streams, print_json, to_engine, write_now

__all__ = ["cli", "main"]

_NAME = "forkyard-llm"
_COMPLETION_ENV = "_FORKYARD_LLM_COMPLETE"  # how click's shell completion calls

_WRITING_FAILED = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run the command and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit code. Errors go to stderr and, with --json, to stdout as one object."""
    prepare_streams()
    words = list(arguments)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        if _COMPLETION_ENV in os.environ:
            cli.main(args=words, prog_name=_NAME)
        # Not cli.main: that has its own ideas of what Ctrl-C and a closed pipe should print and exit with.
        with cli.make_context(_NAME, words) as context:
            result = cli.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except ForkyardLlmError as error:
        return _failed(error.as_json(), str(error), error.exit_code, as_json)
    except click.ClickException as error:
        if as_json:
            body = {"type": "UsageError", "message": error.format_message(), "exit_code": error.exit_code}
            print_json({"error": body})
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        error_console.print("\ninterrupted" if error_console.is_terminal else "interrupted")
        return 128 + signal.SIGINT
    except OSError as error:
        return _unwritable(error)


def _unwritable(error: OSError) -> int:
    """End because standard output takes no more; raises `error` again if that is not the reason.

    Whatever else is written (models, verdicts, logs) has errors of its own, and what is opened has a name.
    """
    if error.filename is not None or error.errno not in _WRITING_FAILED:
        raise error
    # Nothing may be left for the interpreter to write when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        # The reader went away, as in `forkyard-llm generate ... | head -1`: nobody is left to tell.
        return 128 + signal.SIGPIPE
    _complain(f"cannot write to standard output: {error.strerror}")
    return ForkyardLlmError.exit_code


def _failed(body: dict[str, Any], message: str, code: int, as_json: bool) -> int:
    if as_json:
        print_json(body)
    _complain(message)
    return code


def _complain(message: str) -> None:
    error_console.print("[red]error:[/red]", end=" ")
    error_console.print(message, markup=False, soft_wrap=True)


context_option = click.option(
    "-c",
    "--context",
    "context_size",
    type=click.IntRange(min=0),
    default=512,
    show_default=True,
    help="Tokens that a text may have; 0: what the model was trained for.",
)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


sampling_options = _together(
    click.option("--temp", type=click.FloatRange(min=0), help="Temperature; 0 always takes the likeliest token."),
    click.option("--top-k", type=int, help="Sample from the K likeliest tokens only; 0: all."),
    click.option(
        "--top-p", type=click.FloatRange(0, 1), help="... from the likeliest that together have probability P."
    ),
    click.option("--min-p", type=click.FloatRange(0, 1), help="... from those at least P times as likely as the best."),
    click.option("--repeat-penalty", type=float, help="Divides the logits of recent tokens; 1: none."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="The same seed gives the same text."),
)
device_options = _together(
    click.option("--numa", type=click.Choice(STRATEGIES), help="How to use several NUMA nodes; default: not at all."),
    click.option(
        "--numa-mirror", metavar="WORDS", help=f"What --numa mirror copies: {', '.join(WORDS)}; default: all."
    ),
    click.option("--gpu-layers", metavar="N", help="Layers on devices other than the CPU; -1: all; auto: what fits."),
    click.option(
        "--device", "devices", multiple=True, metavar="NAME", help="Use this one; may be repeated; default: all."
    ),
    click.option("--split-mode", metavar="NAME", help="How devices share the model: none, layer, row, tensor ..."),
    click.option("--tensor-split", metavar="SHARES", help="Each device's share, with commas: 1,1,2."),
    click.option(
        "--rpc-server", "rpc_servers", multiple=True, metavar="HOST:PORT", help="Use its devices; may be repeated."
    ),
    remote_rpc_option,
    click.option("--type-k", metavar="TYPE", help="Type of the KV cache's keys: f16, q8_0 ..."),
    click.option("--type-v", metavar="TYPE", help="Type of its values."),
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="forkyard-llm")
@click.option("-v", "--verbose", count=True, help="Say what is being done; twice: everything, the engine's log too.")
@click.pass_context
def cli(context: click.Context, verbose: int) -> None:
    """Run patched llama.cpp and ik_llama.cpp builds, on the one this CPU can execute."""
    context.obj = verbose
    configure(verbose, error_console)


@cli.command(epilog=EXIT_CODES)
@model_option
@click.option("-p", "--prompt", help="The text to continue; without it, standard input (less one final newline).")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("-c", "--context", "context_size", type=click.IntRange(min=1), help="Context size in tokens.")
@threads_option
@device_options
@sampling_options
@click.option("--grammar", metavar="FILE", type=_FILE, help="GBNF that the text follows.")
@click.option("--json-schema", metavar="FILE", type=_FILE, help="The text is JSON that this schema describes.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text appears; may be repeated.")
@engine_option
@variant_option
@offline_option
@json_option
@click.pass_obj
def generate(
    verbose: int,
    /,
    model: str,
    prompt: str | None,
    max_tokens: int,
    context_size: int | None,
    threads: int | None,
    grammar: Path | None,
    json_schema: Path | None,
    stop: tuple[str, ...],
    engine: str,
    variant: str | None,
    offline: bool,
    as_json: bool,
    **others: Any,
) -> None:
    """Continue a prompt, writing the text as it comes."""
    from .generate import GenerateOptions, measured, streamed

    if prompt is None:
        prompt = _prompt_from_stdin()
    # Before a model is fetched or loaded for it.
    to_engine(prompt, "the prompt (-p)")
    for text in stop:
        to_engine(text, "a stop text (--stop)")
    sampling, numa, placed = _parted(others)
    for name, file in (("grammar", grammar), ("json_schema", json_schema)):
        if file is not None:
            sampling[name] = _text_of(file)
    path = the_model(model, offline)
    options = GenerateOptions(
        model=path,
        prompt=prompt,
        max_tokens=max_tokens,
        engine=engine,
        variant=variant,
        context=context_size,
        threads=threads,
        **numa,
        sampling=sampling,
        devices=placed,
        stop=stop,
        verbose=verbose > 1,
    )
    if as_json:
        print_json(measured(options))
    else:
        streamed(options, write_now)
        click.echo()


@cli.command(epilog=EXIT_CODES)
@model_option
@click.option("--system", metavar="TEXT", help="What the model is told first.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), help="Of each answer; default: what the context holds.")
@click.option(
    "-c", "--context", "context_size", type=click.IntRange(min=0), help="Context size in tokens; 0: the model's own."
)
@threads_option
@device_options
@sampling_options
@engine_option
@variant_option
@offline_option
@click.pass_obj
def chat(
    verbose: int,
    /,
    model: str,
    system: str | None,
    max_tokens: int | None,
    context_size: int | None,
    threads: int | None,
    engine: str,
    variant: str | None,
    offline: bool,
    **others: Any,
) -> None:
    """Talk with a model: in a terminal, or a line of standard input after the other.

    /help in the chat shows its commands.
    """
    from .terminal_chat import ChatOptions
    from .terminal_chat import chat as run_chat

    to_engine(system or "", "the system message (--system)")
    sampling, numa, placed = _parted(others)
    path = the_model(model, offline)
    counted = {} if threads is None else {"n_threads": threads}
    options = ChatOptions(
        model=path,
        system=system,
        max_tokens=max_tokens,
        engine=engine,
        variant=variant,
        context=context_size,
        sampling=sampling,
        arguments={**numa, **placed, **counted, "verbose": verbose > 1},
    )
    run_chat(options, error_console)


def _parted(others: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What was given of `sampling_options` and `device_options`, as `Llama` takes it: sampling, NUMA, and devices."""
    numa = {name: others.pop(name) for name in ("numa", "numa_mirror")}
    placed = {
        "n_gpu_layers": _layers(others.pop("gpu_layers")),
        "tensor_split": _shares(others.pop("tensor_split")),
        **{
            name: others.pop(name)
            for name in ("devices", "split_mode", "rpc_servers", "allow_remote_rpc", "type_k", "type_v")
        },
    }
    others["temperature"] = others.pop("temp")
    sampling = {name: value for name, value in others.items() if value is not None}
    return sampling, numa, {name: value for name, value in placed.items() if value}


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {file}: {error.strerror if isinstance(error, OSError) else f'it is not UTF-8: {error}'}"
        raise UsageError(msg) from error


def _layers(text: str | None) -> int | str:
    """`--gpu-layers` as `Llama` takes it; how many there may be is for that to say."""
    try:
        return "auto" if text == "auto" else int(text or 0)
    except ValueError as error:
        msg = f"--gpu-layers {text}: take a number, -1 for all layers, or auto"
        raise UsageError(msg) from error


def _shares(text: str | None) -> list[float]:
    """`--tensor-split` as `Llama` takes it."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        msg = f"--tensor-split {text}: take numbers with commas between, one for each device: 1,1,2"
        raise UsageError(msg) from error


def _prompt_from_stdin() -> str:
    if sys.stdin.isatty():
        msg = "no prompt: give one with -p, or on standard input"
        raise UsageError(msg)
    return _stdin("the prompt").removesuffix("\n")


def _lines_from_stdin() -> list[str]:
    return _stdin("the text").removesuffix("\n").split("\n")


def _stdin(what: str) -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        msg = f"{what} on standard input is not UTF-8: {error}"
        raise UsageError(msg) from error


@cli.command(epilog=EXIT_CODES)
@model_option
@click.option("--pooling", metavar="NAME", help="none, mean, cls or last; default: the model's own.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long instead of refusing them.")
@context_option
@threads_option
@engine_option
@variant_option
@offline_option
@json_option
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.pass_obj
def embed(
    verbose: int,
    /,
    model: str,
    pooling: str | None,
    truncate: bool,
    context_size: int,
    threads: int | None,
    engine: str,
    variant: str | None,
    offline: bool,
    as_json: bool,
    texts: tuple[str, ...],
) -> None:
    """Print the vector of each text; with `-` as the only one, of each line of standard input."""
    from .embedding_commands import EmbeddingOptions, embedded

    given = _lines_from_stdin() if texts == ("-",) else texts
    for number, text in enumerate(given):
        to_engine(text, f"text {number}")
    path = the_model(model, offline)
    options = EmbeddingOptions(path, pooling, engine, variant, context_size, threads, verbose > 1)
    document = embedded(options, given, truncate=truncate)
    if as_json:
        print_json(document)
        return
    for vectors in document["embeddings"]:
        # With the pooling none there is a line for each token, and an empty one after each text.
        several = document["pooling"] == NO_POOLING
        for vector in vectors if several else [vectors]:
            click.echo(" ".join(f"{value:.9g}" for value in vector))
        if several:
            click.echo()


@cli.command(epilog=EXIT_CODES)
@model_option
@context_option
@threads_option
@engine_option
@variant_option
@offline_option
@json_option
@click.argument("query")
@click.argument("documents", nargs=-1, required=True, metavar="DOCUMENT...")
@click.pass_obj
def rank(
    verbose: int,
    /,
    model: str,
    context_size: int,
    threads: int | None,
    engine: str,
    variant: str | None,
    offline: bool,
    as_json: bool,
    query: str,
    documents: tuple[str, ...],
) -> None:
    """Print how well each document answers a query, the best first; with `-` as the only one, each line of stdin."""
    from .embedding_commands import EmbeddingOptions, ranked

    given = _lines_from_stdin() if documents == ("-",) else documents
    to_engine(query, "the query")
    for number, text in enumerate(given):
        to_engine(text, f"document {number}")
    path = the_model(model, offline)
    options = EmbeddingOptions(path, RANK, engine, variant, context_size, threads, verbose > 1)
    document = ranked(options, query, given)
    if as_json:
        print_json(document)
        return
    for result in document["results"]:
        click.echo(f"{result['score']:.9g}\t{result['document']}")


@cli.command(epilog=EXIT_CODES, context_settings={"ignore_unknown_options": False})
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one.")
@engine_option
@variant_option
@click.option("--startup-timeout", type=click.FloatRange(min=1), default=600.0, show_default=True, metavar="SECONDS")
@click.option(
    "--max-restarts", type=click.IntRange(min=0), default=5, show_default=True, help="After crashes in a row."
)
@click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False), help="Default: a new one in the cache.")
@remote_rpc_option
@offline_option
@json_option
@click.argument("server_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- LLAMA-SERVER-ARGS...]")
def serve(
    model: str,
    host: str,
    port: int,
    engine: str,
    variant: str | None,
    startup_timeout: float,
    max_restarts: int,
    log_file: Path | None,
    allow_remote_rpc: bool,
    offline: bool,
    as_json: bool,
    server_args: tuple[str, ...],
) -> int:
    """Serve a model over HTTP with the payload's own llama-server, restarted when it crashes.

    Runs until Ctrl-C or SIGTERM. The server cannot outlive this command. Everything after `--` goes to
    llama-server.
    """
    from .health import has_key
    from .serve import Ready, ServeOptions, Supervisor, is_loopback

    payload, path = payload_and_model(engine, variant, model, offline)
    options = ServeOptions(
        model=path,
        host=host,
        port=port,
        extra=server_args,
        startup_timeout=startup_timeout,
        max_restarts=max_restarts,
        log_file=log_file,
        allow_remote_rpc=allow_remote_rpc,
    )
    supervisor = Supervisor(payload, options)
    if not is_loopback(host) and not has_key(server_args):
        error_console.print(
            f"[yellow]warning:[/yellow] {host} can be reached from other machines, and llama-server asks"
            " nobody who they are; give it a key (-- --api-key KEY) or listen on 127.0.0.1",
            soft_wrap=True,
        )

    def announce(ready: Ready) -> None:
        if as_json:
            print_json(
                {
                    "url": ready.url,
                    "pid": ready.pid,
                    "model": str(path),
                    "payload": payload.distribution,
                    "engine": payload.engine,
                    "log": str(ready.log_file),
                    "restarts": ready.restarts,
                    "startup_s": round(ready.seconds, 3),
                }
            )
        else:
            again = " again" if ready.restarts else ""
            click.echo(f"serving {path.name} with {payload.distribution}{again} at {ready.url}")
            click.echo(f"log: {ready.log_file}; Ctrl-C ends it")
        sys.stdout.flush()

    if not as_json:
        error_console.print(f"starting {payload.distribution} ...")
    supervisor.run(announce)
    return 0


@cli.command(epilog=EXIT_CODES)
@model_option
@engine_option
@variant_option
@offline_option
@json_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- -f TEXT-FILE [LLAMA-PERPLEXITY-ARGS...]")
def perplexity(
    model: str, engine: str, variant: str | None, offline: bool, as_json: bool, words: tuple[str, ...]
) -> None:
    """Measure how well a model foresees a text with the payload's own llama-perplexity."""
    from .program_commands import perplexity as run_perplexity

    document = run_perplexity(*payload_and_model(engine, variant, model, offline), words, as_json=as_json)
    if as_json:
        print_json(document)


@cli.command(epilog=EXIT_CODES)
@model_option
@threads_option
@engine_option
@variant_option
@offline_option
@json_option
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("kind", metavar="TYPE")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- LLAMA-QUANTIZE-OPTIONS...]")
def quantize(
    model: str,
    threads: int | None,
    engine: str,
    variant: str | None,
    offline: bool,
    as_json: bool,
    output: Path,
    kind: str,
    words: tuple[str, ...],
) -> None:
    """Write a model in another TYPE (q8_0, q4_k_m ...) with the payload's own llama-quantize."""
    from .program_commands import quantize as run_quantize

    payload, path = payload_and_model(engine, variant, model, offline)
    document = run_quantize(payload, path, output, kind, words, count=threads, as_json=as_json)
    if as_json:
        print_json(document)


@cli.group(epilog=EXIT_CODES)
def models() -> None:
    """The small models that can be had by name."""


@models.command(name="list", epilog=EXIT_CODES)
@json_option
def list_models(as_json: bool) -> None:
    """What there is, and what is already here."""
    entries: list[dict[str, Any]] = []
    for name, model in sorted(known_models().items()):
        path = local_path(name)
        entries.append(
            {
                "name": name,
                "title": model.title,
                "architecture": model.architecture,
                "bytes": model.size,
                "licence": model.licence,
                "note": model.note,
                "sha256": model.sha256,
                "path": None if path is None else str(path),
            }
        )
    if as_json:
        print_json({"models": entries})
        return
    for entry in entries:
        click.echo(f"{entry['name']:14} {entry['title']}, {entry['bytes'] / 1e6:.0f} MB, {entry['licence']}")
        click.echo(f"{'':14} {entry['path'] or 'not here yet'}")
        if entry["note"]:
            click.echo(f"{'':14} {entry['note']}")


@models.command(name="get", epilog=EXIT_CODES)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@offline_option
@json_option
def get_models(names: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Download known models, verify them and print their paths."""
    _known(names)
    entries = []
    for name in names:
        model = known_models()[name]
        if model.note:
            error_console.print(f"[yellow]licence:[/yellow] {model.note}", soft_wrap=True)
        with shown_progress(error_console) as progress:
            path = get(name, offline=offline, progress=progress)
        entries.append({"name": name, "path": str(path), "sha256": model.sha256, "bytes": model.size})
        if not as_json:
            click.echo(str(path))
    if as_json:
        print_json({"models": entries})


@models.command(name="verify", epilog=EXIT_CODES)
@click.argument("names", nargs=-1, metavar="[NAME...]")
@json_option
def verify_models(names: tuple[str, ...], as_json: bool) -> int:
    """Read the models that are here, those named or all, and compare their sha256.

    Exits with 6 if one that is named is not here, or one is damaged.
    """
    _known(names)
    entries = []
    for name in names or [name for name in sorted(known_models()) if local_path(name, whole=False)]:
        with shown_progress(error_console) as progress:
            state = verify(name, progress=progress)
        path = local_path(name, whole=False)
        entries.append({"name": name, "path": None if path is None else str(path), "state": state})
        if not as_json:
            advice = {"damaged": "; `models get` fetches it again", "missing": "; `models get` fetches it"}.get(
                state, ""
            )
            click.echo(f"{name:14} {state}{advice}")
    if as_json:
        print_json({"models": entries})
    return 0 if all(entry["state"] == "good" for entry in entries) else ModelError.exit_code


@models.command(name="remove", epilog=EXIT_CODES)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
def remove_models(names: tuple[str, ...], as_json: bool) -> None:
    """Delete models from the cache, and what is left of their downloads."""
    _known(names)
    freed = {name: remove(name) for name in names}
    if as_json:
        print_json({"models": [{"name": name, "bytes": size} for name, size in freed.items()]})
        return
    for name, size in freed.items():
        click.echo(f"{name:14} {f'removed, {size / 1e6:.0f} MB' if size else 'not here'}")


def _known(names: Sequence[str]) -> None:
    """Refuse names that are unknown before anything is done for the others."""
    for name in names:
        local_path(name)


@cli.command(epilog=EXIT_CODES)
@click.option("--cached", is_flag=True, help="Believe remembered verdicts instead of probing every payload anew.")
@click.option(
    "-m", "--model", metavar="NAME_OR_PATH", help="Say which types of the KV cache suit this model on each payload."
)
@offline_option
@json_option
def doctor(cached: bool, model: str | None, offline: bool, as_json: bool) -> int:
    """Say which payloads are here, which one is used, and why the others are not.

    Exits with 0 when something is usable, with 3 when nothing is.
    """
    from .doctor import examine, show

    path = None
    if model is not None:
        path = the_model(model, offline)
    with _waiting("examining payloads"):
        report = examine(refresh=not cached, model=path)
    if as_json:
        print_json(report.facts)
    else:
        show(report, Console(highlight=False))
    return 0 if report.usable else 3


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    if not error_console.is_terminal:
        yield
        return
    with error_console.status(f"{what} ..."):
        yield


for _command in (bench, compare, results, tune):
    cli.add_command(_command)
