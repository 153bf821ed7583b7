"""llama-bench before and after, in interleaved pairs: is the engine as fast as it was?"""

from __future__ import annotations

from collections.abc import Mapping

from forkyard_llm.measuring.dialect import read_results

from forkyard.console import Reporter
from forkyard.pullrequest.evidence.builds import SIDES, Engine, missing_engine
from forkyard.pullrequest.evidence.inputs import Inputs
from forkyard.pullrequest.evidence.model import FAIL, PASS, UNDECIDED, Evidence, Ledger, key_of, not_run, tail
from forkyard.pullrequest.evidence.pairs import Compared, pair_order
from forkyard.pullrequest.evidence.tools import Ran

NAME, TITLE = "bench", "Speed: llama-bench before and after"
TOLERANCE = 0.05
"""How much slower the branch may be, relative. Where the pairs allow either answer the evidence is undecided."""
PROMPT, GENERATED = 128, 32


def gather_speed(
    engines: Mapping[str, Engine],
    inputs: Inputs | str,
    ledger: Ledger,
    reporter: Reporter,
    *,
    rounds: int,
    threads: int,
) -> Evidence:
    """Tokens per second of both builds, prompt processing and generation."""
    lacking = missing_engine(NAME, TITLE, engines)
    if lacking is not None:
        return lacking
    if isinstance(inputs, str):
        return not_run(NAME, TITLE, inputs)
    shape = ["-p", str(PROMPT), "-n", str(GENERATED), "-t", str(threads), "-r", "1", "-o", "json"]
    arguments = ["-m", inputs.model, *shape]
    key = key_of(NAME, [engines[side].key for side in SIDES], inputs.key, arguments, rounds, TOLERANCE)
    known = ledger.found(NAME, key)
    if known is not None:
        return known
    ran = Ran(ledger.folder.parent)
    found: dict[str, dict[str, list[float]]] = {kind: {side: [] for side in SIDES} for kind in ("prompt", "generation")}
    with reporter.step("measuring speed in pairs", "runs") as step:
        for number in range(rounds):
            for position, side in enumerate(pair_order(number)):
                step.update(2 * number + position, 2 * rounds)
                outcome = ran.run(engines[side], "llama-bench", arguments, f"{NAME}-{side}.log")
                speeds = read_output(outcome.lines)
                if outcome.status != 0 or speeds is None:
                    reason = f"{side}: {outcome.why or 'its answer cannot be read'}: {tail(outcome.lines)}"
                    return ledger.keep(
                        Evidence(NAME, TITLE, FAIL, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, {}, key)
                    )
                for kind, value in speeds.items():
                    found[kind][side].append(value)
    compared = {kind: Compared(tuple(sides["before"]), tuple(sides["after"])) for kind, sides in found.items()}
    limit = 1 - TOLERANCE
    slower = [kind for kind, one in compared.items() if one.interval[1] < limit]
    unsure = [kind for kind, one in compared.items() if one.interval[0] < limit <= one.interval[1]]
    data = {
        **{kind: one.as_json() for kind, one in compared.items()},
        "tolerance": TOLERANCE,
        "rounds": rounds,
        "threads": threads,
        "undecided": unsure,
        "model": inputs.model.removeprefix("inputs/"),
    }
    told = ", ".join(
        f"{kind} {one.ratio:.3f} of before ({one.interval[0]:.3f} to {one.interval[1]:.3f})"
        for kind, one in compared.items()
    )
    state = FAIL if slower else UNDECIDED if unsure else PASS
    reason = f"{told}; medians of {rounds} pairs, at least {limit:.2f} is asked"
    if state == UNDECIDED:
        reason += f"; {' and '.join(unsure)} may be above or below: measure on a quieter machine, or without --quick"
    piece = Evidence(NAME, TITLE, state, reason, tuple(ran.commands), tuple(ran.logs), ran.seconds, data, key)
    return ledger.keep(piece)


def read_output(lines: list[str]) -> dict[str, float] | None:
    """Tokens per second from llama-bench's JSON, other lines around it or in it; ``None`` if it is not all there."""
    results = read_results("\n".join(lines)) or []
    speeds = {"generation" if one.test.startswith("tg") else "prompt": one.speed for one in results}
    return speeds if set(speeds) == {"prompt", "generation"} else None
