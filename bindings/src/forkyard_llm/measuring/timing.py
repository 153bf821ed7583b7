"""Which tests are run at which depths, and how each engine's llama-bench is asked for them."""

from __future__ import annotations

from dataclasses import dataclass

from .dialect import at_depth
from .engine import Engine

__all__ = ["Timing", "tests_of"]


def tests_of(prompt: int, generate: int) -> tuple[str, ...]:
    """Names of a prompt test and of a generation test, as in llama-bench's tables; 0 tokens make none."""
    return tuple(f"{kind}{count}" for kind, count in (("pp", prompt), ("tg", generate)) if count)


@dataclass(frozen=True)
class Timing:
    """Which tests are run at which depths."""

    prompt: int
    generate: int
    depths: tuple[int, ...] = (0,)
    """Tokens in the KV cache before a test begins."""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of all tests, in the order of a table's columns."""
        return tuple(at_depth(test, depth) for depth in self.depths for test in tests_of(self.prompt, self.generate))

    def absent(self, engine: Engine, label: str) -> dict[str, str]:
        """Test -> why the engine's llama-bench cannot time it; ``label`` is the engine's name in the reason."""
        if engine.depths or not self.prompt:
            return {}
        why = f"the llama-bench of {label} times no prompt after another"
        return {at_depth(f"pp{self.prompt}", depth): why for depth in self.depths if depth}

    def words(self, engine: Engine) -> tuple[str, ...]:
        """The arguments for llama-bench."""
        if engine.depths:
            depths = ",".join(map(str, self.depths))
            return ("-p", str(self.prompt), "-n", str(self.generate), "-d", depths)
        at_once = 0 in self.depths
        words = ["-p", str(self.prompt if at_once else 0), "-n", str(self.generate if at_once else 0)]
        # Generation after a prompt that is not timed.
        later = [depth for depth in self.depths if depth and self.generate]
        return (*words, *(word for depth in later for word in ("-gp", f"{depth},{self.generate}")))
