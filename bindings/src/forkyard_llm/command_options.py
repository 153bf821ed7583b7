"""Options that several commands of `forkyard-llm` have, and what they mean."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from . import selection
from .fetching import shown_progress
from .models import resolve
from .payloads import Payload

EXIT_CODES = """\b
Exit codes:
  0    done
  1    an error nobody foresaw
  2    wrong usage
  3    no payload is installed (doctor: none is usable)
  4    payloads are installed, none can be used here
  5    a payload is damaged or does not fit its description
  6    the model file is missing, damaged, or no model for this
  7    the engine failed
  8    the engine lacks an option that was asked for
  9    a model could not be downloaded or stored
  130  interrupted (Ctrl-C)
"""

error_console = Console(stderr=True, highlight=False)
"""Where everything goes that is no answer."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document (errors too).")
engine_option = click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, llama.cpp, ik_llama.cpp or a payload.",
)
variant_option = click.option("--variant", metavar="NAME", help="Only payloads of this variant (avx2, avx512 ...).")
model_option = click.option(
    "-m", "--model", required=True, metavar="NAME_OR_PATH", help="A .gguf file, or a name of `models list`."
)
offline_option = click.option("--offline", is_flag=True, help="Never download; use what is there.")


remote_rpc_option = click.option(
    "--allow-remote-rpc",
    is_flag=True,
    help="RPC servers may be on other machines. RPC is neither authenticated nor encrypted.",
)
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Threads; default: cores, within the CPU quota."
)


def payload_and_model(engine: str, variant: str | None, model: str, offline: bool) -> tuple[Payload, Path]:
    """What `--engine`, `--variant` and `--model` name."""
    payload = selection.select(engine, variant)
    return payload, the_model(model, offline)


def the_model(name: str, offline: bool) -> Path:
    """The file of `--model`, downloaded if that is needed and allowed."""
    with shown_progress(error_console) as progress:
        return resolve(name, offline=offline, progress=progress)
