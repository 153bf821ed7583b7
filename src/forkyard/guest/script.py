"""The script a guest runs: the cases of its topology, each after the run without NUMA that it is compared with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from forkyard.guest.cases import Case, Server, numa_words

MARK = "@forkyard"
"""Begins every line that is meant for us."""
LIBRARIES = "/lib/host"
"""Where libraries of the host are in the guest."""
MODEL = "/model.gguf"
PORT = 8080
CASE_S = 600
"""Longest time for a server to start and to answer."""
END_S = 60
"""Longest time for it to end, its report included."""

_TEMPLATES = Path(__file__).parent / "templates"
_PROMPT = "The capital of France is"
_TOKENS = 5


@dataclass(frozen=True)
class Run:
    """One start of the server."""

    name: str
    command: tuple[str, ...]
    before: tuple[str, ...] = ()
    report: bool = True


def runs(cases: Sequence[Case], server: Server) -> list[Run]:
    """The starts that cases of one topology need, in order: those without NUMA first, each once."""
    twins: dict[str, Run] = {}
    own = []
    for case in cases:
        words = server.words(MODEL, PORT, case.threads, mmap=case.mmap)
        twins.setdefault(case.twin, Run(case.twin, tuple(words), report=False))
        own.append(Run(case.name, (*case.launcher, *words, *numa_words(case)), case.before))
    return [*twins.values(), *own]


def question() -> bytes:
    """What every server is asked: greedy, with the probabilities behind each choice."""
    asked = {"prompt": _PROMPT, "n_predict": _TOKENS, "temperature": 0, "top_k": 1, "seed": 1, "n_probs": 4}
    return json.dumps({**asked, "cache_prompt": False, "return_tokens": True}).encode()


def guest_s(count: int) -> int:
    """Longest time for a guest with so many runs, in seconds."""
    return 60 + count * (CASE_S + END_S)


def init_script(todo: Sequence[Run], *, case_s: int = CASE_S, end_s: int = END_S) -> str:
    """The guest's first program."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - the output is a shell script
    )
    rows = [
        {"name": one.name, "command": shlex.join(one.command), "before": one.before, "report": one.report}
        for one in todo
    ]
    return environment.get_template("init.sh.j2").render(
        libraries=LIBRARIES, mark=MARK, port=PORT, case_s=case_s, end_s=end_s, guest_s=guest_s(len(todo)), runs=rows
    )
