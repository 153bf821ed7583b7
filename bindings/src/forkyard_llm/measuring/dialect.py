"""What llama-bench prints with ``-o json``, in the dialects of both engines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_AFTER_PROMPT = re.compile(r"(tg\d+)@pp(\d+)")
"""ik_llama.cpp's name of generation after a prompt that is not timed: what upstream calls a depth."""


_USED = re.compile(r"using device (\S+)(?: \((.*?)\)(?: \([^()]*\))?)? - \d+ MiB free$")
_FOUND = re.compile(r"^\s*Device (\d+): (.*?), compute capability")
_TELLING = re.compile(
    r"error|invalid|assert|support|implemented|requires|refuse|out of memory|at least|less than", re.IGNORECASE
)


@dataclass(frozen=True)
class Device:
    """What an engine puts layers on."""

    name: str
    """As the engine calls it: ``CUDA0``."""
    about: str
    """What it is; of an RPC server its address; empty if the engine says nothing."""

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.name} ({self.about})" if self.about else self.name

    def as_json(self) -> dict[str, str]:
        """For machines."""
        return {"name": self.name, "about": self.about}


@dataclass(frozen=True)
class Result:
    """One test of one run."""

    test: str
    """``pp512``, ``tg128``, ``tg128 @ d8192``: the same word in both dialects."""
    speed: float
    """Tokens per second, the mean of the run's repetitions."""
    local: float | None
    """Percent of weights and state that threads read from their own node; only with the stack ``numa-mirror``."""
    model: str
    """What the engine calls the model."""


def at_depth(test: str, depth: int) -> str:
    """The name of a test that begins with ``depth`` tokens in the KV cache, as upstream's tables write it."""
    return f"{test} @ d{depth}" if depth else test


def read_results(text: str) -> list[Result] | None:
    """The results in llama-bench's output, with other lines around them; ``None`` if there are none.

    ik_llama.cpp names the test itself, upstream gives the numbers of tokens; ik_llama.cpp prints lines of its own
    between the brackets, which are cut out.
    """
    starts = [position for position, character in enumerate(text) if character == "["]
    for rows_of in (_whole, _rows):
        for start in starts:
            rows = rows_of(text[start:])
            results = [_result(row) for row in rows]
            if rows and all(result is not None for result in results):
                return [result for result in results if result is not None]
    return None


def _whole(text: str) -> list[Mapping[str, Any]]:
    """The objects of an array that nothing interrupts."""
    try:
        rows, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return []
    return rows if all(isinstance(row, dict) and "avg_ts" in row for row in rows) else []


def _rows(text: str) -> list[Mapping[str, Any]]:
    """The objects of an array that other lines may interrupt between two of them."""
    decoder = json.JSONDecoder()
    rows: list[Mapping[str, Any]] = []
    position = 1
    while True:
        start = _next_object(text, position)
        if start is None:
            return rows
        try:
            row, position = decoder.raw_decode(text, start)
        except ValueError:
            return []
        if not isinstance(row, dict) or "avg_ts" not in row:
            return []
        rows.append(row)


def _next_object(text: str, position: int) -> int | None:
    """Where the next line that begins with a brace begins, before the closing bracket."""
    offset = position
    for line in text[position:].splitlines(keepends=True):
        bare = line.strip()
        if bare.startswith("{") or bare == ",{":
            return offset + line.index("{")
        if bare == "]":
            return None
        offset += len(line)
    return None


def _result(row: Mapping[str, Any]) -> Result | None:
    speed = row.get("avg_ts")
    if not isinstance(speed, int | float) or isinstance(speed, bool) or not math.isfinite(speed) or speed <= 0:
        return None
    prompt, generate = row.get("n_prompt", 0), row.get("n_gen", 0)
    if not isinstance(prompt, int) or not isinstance(generate, int):
        return None
    parts = [f"{kind}{count}" for kind, count in (("pp", prompt), ("tg", generate)) if count]
    depth = row.get("n_depth", 0)
    if not isinstance(depth, int):
        return None
    test = at_depth("+".join(parts), depth)
    if after := _AFTER_PROMPT.fullmatch(str(row.get("test", ""))):
        test = at_depth(after[1], int(after[2]))
    local = row.get("numa_local")
    return Result(
        test=test,
        speed=float(speed),
        local=float(local) if isinstance(local, int | float) and not isinstance(local, bool) else None,
        model=str(row.get("model_type", "")),
    )


def read_devices(lines: Sequence[str]) -> tuple[Device, ...]:
    """The devices that a run with ``-v`` says it uses, each once.

    ik_llama.cpp counts the processor as one, and says elsewhere what its CUDA devices are.
    """
    used = {match[1]: match[2] or "" for line in lines if (match := _USED.search(line))}
    about = {f"CUDA{match[1]}": match[2] for line in lines if (match := _FOUND.search(line))}
    return tuple(Device(name, said or about.get(name, "")) for name, said in used.items() if name != "CPU")


def cause(lines: Sequence[str]) -> str:
    """What a run with ``-v`` that failed says of the reason, among the very much else that it says."""
    return last_words([line for line in lines if _TELLING.search(line)] or lines, 2)


def last_words(lines: Sequence[str], count: int = 3) -> str:
    """The last lines that say something, for a message about a run that failed."""
    said = [line.strip() for line in lines if line.strip()]
    return " / ".join(said[-count:])[:400] or "it printed nothing"
