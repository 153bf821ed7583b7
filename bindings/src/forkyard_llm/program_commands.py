"""Run the commands `bench`, `perplexity` and `quantize`: the payload's own program, on a model that was checked.

Each program writes to this process's own streams, unless its result is wanted as data.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .engines.cores import default_threads
from .errors import EngineError, UsageError
from .generate import payload_facts
from .gguf_check import check
from .payloads import Payload
from .programs import MODEL_OPTIONS, MODEL_VARIABLES, bound, environment_of, refuse, threads
from .server_devices import rpc_arguments
from .server_files import check_files
from .server_log import ending, last_words, signal_name

__all__ = ["bench", "perplexity", "quantize"]

_GRACE_S = 5.0  # for a program that was asked to end
_OUTPUT: Final = dict.fromkeys(("-o", "--output"), "--json")
# The estimate, and its standard error. ik_llama.cpp says before them of how many chunks.
_ESTIMATE = re.compile(r"Final estimate: PPL.* = *(\S+) \+/- *(\S+)")


def bench(payload: Payload, model: Path, words: Sequence[str], *, as_json: bool) -> dict[str, Any] | None:
    """Run llama-bench with `words`; with `as_json`, the document of `bench --json`, without which it writes a table.

    Raises UsageError (a word that is ours), ModelError, AbiMismatch (no such program), EngineError (it failed).
    """
    refuse(words, {**MODEL_OPTIONS, **(_OUTPUT if as_json else {})})
    environment = environment_of(payload, "llama-bench", {})
    # Servers of this machine alone: what runs once asks nobody whether another may listen.
    servers, words = rpc_arguments(payload, words, environment, allow_remote=False)
    command = [*servers, "-m", str(model), *threads(words), *words]
    check_files(model, words, environment, engine=payload.engine)
    if not as_json:
        _run(payload, "llama-bench", command, environment)
        return None
    said = _run(payload, "llama-bench", [*command, "-o", "json"], environment, stdout=subprocess.PIPE)
    try:
        results = json.loads(said)
    except ValueError as error:
        msg = f"llama-bench wrote no JSON ({error}): {said[:200].decode('utf-8', 'replace')!r}"
        raise EngineError(msg) from error
    return {"results": results, **_facts(payload, model)}


def perplexity(payload: Payload, model: Path, words: Sequence[str], *, as_json: bool) -> dict[str, Any] | None:
    """Run llama-perplexity with `words`; with `as_json`, the document of `perplexity --json`. Raises as `bench`."""
    refuse(words, MODEL_OPTIONS)
    environment = environment_of(payload, "llama-perplexity", MODEL_VARIABLES)
    servers, words = rpc_arguments(payload, words, environment, allow_remote=False)
    check_files(model, words, environment, engine=payload.engine)
    command = [*servers, "-m", str(model), *threads(words), *words]
    if not as_json:
        _run(payload, "llama-perplexity", command, environment)
        return None
    # One engine writes its result to standard output, the other to standard error.
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    said = _run(payload, "llama-perplexity", command, environment, **streams)
    found = _ESTIMATE.search(said.decode("utf-8", "replace"))
    estimate, error = (_finite(found[1]), _finite(found[2])) if found else (None, None)
    return {"perplexity": estimate, "standard_error": error, **_facts(payload, model)}


def quantize(
    payload: Payload, model: Path, output: Path, kind: str, words: Sequence[str], *, count: int | None, as_json: bool
) -> dict[str, Any]:
    """Write `model` in the types of `kind` to `output` with llama-quantize; the document of `quantize --json`.

    `words` are its options, `count` its threads. Raises UsageError if model and output are one file, and as `bench`.
    """
    refuse((*words, str(output), kind), {})
    if output.exists() and output.samefile(model):
        msg = f"{output} is the model itself, which would be lost; give another file for the result"
        raise UsageError(msg)
    check(model, engine=payload.engine)
    command = [*words, str(model), str(output), kind, str(count or default_threads())]
    # What it says of its work is no JSON.
    stdout = sys.stderr.fileno() if as_json else None
    _run(payload, "llama-quantize", command, environment_of(payload, "llama-quantize", {}), stdout=stdout)
    size = output.stat().st_size if output.is_file() else None
    return {"output": str(output), "type": kind, "bytes": size, **_facts(payload, model)}


def _run(
    payload: Payload,
    program: str,
    arguments: Sequence[str],
    environment: dict[str, str],
    *,
    stdout: int | None = None,
    stderr: int | None = None,
) -> bytes:
    """Run a program of `payload` to its end; what it wrote into a pipe. Raises EngineError if it fails."""
    sys.stdout.flush()
    command = bound([str(payload.tool(program)), *arguments])
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    try:
        said, _ = process.communicate()
    except BaseException:  # interrupted: a terminal tells the program as well
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_GRACE_S)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    code = process.returncode
    if code != 0:
        last = last_words(said or b"")
        why = ": " + "\n".join(last) if last else "; its own messages say why"
        msg = f"{program} {ending(code)}{why}"
        facts = {"program": program, "exit_status": code if code > 0 else None}
        raise EngineError(msg, {**facts, "signal": signal_name(-code) if code < 0 else None})
    return said or b""


def _facts(payload: Payload, model: Path) -> dict[str, Any]:
    return {"model": str(model), "engine": payload.engine, "payload": payload_facts(payload)}


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
