"""llama-perplexity before and after, and KL divergence for a new type: does the engine still say the same?"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

from forkyard.cache import explained
from forkyard.console import Reporter
from forkyard.pullrequest.evidence.builds import AFTER, SIDES, Engine, missing_engine
from forkyard.pullrequest.evidence.inputs import Inputs
from forkyard.pullrequest.evidence.model import (
    FAIL,
    NOT_APPLICABLE,
    NOT_RUN,
    PASS,
    Evidence,
    Ledger,
    key_of,
    not_run,
    tail,
)
from forkyard.pullrequest.evidence.pairs import pair_order
from forkyard.pullrequest.evidence.tools import Ran

PERPLEXITY, PERPLEXITY_TITLE = "perplexity", "Quality: llama-perplexity before and after"
DIVERGENCE, DIVERGENCE_TITLE = "kl-divergence", "Quality of the new type: KL divergence"
TOLERANCE = 0.001
"""How much higher the perplexity after may be, relative: the same arithmetic in another order stays far below."""
CONTEXT = 512
# ik_llama.cpp says over how much in between.
_ESTIMATE = re.compile(r"Final estimate: PPL(?: over \d+ chunks for n_ctx=\d+)? = ([0-9.]+) \+/- ([0-9.]+)")
_REFUSED = re.compile(r"(?:Unsupported|Invalid) cache type")
_MEAN_KLD = re.compile(r"Mean\s+KLD:\s*(-?[0-9.eE+-]+)")
_SAME_TOP = re.compile(r"Same top p:\s*([0-9.]+)")
_COMPARED = ("q8_0", "q4_0")
"""Types of similar size that the new one is shown beside."""


def gather_perplexity(
    engines: Mapping[str, Engine],
    inputs: Inputs | str,
    ledger: Ledger,
    reporter: Reporter,
    *,
    chunks: int,
    rounds: int,
    threads: int,
) -> Evidence:
    """Perplexity of both builds over the same text, in pairs."""
    lacking = missing_engine(PERPLEXITY, PERPLEXITY_TITLE, engines)
    if lacking is not None:
        return lacking
    if isinstance(inputs, str):
        return not_run(PERPLEXITY, PERPLEXITY_TITLE, inputs)
    arguments = ["-m", inputs.model, "-f", inputs.text, "-c", str(CONTEXT), "--chunks", str(chunks), "-t", str(threads)]
    key = key_of(PERPLEXITY, [engines[side].key for side in SIDES], inputs.key, arguments, rounds, TOLERANCE)
    known = ledger.found(PERPLEXITY, key)
    if known is not None:
        return known
    ran = Ran(ledger.folder.parent)
    values: dict[str, list[float]] = {side: [] for side in SIDES}
    errors: dict[str, float] = {}
    with reporter.step("measuring perplexity in pairs", "runs") as step:
        for number in range(rounds):
            for side in pair_order(number):
                step.update(sum(map(len, values.values())), 2 * rounds)
                outcome = ran.run(engines[side], "llama-perplexity", arguments, f"{PERPLEXITY}-{side}.log")
                match = _ESTIMATE.search("\n".join(outcome.lines))
                if outcome.status != 0 or match is None:
                    why = outcome.why or "it ended without its final estimate"
                    return _failed(ledger, PERPLEXITY, PERPLEXITY_TITLE, ran, key, f"{side}: {why}", outcome.lines)
                values[side].append(float(match[1]))
                errors[side] = float(match[2])
    before, after = statistics.median(values["before"]), statistics.median(values["after"])
    change = after / before - 1 if before else float("inf")
    data = {
        "before": {"values": values["before"], "median": before, "uncertainty": errors["before"]},
        "after": {"values": values["after"], "median": after, "uncertainty": errors["after"]},
        "relative_change": change,
        "tolerance": TOLERANCE,
        "chunks": chunks,
        "context": CONTEXT,
        "text": "documentation topics of Python's pydoc",
        "model": inputs.model.removeprefix("inputs/"),
    }
    state = PASS if change <= TOLERANCE else FAIL
    reason = (
        f"{before:.4f} before, {after:.4f} after over {chunks} chunks: {change:+.4%},"
        f" {'within' if state == PASS else 'beyond'} +{TOLERANCE:.1%}"
    )
    piece = Evidence(
        PERPLEXITY, PERPLEXITY_TITLE, state, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, data, key
    )
    return ledger.keep(piece)


def gather_divergence(
    engines: Mapping[str, Engine],
    inputs: Inputs | str,
    ledger: Ledger,
    reporter: Reporter,
    *,
    types: Sequence[str],
    chunks: int,
    threads: int,
) -> Evidence:
    """KL divergence of the branch's new types, as types of the KV cache, against an f16 cache.

    As a type of weights a new type needs a model quantized to it, which is a person's to make and to upload.

    Args:
        types: enumerators of ``ggml_type`` that the branch adds.
    """
    if not types:
        why = "the branch adds no GGML_TYPE_ to ggml/include/ggml.h"
        return Evidence(DIVERGENCE, DIVERGENCE_TITLE, NOT_APPLICABLE, why)
    lacking = missing_engine(DIVERGENCE, DIVERGENCE_TITLE, engines, (AFTER,))
    if lacking is not None:
        return lacking
    if isinstance(inputs, str):
        return not_run(DIVERGENCE, DIVERGENCE_TITLE, inputs)
    names = [name.removeprefix("GGML_TYPE_").lower() for name in types]
    common = ["-m", inputs.model, "-c", str(CONTEXT), "--chunks", str(chunks), "-t", str(threads), "-fa", "on"]
    key = key_of(DIVERGENCE, engines[AFTER].key, inputs.key, common, names, _COMPARED)
    known = ledger.found(DIVERGENCE, key)
    if known is not None:
        return known
    ran = Ran(ledger.folder.parent)
    reference = ledger.folder.parent / "inputs" / "reference-logits.dat"
    figures: dict[str, dict[str, float | None]] = {}
    refused: list[str] = []
    base = ["--kl-divergence-base", "inputs/reference-logits.dat"]
    try:
        with reporter.step("measuring KL divergence", "runs") as step:
            outcome = ran.run(
                engines[AFTER], "llama-perplexity", [*common, "-f", inputs.text, *base], f"{DIVERGENCE}-reference.log"
            )
            if outcome.status != 0:
                return _failed(ledger, DIVERGENCE, DIVERGENCE_TITLE, ran, key, f"f16: {outcome.why}", outcome.lines)
            for number, name in enumerate([*names, *_COMPARED], 1):
                step.update(number, 1 + len(names) + len(_COMPARED), name)
                cache_types = ["-ctk", name, "-ctv", name]
                outcome = ran.run(
                    engines[AFTER],
                    "llama-perplexity",
                    [*common, *base, "--kl-divergence", *cache_types],
                    f"{DIVERGENCE}-{name}.log",
                )
                text = "\n".join(outcome.lines)
                mean, top = _MEAN_KLD.search(text), _SAME_TOP.search(text)
                if outcome.status == 0 and mean is not None:
                    figures[name] = {"mean_kld": float(mean[1]), "same_top_percent": float(top[1]) if top else None}
                elif name in names and _REFUSED.search(text):
                    refused.append(name)
                else:
                    why = outcome.why or "it printed no KL divergence"
                    return _failed(ledger, DIVERGENCE, DIVERGENCE_TITLE, ran, key, f"{name}: {why}", outcome.lines)
    finally:
        with explained("delete the reference logits"):
            reference.unlink(missing_ok=True)
    data = {"reference": "f16 cache", "types": figures, "refused_as_cache_type": refused, "chunks": chunks}
    if refused:
        state = NOT_RUN
        reason = (
            f"{', '.join(refused)} cannot be a type of the KV cache; as a type of weights it needs a model quantized"
            " to it, made by a person"
        )
    else:
        state = PASS
        reason = "measured against an f16 cache: " + ", ".join(
            f"{name} {values['mean_kld']:.6f}" for name, values in figures.items()
        )
    piece = Evidence(
        DIVERGENCE, DIVERGENCE_TITLE, state, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, data, key
    )
    return ledger.keep(piece)


def _failed(ledger: Ledger, name: str, title: str, ran: Ran, key: str, why: str, lines: Sequence[str]) -> Evidence:
    reason = f"{why}: {tail(lines)}"
    return ledger.keep(Evidence(name, title, FAIL, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, {}, key))
