"""The scenario ``numa`` as data: which modes it compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .engine import Engine
from .records import Arm
from .timing import tests_of

_FAKE = "GGML_NUMA_FAKE_NODES"


@dataclass(frozen=True)
class Mode:
    """One way to use the memory nodes."""

    name: str
    """The word after ``--numa``."""
    all_nodes: bool
    """Whether threads run on all nodes, or on one."""
    mapped: bool
    """Whether the model file is mapped; otherwise it is read into memory of its own."""
    about: str

    def threads(self, per_node: int, nodes: int) -> int:
        """Threads of this mode."""
        return per_node * (nodes if self.all_nodes else 1)


MODES = {
    mode.name: mode
    for mode in (
        Mode("isolate", all_nodes=False, mapped=False, about="one node's threads and memory"),
        # Read into memory, all of it would lie where the thread that read it ran. Mapped, a page comes to the node
        # whose thread touches it first.
        Mode("distribute", all_nodes=True, mapped=True, about="all nodes' threads, pages where first touched"),
        Mode("mirror", all_nodes=True, mapped=False, about="all nodes' threads, a copy on every node"),
        Mode("split", all_nodes=True, mapped=False, about="all nodes' threads, each slice where it is used"),
    )
}
"""By name, in the order of the table's columns."""

BASELINE = "isolate"
"""What gains are relative to, if it is among the modes."""


@dataclass(frozen=True)
class Scenario:
    """What is measured."""

    modes: tuple[Mode, ...]
    prompt: int
    """Tokens of the prompt test; 0 for none."""
    generate: int
    """Tokens of the generation test; 0 for none."""
    rounds: int
    """How often every mode is run."""
    threads_per_node: int
    nodes: int
    """Nodes that are used: real ones, or pretended."""
    fake: bool
    """Whether the nodes are pretended."""
    extra: tuple[str, ...] = ()
    """More arguments for llama-bench, the same for every mode."""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the tests, as in llama-bench's tables."""
        return tests_of(self.prompt, self.generate)

    def arms(self, engine: Engine, model: Path) -> tuple[Arm, ...]:
        """The llama-bench commands of a round."""
        return tuple(self._arm(engine, mode, model) for mode in self.modes)

    def _arm(self, engine: Engine, mode: Mode, model: Path) -> Arm:
        command = (
            str(engine.bench),
            *("-m", str(model)),
            *("--numa", mode.name),
            *("-t", str(mode.threads(self.threads_per_node, self.nodes))),
            *("-p", str(self.prompt)),
            *("-n", str(self.generate)),
            *("-r", "1"),
            *engine.load[mode.mapped],
            *self.extra,
            *("-o", "json"),
        )
        return Arm(
            name=mode.name,
            command=command,
            tests=self.tests,
            choice=f"--numa {mode.name}",
            environment={_FAKE: str(self.nodes)} if self.fake else {},
            mapped=mode.mapped,
        )
