"""What a KV cache costs in quality and memory: llama-perplexity against the logits of the same engine with f16."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from .child import RunFailed, ended, stream
from .dialect import cause
from .engine import READER, Engine
from .running import engine_environment

__all__ = ["Quality", "Reading", "sample_text"]

RUN_TIMEOUT_S = 6 * 3600.0
"""Of one arm: a large model on a small machine, at a long context."""
BATCH = 512
_BUFFER = re.compile(r"KV (?:tail )?buffer size =\s*([\d.]+) MiB")
_MEAN = re.compile(r"^Mean\s+KLD:\s*(\S+)\s*±\s*(\S+)")
_QUANTILE = re.compile(r"^(Median|99\.9%)\s+KLD:\s*(\S+)")
_SAME = re.compile(r"^Same top p:\s*([\d.]+)\s*±")


@dataclass(frozen=True)
class Quality:
    """What one cache costs."""

    mib: float
    """MiB of the cache for a context of the measured size, copies of tokens included, on all devices."""
    mean: float | None = None
    """KL divergence of the next token's probabilities from those with f16, in nats; none for f16 itself."""
    error: float | None = None
    """Standard error of the mean."""
    median: float | None = None
    high: float | None = None
    """99.9 % of all tokens have less."""
    same: float | None = None
    """Percent of tokens whose likeliest successor is that of f16."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "cache_mib": self.mib,
            "kld_mean": self.mean,
            "kld_standard_error": self.error,
            "kld_median": self.median,
            "kld_99.9": self.high,
            "same_top_percent": self.same,
        }


@dataclass(frozen=True)
class Reading:
    """The text that is read, and how."""

    model: Path
    text: Path
    context: int
    """Tokens of a window."""
    windows: int
    gpu_layers: int
    environment: Mapping[str, str]
    """As of an arm: which devices there are."""
    log: Path

    def command(self, engine: Engine, words: Sequence[str], *ending: str) -> tuple[str, ...]:
        """The arguments for llama-perplexity."""
        # Upstream keeps the sizes of buffers to itself unless it is asked for more; ik_llama.cpp has no such option.
        more = ("-lv", "4") if engine.reads("-lv") else ()
        batch = str(min(BATCH, self.context))
        return (
            *(str(engine.bench.with_name(READER)), "-m", str(self.model), "-f", str(self.text)),
            *("-c", str(self.context), "-b", batch, "--chunks", str(self.windows), "-fa", "on"),
            *("-ngl", str(self.gpu_layers)),
            *more,
            *words,
            *ending,
        )

    def keep(self, engine: Engine, logits: Path) -> Quality:
        """Write the logits with an f16 cache, to compare with.

        Raises:
            RunFailed: the engine cannot do it.
        """
        return _quality(self._run(engine, self.command(engine, (), "--save-all-logits", str(logits))))

    def compare(self, engine: Engine, words: Sequence[str], logits: Path) -> Quality:
        """The quality with a cache that ``words`` ask for.

        Raises:
            RunFailed: the engine cannot do it, or says nothing of it that can be read.
        """
        command = self.command(engine, words, "--kl-divergence", "--kl-divergence-base", str(logits))
        lines = self._run(engine, command)
        found = _quality(lines)
        if found.mean is None:
            msg = f"{READER} failed"
            raise RunFailed(msg, f"{READER} says no KL divergence", self.log)
        return found

    def _run(self, engine: Engine, command: Sequence[str]) -> list[str]:
        lines: list[str] = []
        environment = engine_environment({**engine.environment, **self.environment})
        status = stream(command, log=self.log, on_line=lines.append, timeout_s=RUN_TIMEOUT_S, env=environment)
        if status != 0:
            msg = f"{READER} failed"
            raise RunFailed(msg, f"{ended(status)}: {cause(lines)}", self.log)
        return lines


def sample_text(folder: Path) -> Path:
    """A text of 700 KB that every Python has, written into `folder`: its help topics, one after the other."""
    path = folder / "topics.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return path


def _quality(lines: Sequence[str]) -> Quality:
    """What llama-perplexity of either engine printed."""
    mib = sum(float(match[1]) for line in lines if (match := _BUFFER.search(line)))
    mean = next((match for line in lines if (match := _MEAN.match(line))), None)
    if mean is None:
        return Quality(mib)
    quantiles = {match[1]: float(match[2]) for line in lines if (match := _QUANTILE.match(line))}
    same = next((float(match[1]) for line in lines if (match := _SAME.match(line))), None)
    return Quality(mib, float(mean[1]), float(mean[2]), quantiles.get("Median"), quantiles.get("99.9%"), same)
