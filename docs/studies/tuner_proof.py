"""Whether the tuner finds what measuring everything finds, with a quarter of the measurements, on this machine.

    python docs/studies/tuner_proof.py MODEL.gguf --rounds 5 --out grid.jsonl PAYLOAD PAYLOAD

PAYLOAD is what `forkyard-llm tune --payload` takes. It measures a grid of payloads, threads, ubatch and flash
attention, every point beside the default in every round, and then lets the search ask the same machine anew. The best
of the grid is chosen from half of its rounds and judged, as the tuner's answer is, by the other half. Nothing else
should compute meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
from pathlib import Path

from forkyard_llm.measuring.finding import found
from forkyard_llm.measuring.search import Point, Space, search
from forkyard_llm.measuring.space import BATCH_THREADS, PAYLOAD, THREADS, Choices, Workload, choices
from forkyard_llm.measuring.tune import Evaluator, Journal

KEPT = (PAYLOAD, THREADS, BATCH_THREADS, "ubatch", "flash attention")
UBATCHES = ("128", "512")
FLASH = ("off", "on")


def main() -> None:
    """Measure the grid, let the tuner search it, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("payloads", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True, help="keeps what is measured; the study goes on with it")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        whole = choices(
            [stack.enter_context(found(word)) for word in given.payloads], Workload(given.prompt, given.generate)
        )
        smaller = _smaller(whole)
        grid = list(itertools.product(*(each.values for each in smaller.space.dimensions)))
        grid = [one for one in grid if smaller.space.allowed(one) and one != smaller.space.default]
        identity = {"proof": [given.model.name, given.prompt, given.generate, given.payloads]}
        log, workload = given.out.with_suffix(".log"), Workload(given.prompt, given.generate)
        evaluators = [
            Evaluator(smaller, given.model, workload, log, Journal(path, identity, resume=path.exists()))
            for path in (given.out, given.out.with_suffix(".tuner.jsonl"))
        ]
        everything, asked = evaluators
        speeds: dict[Point, list[float]] = {one: [] for one in grid}
        for number in range(given.rounds):
            print(f"grid: round {number + 1} of {given.rounds}, {len(grid)} points", flush=True)
            for point, outcome in zip(grid, everything(grid), strict=True):
                if not isinstance(outcome, str):
                    speeds[point].append(1 / sum(share / outcome[test] for test, share in everything.shares.items()))
        budget = len(grid) * given.rounds // 4
        answer = search(smaller.space, asked.shares, asked, budget=budget)
        known = [one for one in grid if len(speeds[one]) == given.rounds]
        best = max(known, key=lambda one: statistics.median(speeds[one][::2]))
        judged = {one: statistics.median(speeds[one][1::2] or speeds[one]) for one in known}
        judged[smaller.space.default] = 1.0
        print(f"best of the grid: {smaller.name(best)}, {judged[best]:.3f}x the default")
        print(f"the tuner's:      {smaller.name(answer.best)}, {judged[answer.best]:.3f}x the default")
        print(
            json.dumps({"share": judged[answer.best] / judged[best], "used": answer.measurements, "grid": 4 * budget})
        )


def _smaller(whole: Choices) -> Choices:
    """The dimensions of the grid, with few values; what it leaves out stays at the engine's own."""
    dimensions, default = [], []
    for one, value in zip(whole.space.dimensions, whole.space.default, strict=True):
        if one.name in KEPT:
            few = {"ubatch": UBATCHES, "flash attention": (value, *FLASH)}.get(one.name, one.values)
            dimensions.append(type(one)(one.name, few, one.ordered))
            default.append(value)
    return Choices(Space(tuple(dimensions), tuple(default)), whole.engines, whole.not_tried)


if __name__ == "__main__":
    main()
