"""Start an engine's own program: what its arguments and variables may not decide, its threads, and its end.

A program never outlives this process, however that dies: the kernel is asked to kill it (PR_SET_PDEATHSIG, prctl(2)) by
a launcher that does so just before it becomes the program, and the parent is checked after asking, so that no moment is
left uncovered.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from .engines.cores import default_threads
from .errors import UsageError
from .health import option_name
from .payloads import Payload

__all__ = ["MODEL_OPTIONS", "MODEL_VARIABLES", "bound", "environment_of", "refuse", "threads"]

MODEL_OPTIONS: Final[Mapping[str, str]] = dict.fromkeys(
    (
        *("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"),
        *("-dr", "--docker-repo"),
    ),
    "-m",
)
"""Both engines' options that name another model than the one that was checked, and ours for it."""
MODEL_VARIABLES: Final[Mapping[str, str]] = dict.fromkeys(
    (
        *("LLAMA_ARG_MODEL", "LLAMA_ARG_MODEL_URL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_HF_FILE"),
        "LLAMA_ARG_DOCKER_REPO",
    ),
    "-m",
)
"""Variables that do the same; ik_llama.cpp lets them win over arguments."""

_THREAD_ARGUMENTS = frozenset({"-t", "--threads"})
_THREADS_ENV = "LLAMA_ARG_THREADS"  # read by llama.cpp's programs; an argument of ours would hide it
_LAUNCHER = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): os._exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)

log = logging.getLogger(__name__)


def refuse(arguments: Sequence[str], own: Mapping[str, str]) -> None:
    """Raise UsageError for an argument that is one of `own` (and the option of ours for it), or that none can be."""
    for argument in arguments:
        if "\0" in argument:
            msg = f"{argument!r} contains a NUL character, which no argument can carry"
            raise UsageError(msg)
        ours = own.get(option_name(argument))
        if ours is not None:
            msg = f"{argument} is set by forkyard-llm itself; use its option {ours} before `--`"
            raise UsageError(msg)


def environment_of(payload: Payload, program: str, own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program of `payload`, with a warning for each variable in `own` that it does not get."""
    environment = {**os.environ, **payload.environment()}
    for name, ours in own.items():
        value = environment.pop(name, None)
        if value is not None:
            log.warning("%s=%s is kept from %s: forkyard-llm's option %s decides that", name, value, program, ours)
    return environment


def threads(arguments: Sequence[str]) -> list[str]:
    """The argument that gives a program as many threads as a Llama would have, unless the caller gives a number.

    By itself it heeds neither a CPU quota nor the affinity mask.
    """
    given = any(argument.split("=", 1)[0] in _THREAD_ARGUMENTS for argument in arguments)
    return [] if given or _THREADS_ENV in os.environ else ["-t", str(default_threads())]


def bound(command: Sequence[str]) -> list[str]:
    """The command line that becomes `command`, and ends with this process."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
