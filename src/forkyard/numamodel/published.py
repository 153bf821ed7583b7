"""The published table that the model is held against.

Source: the README of the branch ``numa-mirror`` of https://github.com/mikechambers84/ik_llama.cpp, section "NUMA mode
benchmarks", as carried on in https://github.com/keithdawson/ik_llama.cpp at commit
17f85ce6430283f3b476e78974f7a1bc3f731c57. Its setup: Dell PowerEdge R740, 2x Xeon Gold 6248R (24 cores each, two nodes),
DDR4 at 2400 MT/s with all 12 channels populated, ``numa_balancing`` off, ``llama-bench -rtr 1 -b 16 -ub 16 -p 512
-n 128 -r 3``, ``--numa isolate -t 24`` against ``--numa mirror -t 48``.
"""

from __future__ import annotations

from dataclasses import dataclass

from forkyard.numamodel.machine import peak_bandwidth

CHANNELS = 6
"""Memory channels of a Xeon Gold 6248R; the table's machine has all of them populated."""
MEGA_TRANSFERS = 2400
"""Of the table's memory; the processor could drive 2933."""
PEAK = peak_bandwidth(CHANNELS, MEGA_TRANSFERS)
"""Bytes per second of one socket: 115.2 GB/s."""
SOCKETS = 2
PROMPT_BATCH = 16
"""Tokens of a batch in the prompt test: ``-b 16 -ub 16``."""
SOURCE = "https://github.com/mikechambers84/ik_llama.cpp/tree/numa-mirror"


@dataclass(frozen=True)
class Row:
    """One row: a model and a test, tokens per second."""

    model: str
    """A name of :data:`forkyard.numamodel.architecture.WORKLOADS`."""
    test: str
    """``tg128`` or ``pp512``."""
    isolate: float
    """One socket, 24 threads."""
    mirror: float
    """Both sockets, 48 threads, weights and KV cache on both."""

    @property
    def batch(self) -> int:
        """Tokens that are computed at once."""
        return 1 if self.test == "tg128" else PROMPT_BATCH

    @property
    def gain(self) -> float:
        """Mirror to isolate."""
        return self.mirror / self.isolate


ROWS = (
    Row("gemma-4-E2B Q5_K_M", "tg128", 47.20, 62.00),
    Row("gemma-4-E4B Q5_K_M", "tg128", 23.77, 33.62),
    Row("gemma-4-26B-A4B UD-Q4_K_M", "tg128", 23.59, 34.76),
    Row("Qwen3.6-27B Q4_K_M", "tg128", 5.27, 8.32),
    Row("Qwen3.6-35B-A3B UD-Q5_K_M", "tg128", 24.70, 31.56),
    Row("Qwen3.5-122B-A10B UD-Q3_K_XL", "tg128", 10.00, 14.46),
    Row("gemma-4-E2B Q5_K_M", "pp512", 259.90, 256.69),
    Row("gemma-4-E4B Q5_K_M", "pp512", 141.88, 184.06),
    Row("gemma-4-26B-A4B UD-Q4_K_M", "pp512", 143.41, 201.69),
    Row("Qwen3.6-27B Q4_K_M", "pp512", 33.04, 54.22),
    Row("Qwen3.6-35B-A3B UD-Q5_K_M", "pp512", 153.68, 193.21),
    Row("Qwen3.5-122B-A10B UD-Q3_K_XL", "pp512", 57.17, 83.01),
)
