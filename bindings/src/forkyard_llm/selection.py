"""Choose the payload to use: what was asked for, what this CPU can run, what really works in a child.

Order of events for one candidate: its machine and every CPU feature in its manifest are looked for; then, unless a
remembered verdict says that the same files did it before in the same environment, a child process loads it and computes
something small. Nothing of a payload runs in the calling process before that, so a wrong manifest costs a rejection
with a reason, not a SIGILL.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cpu
from .cache import expanded
from .errors import ForkyardLlmError, PayloadNotFound, PayloadRejected, Rejection, UsageError
from .payloads import ENGINES, Payload, discover_all, read_payload
from .python_child import child_command
from .server_log import signal_name
from .verdicts import Verdict, forget, recall, remember

__all__ = ["PAYLOAD_ENV", "Candidate", "Verdict", "candidates", "judge", "leave_out", "select", "suggestion", "survey"]

PAYLOAD_ENV = "FORKYARD_LLM_PAYLOAD"
PROBE_TIMEOUT_S = 120.0

_ENGINE_SPELLINGS = {
    "auto": "auto",
    "llama-cpp": "llama.cpp",
    "llama_cpp": "llama.cpp",
    "ik-llama-cpp": "ik_llama.cpp",
    "ik_llama_cpp": "ik_llama.cpp",
    **{name: name for name in ENGINES},
}

# What runs on any CPU of a machine: to say what to install when nothing fits.
_USUAL = {"aarch64": "cpu-aarch64"}

log = logging.getLogger(__name__)
_warned: set[tuple[tuple[Path, str], str]] = set()


@dataclass(frozen=True)
class Candidate:
    """One payload and what was found out about it."""

    payload: Payload
    verdict: Verdict


def select(
    engine: str = "auto",
    variant: str | None = None,
    *,
    verdicts: Mapping[tuple[Path, str], Verdict] | None = None,
) -> Payload:
    """The best usable payload of `engine` (a family, "auto" or a distribution name) and `variant`.

    Of a payload that carries several instruction sets each stands for itself, and `variant` may name one. "auto" takes
    llama.cpp's payloads before ik_llama.cpp's, each by rank; one for GPUs that finds none comes last.
    FORKYARD_LLM_PAYLOAD (a distribution name or a package folder) leaves that one candidate, which must not contradict
    the arguments. A better payload that this CPU could run and that does not work is a warning in the log. `verdicts`,
    by `Payload.key`, of a `survey`, stand in for judging again, without warnings.
    Raises PayloadNotFound if nothing installed matches, PayloadRejected with every reason if nothing that
    matches is usable, UsageError for an engine name nobody knows.
    """
    rejected: list[Candidate] = []
    idle: list[Candidate] = []  # those for GPUs that found none: better than nothing
    for payload in candidates(engine, variant):
        if any(payload.root == item.payload.root for item in idle):
            continue
        verdict = judge(payload) if verdicts is None else verdicts[payload.key]
        if verdict.usable and verdict.facts.get("no_gpu"):
            idle.append(Candidate(payload, verdict))
        elif verdict.usable:
            return _taken(payload, verdict, rejected, quiet=verdicts is not None)
        else:
            log.info("not using %s: %s", payload.title, verdict.reason)
            rejected.append(Candidate(payload, verdict))
    if idle:
        return _taken(idle[0].payload, idle[0].verdict, rejected, quiet=verdicts is not None)
    rejections = [Rejection(item.payload.title, item.verdict.reason) for item in rejected]
    lines = "\n".join(f"  {item.distribution}: {item.reason}" for item in rejections)
    msg = f"no usable payload for {_asked(engine, variant)}; rejected:\n{lines}\n{suggestion(engine)}"
    raise PayloadRejected(msg, rejections)


def _taken(payload: Payload, verdict: Verdict, rejected: Sequence[Candidate], *, quiet: bool) -> Payload:
    if not quiet:
        _warn_about(rejected, payload)
    log.info("using %s (%s)", payload.title, verdict.reason)
    return payload


def survey(*, refresh: bool = True) -> list[Candidate]:
    """Every readable payload, and FORKYARD_LLM_PAYLOAD's, best first, each judged; `refresh` probes anew."""
    found = {one.key: one for payload in discover_all().payloads for one in payload.members()}
    with contextlib.suppress(ForkyardLlmError):  # nothing there, or a bad override: `select` says which
        found.update({payload.key: payload for payload in candidates()})
    ordered = sorted(found.values(), key=_preference)
    return [Candidate(payload, judge(payload, refresh=refresh)) for payload in ordered]


def candidates(engine: str = "auto", variant: str | None = None) -> list[Payload]:
    """The payloads that match the arguments and FORKYARD_LLM_PAYLOAD, best first, not judged. At least one.

    Raises PayloadNotFound or UsageError as `select` does.
    """
    override = os.environ.get(PAYLOAD_ENV)
    if override:
        payload = _overriding(override)
        chosen = [one for one in payload.members() if _matches(one, engine, variant)]
        if not chosen:
            msg = (
                f"{PAYLOAD_ENV}={override} names {payload.distribution} ({payload.engine} {payload.variant}),"
                f" but {_asked(engine, variant)} was asked for; unset the variable or drop the argument"
            )
            raise UsageError(msg)
        return chosen
    found = discover_all()
    each = [one for payload in found.payloads for one in payload.members()]
    matching = [payload for payload in each if _matches(payload, engine, variant)]
    if matching:
        return sorted(matching, key=_preference)
    _check_engine_name(engine, found.payloads)
    lines = [f"no payload for {_asked(engine, variant)} is installed"]
    if found.payloads:
        lines.append("installed: " + ", ".join(payload.distribution for payload in found.payloads))
    lines += [f"unusable: {item.distribution}: {item.reason}" for item in found.broken]
    lines.append(suggestion(engine, variant))
    raise PayloadNotFound("\n".join(lines))


def judge(payload: Payload, *, refresh: bool = False) -> Verdict:
    """Whether `payload` can be used here. `refresh` does not believe remembered verdicts. Never raises."""
    here = cpu.host().machine
    if payload.machine != here:
        return Verdict(False, f"it is for {payload.machine}, this machine is {here}", {"machine": payload.machine})
    lacking = cpu.explain_missing(payload.cpu_features)
    if lacking:
        unknown = [item for item in lacking if not cpu.is_known(item.feature)]
        reason = "this CPU lacks " + ", ".join(item.feature for item in lacking)
        for item in unknown:
            reason += f"; {item.feature} is {item.reason}"
        return Verdict(False, reason, {"missing_cpu_features": [item.feature for item in lacking]})
    known = None if refresh else recall(payload)
    if known is not None:
        return known
    verdict, lasting = _probe(payload)
    if lasting and verdict.facts.get("no_gpu"):
        # A driver, a card or a library may be there the next time; nothing that the verdict is kept by tells of it.
        forget(payload)
        remember(payload, verdict, lasting=False)
    elif lasting:
        remember(payload, verdict)
    else:
        forget(payload)
    return verdict


def leave_out(payload: Payload, error: ForkyardLlmError) -> None:
    """Take `payload` out of this process's selection, after its verdict was good and loading it raised `error`.

    What is remembered about it is dropped, and it is probed again to say why.
    """
    forget(payload)
    verdict = judge(payload, refresh=True)
    if verdict.usable:
        verdict = Verdict(False, f"it works in a process of its own, but not in this one: {error}")
    remember(payload, verdict, lasting=False)


def suggestion(engine: str = "auto", variant: str | None = None) -> str:
    """What to do when no payload fits."""
    name = variant or _USUAL.get(cpu.host().machine, "cpu")
    slug = "ik-llama-cpp" if _ENGINE_SPELLINGS.get(engine) == "ik_llama.cpp" else "llama-cpp"
    return (
        f"next: install one that fits (pip install forkyard-{slug}-{name}) or build it in a Forkyard checkout"
        f" (nox -s build-{name}); `forkyard-llm doctor` explains every payload"
    )


# -- matching ------------------------------------------------------------------------------------------------


def _preference(payload: Payload) -> tuple[int, int, tuple[int, ...], str]:
    # Of two pins of an engine the newer one: a version begins with the day of its pin.
    day = tuple(-int(number) for number in re.findall(r"\d+", payload.manifest["version"].partition("+")[0]))
    return (ENGINES.index(payload.engine), -payload.rank, day, payload.distribution)


def _matches(payload: Payload, engine: str, variant: str | None) -> bool:
    if variant is not None and variant not in (payload.variant, payload.member):
        return False
    family = _ENGINE_SPELLINGS.get(engine)
    if family is None:
        return payload.distribution == engine
    return family in ("auto", payload.engine)


def _check_engine_name(engine: str, payloads: Sequence[Payload]) -> None:
    """Raise UsageError for an `engine` that is neither a family nor looks like a distribution of ours."""
    if engine in _ENGINE_SPELLINGS or engine.startswith("forkyard-"):
        return
    known = ["auto", *ENGINES, *(payload.distribution for payload in payloads)]
    msg = f"unknown engine {engine!r}; known: {', '.join(known)}"
    raise UsageError(msg)


def _overriding(value: str) -> Payload:
    for payload in discover_all().payloads:
        if payload.distribution == value:
            return payload
    folder = expanded(value)
    if folder.is_dir():
        return read_payload(folder)
    msg = (
        f"{PAYLOAD_ENV}={value} is neither an installed payload's name nor a folder;"
        " `forkyard-llm doctor` lists what is installed"
    )
    raise PayloadNotFound(msg)


def _warn_about(rejected: Sequence[Candidate], chosen: Payload) -> None:
    """Warn, once in this process, of each payload that this CPU could run, that comes first and does not work."""
    for item in rejected:
        key = (item.payload.key, item.verdict.reason)
        if not {"missing_cpu_features", "machine"} & item.verdict.facts.keys() and key not in _warned:
            _warned.add(key)
            reason = item.verdict.reason
            log.warning("using %s, not %s: %s", chosen.title, item.payload.title, reason)


def _asked(engine: str, variant: str | None) -> str:
    text = "any engine" if engine == "auto" else f"engine {engine}"
    return text if variant is None else f"{text}, variant {variant}"


# -- probing -------------------------------------------------------------------------------------------------


def _probe(payload: Payload) -> tuple[Verdict, bool]:
    """Try the payload in a child process: the verdict, and whether it would be the same next time.

    Working lasts, and so does an illegal instruction. Whatever else ends a probe (another signal, a timeout, a
    library missing from the system) may come from a lack of memory or from something else that is gone tomorrow.
    """
    if not sys.executable:
        return Verdict(False, "cannot be probed: this Python does not know its own executable"), False
    command = child_command("probing", *map(str, payload.key))
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"its probe did not end within {PROBE_TIMEOUT_S:.0f} s"), False
    except OSError as error:
        return Verdict(False, f"cannot be probed: {error}"), False
    seconds = time.monotonic() - started
    if done.returncode < 0:
        name = signal_name(-done.returncode)
        return Verdict(False, f"crashed with {name} in the probe", {"signal": name}), name == "SIGILL"
    report = _last_json(done.stdout)
    if report is None:
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
        return Verdict(False, f"its probe ended with exit code {done.returncode}: {tail[0][:300]}"), False
    reason = str(report.get("reason", "no reason given"))
    facts = {key: value for key, value in report.items() if key not in ("usable", "reason", "depends_on")}
    facts["probe_seconds"] = round(seconds, 3)
    usable = report.get("usable") is True and done.returncode == 0
    return Verdict(usable, reason, facts, depends_on=report.get("depends_on", ())), usable


def _last_json(output: bytes) -> dict[str, Any] | None:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
