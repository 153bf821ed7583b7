"""Decode on one engine when told to, and say how long it took; a child process of test_numa_cost.py.

Usage: numa_cost_child.py PAYLOAD LIBRARIES MODEL STRATEGY THREADS; LIBRARIES is {NAME: PATH, ...} in JSON. Two numbers
N TIMES on standard input: decode N tokens behind CONTEXT others, TIMES times, each behind the ones before, and forget
them. The answer, a line on standard output: the nanoseconds of all of it. Threads that slept since the last line are
woken first, by a token that is not timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "numa"))
import probe_engines

CONTEXT = 64
"""Tokens in the cache before each decoding, so that it is read as well."""
LONGEST = 512


def decode(engine: Any, context: Any, position: int, count: int) -> int:
    """Nanoseconds for some tokens, the last with logits."""
    batch = engine.api.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for row in range(count):
        batch.token[row] = 1000 + 7 * row
        batch.pos[row] = position + row
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = 0
        batch.logits[row] = row == count - 1
    started = time.perf_counter_ns()
    status = engine.api.llama_decode(context, batch)
    engine.api.llama_synchronize(context)
    elapsed = time.perf_counter_ns() - started
    engine.api.llama_batch_free(batch)
    assert status == 0, f"llama_decode: {status}"
    return elapsed


def main(argv: Sequence[str]) -> None:
    payload, libraries, model, strategy, threads = argv
    # Engines print to standard output, too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = probe_engines.engine(Path(payload), json.loads(libraries))
    engine.start(int(strategy), None)
    # Not mapped: arms that share pages would warm the cache for each other.
    loaded = engine.load(model, {"mmap": False})
    context = engine.context(loaded, {"n_ctx": LONGEST, "n_ubatch": LONGEST, "threads": int(threads)}, {})
    decode(engine, context, 0, CONTEXT)
    for line in sys.stdin:
        count, times = map(int, line.split())
        decode(engine, context, CONTEXT, 1)
        elapsed = sum(decode(engine, context, CONTEXT + 1 + count * done, count) for done in range(times))
        print(elapsed, file=answers, flush=True)
        engine.remove(context, 0, CONTEXT, -1)


if __name__ == "__main__":
    main(sys.argv[1:])
