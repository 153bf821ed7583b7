"""The scenario ``numa`` as data: which modes of ``--numa`` are compared, and how each is run."""

from __future__ import annotations

from dataclasses import dataclass


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
        named = (("pp", self.prompt), ("tg", self.generate))
        return tuple(f"{kind}{count}" for kind, count in named if count)

    def order(self, number: int) -> tuple[Mode, ...]:
        """The modes in the order of round ``number``: each round begins with another, so that drift favours none."""
        first = number % len(self.modes)
        return self.modes[first:] + self.modes[:first]
