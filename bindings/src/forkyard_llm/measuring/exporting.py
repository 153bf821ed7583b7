"""Write down a run for others: Markdown for people, one JSON object or lines of it, and llama-bench's own jsonl."""

from __future__ import annotations

import datetime
import json
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from .records import Arm, Recorded, Sample
from .scenarios import verdicts
from .statistics import summarize
from .store import arm_to_json, info_to_json
from .tables import markdown, speed_text

__all__ = ["as_document", "as_jsonl", "as_llama_bench", "as_markdown"]

WIDE = 0.1
"""An arm whose interval reaches further than this share of its median is flagged."""
_TEST = re.compile(r"(?:pp(\d+))?\+?(?:tg(\d+))?(?: @ d(\d+))?")
# What upstream's comparison wants of a row; those that are not known here have its own defaults.
_PLAIN: Mapping[str, Any] = {
    "cpu_info": "", "gpu_info": "", "backends": "CPU", "model_filename": "", "model_type": "", "model_size": 0,
    "model_n_params": 0, "n_batch": 2048, "n_ubatch": 512, "n_threads": 0, "cpu_mask": "0x0", "cpu_strict": False,
    "poll": 50, "type_k": "f16", "type_v": "f16", "n_gpu_layers": -1, "n_cpu_moe": 0, "split_mode": "layer",
    "main_gpu": 0, "no_kv_offload": False, "flash_attn": "auto", "devices": "auto", "tensor_split": "0.00",
    "tensor_buft_overrides": "none", "load_mode": "auto", "lazy_mode": "auto", "embeddings": False, "no_op_offload": 0,
    "no_host": False, "fit_target": 0, "fit_min_ctx": 0,
}  # fmt: skip
_OPTIONS = {
    "n_threads": ("-t", "--threads"),
    "n_batch": ("-b", "--batch-size"),
    "n_ubatch": ("-ub", "--ubatch-size"),
    "type_k": ("-ctk", "--cache-type-k"),
    "type_v": ("-ctv", "--cache-type-v"),
    "n_gpu_layers": ("-ngl", "--n-gpu-layers"),
    "split_mode": ("-sm", "--split-mode"),
    "n_cpu_moe": ("-ncmoe", "--n-cpu-moe"),
    "load_mode": ("-lm", "--load-mode"),
    "poll": ("--poll",),
    "flash_attn": ("-fa", "--flash-attn"),
}


def as_document(recorded: Recorded) -> dict[str, Any]:
    """The run as one JSON value: its description, arms with medians, intervals and gains, and every sample."""
    gains = verdicts(recorded)
    arms = []
    for arm in recorded.arms:
        tests = {}
        for test in arm.tests:
            speeds = recorded.speeds(arm.name, test)
            if speeds and arm.name not in recorded.failed:
                gain = gains.get((arm.name, test))
                tests[test] = {**summarize(speeds).as_json(), "gain": None if gain is None else gain.as_json()}
        arms.append({**arm_to_json(arm), "failed": recorded.failed.get(arm.name), "results": tests})
    samples = [vars(one) for one in recorded.samples]
    return {"schema": 1, "run": info_to_json(recorded.info), "arms": arms, "samples": samples}


def as_jsonl(recorded: Recorded) -> str:
    """A line for each sample, with all that is known of it."""
    arms = {arm.name: arm_to_json(arm) for arm in recorded.arms}
    info = {name: value for name, value in info_to_json(recorded.info).items() if name != "facts"}
    return "".join(json.dumps({**vars(one), "run": info, "arm": arms[one.arm]}) + "\n" for one in recorded.samples)


def as_markdown(recorded: Recorded) -> str:
    """A table, an arm a row, and what has to be known to read it; of some scenarios a table of their own."""
    if isinstance(table := recorded.info.facts.get("table"), str):
        # It may be somebody else's: no word of it commands a terminal.
        return "".join(one for one in table if one.isprintable() or one == "\n")
    info, gains = recorded.info, verdicts(recorded)
    tests = list(dict.fromkeys(test for arm in recorded.arms for test in arm.tests))
    rows, wide = [], []
    for arm in recorded.arms:
        cells = [arm.name]
        for test in tests:
            speeds = recorded.speeds(arm.name, test)
            if arm.name in recorded.failed or not speeds:
                cells.append("failed" if arm.name in recorded.failed else "")
                continue
            one = summarize(speeds)
            cells.append(speed_text(one, gains.get((arm.name, test)), base=arm.name == info.anchor))
            low, high = one.interval
            if max(high - one.median, one.median - low) > WIDE * one.median:
                wide.append(f"{arm.name} ({test})")
        rows.append(cells)
    machine, when = info.machine, datetime.datetime.fromtimestamp(info.created, datetime.timezone.utc)
    rounds = 1 + max((one.round for one in recorded.samples), default=-1)
    kind = f" ({info.model_type})" if info.model_type else ""
    said = [
        f"{info.model}{kind}, {machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores; {info.scenario},"
        f" {when:%Y-%m-%d %H:%M} UTC, medians of {rounds} rounds, tokens/s",
        "",
        *markdown(["", *tests], rows, left=1),
        "",
        "In brackets where the median lies at 95 %."
        + (f" Factors are relative to {info.anchor}, run before and after." if info.anchor else ""),
    ]
    if wide:
        said.append(f"The machine was restless with: {', '.join(wide)}.")
    said += [f"{name} failed: {why}" for name, why in recorded.failed.items()]
    return "\n".join([*said, *info.remarks])


def as_llama_bench(recorded: Recorded) -> str:
    """Lines of JSON as llama-bench of llama.cpp writes them, which its scripts/compare-llama-bench.py reads.

    A row is an arm and a test, with every sample that counts. The commit is the build key, as two builds are compared.
    """
    return "".join(json.dumps(row) + "\n" for row in _rows(recorded))


def _rows(recorded: Recorded) -> Iterator[dict[str, Any]]:
    for arm in recorded.arms:
        for test in arm.tests:
            match = _TEST.fullmatch(test)
            kept = [one for one in recorded.samples if one.kept and (one.arm, one.test) == (arm.name, test)]
            if match is None or not kept or arm.name in recorded.failed:
                continue
            prompt, generate, depth = (int(word or 0) for word in match.groups())
            yield {**_row(recorded, arm), **_measured(kept, prompt, generate, depth)}


def _row(recorded: Recorded, arm: Arm) -> dict[str, Any]:
    machine = recorded.info.machine
    words = dict(zip(arm.command, arm.command[1:], strict=False))
    given = {field: words[name] for field, names in _OPTIONS.items() for name in names if name in words}
    key = arm.values.get("build_key") or arm.name
    return {
        "build_commit": key[:8],
        "build_number": 0,
        **_PLAIN,
        "cpu_info": str(machine.get("cpu", "")),
        "gpu_info": ", ".join(map(str, machine.get("gpus") or ())),
        "model_filename": recorded.info.model,
        "model_type": recorded.info.model_type,
        "model_size": recorded.info.model_bytes,
        "n_threads": int(machine.get("cores") or 0),
        **{field: _like(_PLAIN[field], text) for field, text in given.items()},
    }


def _like(plain: object, text: str) -> object:
    """An argument as llama-bench writes it: a number where it writes numbers."""
    return int(text) if isinstance(plain, int) and text.lstrip("-").isdigit() else text


def _measured(kept: list[Sample], prompt: int, generate: int, depth: int) -> dict[str, Any]:
    speeds = [one.speed for one in kept]
    times = [round(1e9 * (prompt + generate) / speed) for speed in speeds]
    when = datetime.datetime.fromtimestamp(kept[0].at, datetime.timezone.utc)
    return {
        "n_prompt": prompt,
        "n_gen": generate,
        "n_depth": depth,
        "test_time": f"{when:%Y-%m-%dT%H:%M:%SZ}",
        "avg_ns": round(statistics.fmean(times)),
        "stddev_ns": round(statistics.stdev(times)) if len(times) > 1 else 0,
        "avg_ts": statistics.fmean(speeds),
        "stddev_ts": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        "samples_ns": times,
        "samples_ts": speeds,
    }
