"""What a guest sends back, line by line: `@forkyard CASE KIND BASE64`; everything else on the line is noise."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forkyard.guest.enginereport import EngineReport, read_report
from forkyard.guest.script import MARK

_PAGES = re.compile(r"\bN(\d+)=(\d+)\b")
_PAGE_KIB = re.compile(r"\bkernelpagesize_kB=(\d+)\b")


@dataclass
class Observation:
    """What came of one run; a part that did not arrive is missing from ``parts``."""

    parts: dict[str, bytes] = field(default_factory=dict)

    def text(self, kind: str) -> str:
        """A part as text, empty if it did not arrive."""
        return self.parts.get(kind, b"").decode("utf-8", "replace")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end and all was sent."""
        return "status" in self.parts

    @property
    def status(self) -> int:
        """Exit status of the server as a shell gives it: 128 and the number for a signal."""
        return int(self.text("status").split()[0])

    @property
    def state(self) -> str:
        """``answers``, ``refused`` (ended before it could be asked) or ``hangs``."""
        return self.text("status").split()[1]

    @property
    def seconds(self) -> int:
        """How long it took, of the guest's time."""
        return int(self.text("status").split()[2])

    def answer(self) -> dict[str, Any] | None:
        """The text of the answer with all that must not depend on NUMA; ``None`` without a whole answer."""
        try:
            found = json.loads(self.text("answer"))
            return {
                "content": found["content"],
                "tokens": found.get("tokens"),
                "probabilities": found.get("completion_probabilities"),
            }
        except (ValueError, KeyError, TypeError):
            return None

    def reports(self) -> list[EngineReport]:
        """The engine's reports.

        Raises:
            ValueError: one cannot be read.
        """
        return [read_report(line) for line in self.text("report").splitlines() if line.strip()]

    def nodes(self) -> dict[int, tuple[int, ...]]:
        """CPUs of each node, as the kernel had them when the run began."""
        rows = [line.split() for line in self.text("nodes").splitlines()]
        return {int(row[0]): cpu_list(row[2] if len(row) > 2 else "") for row in rows if row[1:2] == ["cpus"]}

    def mapped(self) -> dict[int, int]:
        """Bytes of the process on each node, as /proc/PID/numa_maps said after the answer."""
        return mapped_bytes(self.text("maps"))


def cpu_list(text: str) -> tuple[int, ...]:
    """Numbers of a list as the kernel writes it: ``0-2,5``."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def mapped_bytes(maps: str) -> dict[int, int]:
    """Bytes on each node of all mappings in a numa_maps file (proc(5))."""
    found: dict[int, int] = {}
    for line in maps.splitlines():
        size = _PAGE_KIB.search(line)
        for node, pages in _PAGES.findall(line):
            found[int(node)] = found.get(int(node), 0) + int(pages) * (int(size[1]) if size else 4) * 1024
    return found


@dataclass
class Intake:
    """Everything from one guest."""

    kernel: str | None = None
    done: bool = False
    observations: dict[str, Observation] = field(default_factory=dict)
    noise: list[str] = field(default_factory=list)
    """Lines that are not ours: QEMU's own words. The last of them."""

    def line(self, text: str) -> str | None:
        """Take a line.

        Returns:
            the name of a run that is complete with it.
        """
        text = text.strip("\r\n ")
        words = text.split(" ")
        if words[0] != MARK or len(words) not in (3, 4):
            if text:
                self.noise = [*self.noise, text][-20:]
            return None
        _, case, kind, *content = words
        try:
            data = base64.b64decode(content[0] if content else "", validate=True)
        except ValueError:  # not base64, or not even ASCII
            self.noise = [*self.noise, text[:200]][-20:]
            return None
        if case == "-":
            if kind == "kernel":
                self.kernel = data.decode("utf-8", "replace").strip()
            self.done |= kind == "done"
            return None
        self.observations.setdefault(case, Observation()).parts[kind] = data
        return case if kind == "status" else None

    def seen(self) -> Mapping[str, Observation]:
        """Runs that came to their end."""
        return {name: one for name, one in self.observations.items() if one.finished}
