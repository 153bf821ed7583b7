"""Examine this installation: which payloads are there, which would be used, and why the others would not."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from . import __version__, cpu, gguf_check, selection
from .cache import CACHE_ENV, cache_dir
from .cache_advice import advise
from .errors import ForkyardLlmError, PayloadNotFound
from .gguf_reader import GgufSummary
from .models import OFFLINE_ENV, known_models, local_path
from .payloads import PAYLOAD_PATH_ENV, Payload, discover_all
from .selection import Verdict

__all__ = ["Report", "examine", "show"]

# What the variants differ in; the rest of /proc/cpuinfo would only hide it.
_TELLING_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl",
    "avx512vbmi", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "atomics", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_ENVIRONMENT = (selection.PAYLOAD_ENV, PAYLOAD_PATH_ENV, CACHE_ENV, OFFLINE_ENV, "LD_LIBRARY_PATH", "LD_PRELOAD")


@dataclass(frozen=True)
class Report:
    """Everything the doctor found, ready for JSON. `usable` is whether `select()` would succeed."""

    usable: bool
    facts: Mapping[str, Any]


def examine(*, refresh: bool = True, model: Path | None = None) -> Report:
    """Look at everything. `refresh` probes every payload anew instead of believing remembered verdicts.

    With `model`, a GGUF file, the facts say which types of the KV cache suit it on each usable payload. Raises
    ModelError if the file is not sound.
    """
    summary = None if model is None else gguf_check.check(model, purposes={gguf_check.TEXT})
    judged = selection.survey(refresh=refresh)
    chosen, problem = _choice({candidate.payload.key: candidate.verdict for candidate in judged})
    payloads: list[dict[str, Any]] = []
    for candidate in judged:
        payload, verdict = candidate.payload, candidate.verdict
        payloads.append(
            {
                "distribution": payload.distribution,
                "version": payload.manifest["version"],
                "engine": payload.engine,
                "variant": payload.variant,
                "machine": payload.machine,
                "member": payload.member,
                "rank": payload.rank,
                "root": str(payload.root),
                "chosen": payload.key == chosen,
                "usable": verdict.usable,
                "reason": verdict.reason,
                "remembered": verdict.remembered,
                "capabilities": list(payload.capabilities),
                "nccl": payload.nccl,
                "cpu_features": list(payload.cpu_features),
                "pin": payload.manifest.get("pin"),
                "build_key": payload.build_key,
                "kv_cache": None if summary is None or not verdict.usable else _advice(summary, payload),
                **{key: value for key, value in verdict.facts.items() if key != "missing_cpu_features"},
            }
        )
    payloads.sort(key=lambda entry: not entry["chosen"])
    host = cpu.host()
    return Report(
        chosen is not None,
        {
            "forkyard_llm": __version__,
            "python": {"version": platform.python_version(), "executable": sys.executable},
            "system": {
                "machine": host.machine,
                "kernel": f"{platform.system()} {platform.release()}",
                "libc": " ".join(platform.libc_ver()).strip() or "unknown",
            },
            "cpu": {
                "brand": host.brand,
                "microarchitecture": host.microarchitecture,
                "features": [name for name in _TELLING_FEATURES if host.has(name)],
            },
            "cache": {"path": str(cache_dir()), "writable": _cache_writable()},
            "environment": {name: os.environ[name] for name in _ENVIRONMENT if os.environ.get(name)},
            "usable": chosen is not None,
            "problem": problem,
            "payloads": payloads,
            "broken": [{"distribution": item.distribution, "reason": item.reason} for item in discover_all().broken],
            "model": None if model is None else str(model),
            "models": [_model(name) for name in sorted(known_models())],
        },
    )


def show(report: Report, console: Console) -> None:
    """Print the report for people."""
    facts = report.facts
    host, system = facts["cpu"], facts["system"]

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    def line(label: str, text: str) -> None:
        say(f"[bold]{label:8}[/bold] {escape(text)}")

    line("version", f"forkyard-llm {facts['forkyard_llm']}, Python {facts['python']['version']}")
    line("system", f"{system['kernel']}, {system['machine']}, {system['libc']}")
    line("cpu", f"{host['brand']} ({host['microarchitecture']})")
    line("", " ".join(host["features"]) or "no known features detected")
    line("cache", facts["cache"]["path"] + ("" if facts["cache"]["writable"] else " (not writable)"))
    for name, value in facts["environment"].items():
        line("env", f"{name}={value}")
    console.print()
    if not facts["payloads"] and not facts["broken"]:
        console.print("no payloads installed")
    for entry in facts["payloads"]:
        _show_payload(entry, console)
    for item in facts["broken"]:
        say(f"[red]broken[/red]   [bold]{escape(item['distribution'])}[/bold]")
        say(f"         {escape(item['reason'])}")
    console.print()
    for model in facts["models"]:
        name, path = model["name"], model["path"]
        line("model", f"{name}: {path or f'not here (forkyard-llm models get {name})'}")
    if facts["problem"]:
        say(f"\n[red]nothing usable:[/red] {escape(facts['problem'])}")


def _show_payload(entry: Mapping[str, Any], console: Console) -> None:
    if entry["chosen"]:
        mark = "[green]chosen[/green]  "
    elif entry["usable"]:
        mark = "[green]usable[/green]  "
    else:
        mark = "[red]rejected[/red]"
    title = f"{entry['distribution']} {entry['version']}"
    kind = f"{entry['engine']}, {escape(entry['variant'])}"
    if entry["member"]:
        kind += f": {escape(entry['member'])}"
    console.print(
        f"{mark} [bold]{escape(title)}[/bold] ({kind}, rank {entry['rank']})",
        soft_wrap=True,
        highlight=False,
    )
    details = [entry["reason"]]
    if entry["chosen"] or not entry["member"]:
        # Of the instruction sets of one payload only the chosen one is told whole.
        no_gpu = entry.get("no_gpu")
        details += [
            f"no GPU to use, computes on the CPU: {no_gpu}" if no_gpu else None,
            {True: "NCCL is linked", False: "NCCL is not linked", None: None}[entry["nccl"]],
            entry.get("system_info"),
            *map(_device, entry.get("devices", ())),
            entry["root"],
        ]
    if entry["kv_cache"] and len(details) > 1:
        details += _cache_lines(entry["kv_cache"])
    if entry["capabilities"] and len(details) > 1:
        details.append("capabilities: " + ", ".join(entry["capabilities"]))
    for detail in details:
        if detail:
            console.print(f"         {escape(str(detail))}", soft_wrap=True, highlight=False)


def _advice(summary: GgufSummary, payload: Payload) -> dict[str, Any]:
    advice = advise(summary, payload)
    return {**asdict(advice), "flags": advice.flags}


def _cache_lines(advice: Mapping[str, Any]) -> list[str]:
    """What to give this payload for the model that was asked about."""
    if not advice["options"]:
        return [f"KV cache of this model: {advice['why']}"]
    words = ", ".join(f"{name}={value!r}" for name, value in advice["options"].items())
    small, f16 = advice["bytes_per_token"] / 1024, advice["f16_bytes_per_token"] / 1024
    return [
        f"KV cache of this model: {words}",
        f"  {advice['flags']}",
        f"  {small:.1f} KiB a token, {f16:.1f} with f16: {advice['why']}",
    ]


def _device(device: Mapping[str, Any]) -> str:
    """A line about one device of a payload."""
    text = f"device {device['name']} ({device['kind']})"
    if device["description"]:
        text += f": {device['description']}"
    if device["total_bytes"]:
        text += f", {device['free_bytes'] / 2**30:.1f} of {device['total_bytes'] / 2**30:.1f} GiB free"
    return text


def _choice(verdicts: Mapping[tuple[Path, str], Verdict]) -> tuple[tuple[Path, str] | None, str | None]:
    """(key of the payload `select()` takes after these verdicts, or None; why there is none)."""
    try:
        return selection.select(verdicts=verdicts).key, None
    except PayloadNotFound as error:
        return None, str(error)
    except ForkyardLlmError as error:
        return None, str(error).splitlines()[0]


def _cache_writable() -> bool:
    folder = cache_dir()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _model(name: str) -> dict[str, Any]:
    path = local_path(name)
    return {"name": name, "path": None if path is None else str(path)}
