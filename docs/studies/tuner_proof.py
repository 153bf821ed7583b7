"""Whether the tuner finds what measuring everything finds, with a quarter of the measurements, on this machine.

    python docs/studies/tuner_proof.py MODEL.gguf --rounds 5 --out grid.jsonl PAYLOAD PAYLOAD

PAYLOAD is what `forkyard-llm tune --payload` takes. It measures a grid of payloads, threads, ubatch and flash
attention, every point beside the default in every round, and then lets the search ask the same machine anew. The best
of the grid is chosen from half of its rounds and judged, as the tuner's answer is, by the other half. Then ten further
searches, each with a seed of its own, are answered from what was measured of the grid, a random round each time.
Nothing else should compute meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from forkyard_llm.measuring.finding import found
from forkyard_llm.measuring.search import Found, Outcome, Point, Space, search
from forkyard_llm.measuring.settings import Host
from forkyard_llm.measuring.space import BATCH_THREADS, PAYLOAD, THREADS, Choices, Workload, choices
from forkyard_llm.measuring.tune import Evaluator, Journal, benches

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
        engines = [stack.enter_context(found(word)) for word in given.payloads]
        whole = choices(engines, Workload(given.prompt, given.generate), Host.here())
        smaller = _smaller(whole)
        grid = list(itertools.product(*(each.values for each in smaller.space.dimensions)))
        grid = [one for one in grid if smaller.space.allowed(one) and one != smaller.space.default]
        identity = {"proof": [given.model.name, given.prompt, given.generate, given.payloads]}
        log, workload = given.out.with_suffix(".log"), Workload(given.prompt, given.generate)
        evaluators = [
            Evaluator(benches(smaller, given.model, workload, log), Journal(path, identity, resume=path.exists()))
            for path in (given.out, given.out.with_suffix(".tuner.jsonl"))
        ]
        everything, asked = evaluators
        measured: dict[Point, list[Mapping[str, float]]] = {one: [] for one in grid}
        for number in range(given.rounds):
            print(f"grid: round {number + 1} of {given.rounds}, {len(grid)} points", flush=True)
            for point, outcome in zip(grid, everything(grid), strict=True):
                if not isinstance(outcome, str):
                    measured[point].append(outcome)
        budget = len(grid) * given.rounds // 4
        known = [one for one in grid if len(measured[one]) == given.rounds]
        speeds = {one: [_speed(everything.shares, round_) for round_ in measured[one]] for one in known}
        best = max(known, key=lambda one: statistics.median(speeds[one][::2]))
        judged = {one: statistics.median(speeds[one][1::2] or speeds[one]) for one in known}
        judged[smaller.space.default] = 1.0
        print(f"best of the grid: {smaller.name(best)}, {judged[best]:.3f}x the default")

        def tell(who: str, answer: Found) -> None:
            said = {"share": round(judged[answer.best] / judged[best], 4), "used": answer.measurements}
            print(f"{who}: {smaller.name(answer.best)}, {judged[answer.best]:.3f}x the default")
            print(json.dumps({**said, "grid": len(grid) * given.rounds}))

        tell("the tuner", search(smaller.space, asked.shares, asked, budget=budget))
        for seed in range(10):
            source = random.Random(seed)  # noqa: S311

            def recorded(points: Sequence[Point], _: bool, source: random.Random = source) -> list[Outcome]:
                return [source.choice(measured[one]) if one in known else "it failed" for one in points]

            tell(f"seed {seed}", search(smaller.space, everything.shares, recorded, budget=budget))


def _speed(shares: Mapping[str, float], ratios: Mapping[str, float]) -> float:
    return 1 / sum(share / ratios[test] for test, share in shares.items())


def _smaller(whole: Choices) -> Choices:
    """The dimensions of the grid, with few values; what it leaves out stays at the engine's own."""
    dimensions, default = [], []
    kept = tuple(one for one in whole.settings if one.name in KEPT)
    for one, value in zip(whole.space.dimensions, whole.space.default, strict=True):
        if one.name in KEPT:
            few = {"ubatch": UBATCHES, "flash attention": (value, *FLASH)}.get(one.name, one.values)
            dimensions.append(type(one)(one.name, few, one.ordered))
            default.append(value)
    return Choices(Space(tuple(dimensions), tuple(default)), whole.engines, kept, whole.not_tried)


if __name__ == "__main__":
    main()
