"""What a patched engine says about its copies: a line of JSON whenever a buffer ends (GGML_NUMA_MIRROR_REPORT)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PAGE = 4096
"""Bytes of a page of the guest (x86-64); the engine counts huge pages as so many of these."""


@dataclass(frozen=True)
class NodeUse:
    """A node the engine uses, and the bytes its threads read."""

    id: int
    cpus: int
    local: int
    remote: int


@dataclass(frozen=True)
class Copy:
    """What serves one node: a copy of a buffer, or the buffer itself."""

    node: int
    alias: bool
    """It is the buffer itself, because that lies on the node."""
    pages: int
    here: int
    """Pages the kernel says are on the node."""


@dataclass(frozen=True)
class Buffer:
    """A registered buffer."""

    kind: str
    """``weights`` or ``kv``."""
    bytes: int
    mirrored: bool
    copies: tuple[Copy, ...]
    differs: int
    """Bytes of copies that are not as in the buffer."""
    slices_pages: int = 0
    """Pages that were to be moved to the node that computes their rows."""
    slices_here: int = 0
    """Those that are there."""


@dataclass(frozen=True)
class EngineReport:
    """One line."""

    mode: str
    nodes: tuple[NodeUse, ...]
    buffers: tuple[Buffer, ...]

    @property
    def kinds(self) -> set[str]:
        """Kinds of buffers in it."""
        return {buffer.kind for buffer in self.buffers}


def read_report(line: str) -> EngineReport:
    """Read a line; members that are not known here are passed over.

    Raises:
        ValueError: it is not such a line; says what is wrong.
    """
    try:
        found = json.loads(line)
        return EngineReport(
            mode=_text(found["mode"]),
            nodes=tuple(
                NodeUse(_number(node["id"]), _number(node["cpus"]), _number(node["local"]), _number(node["remote"]))
                for node in found["nodes"]
            ),
            buffers=tuple(_buffer(one) for one in found["ranges"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"the engine's report cannot be read ({type(error).__name__}: {error}): {line[:200]}"
        raise ValueError(msg) from None


def fullest(reports: Sequence[EngineReport]) -> EngineReport | None:
    """The last of those with the most buffers: what there was before the engine began to free them."""
    most = max((len(report.buffers) for report in reports), default=0)
    return next((report for report in reversed(reports) if len(report.buffers) == most), None)


def _buffer(found: dict[str, Any]) -> Buffer:
    if found["kind"] not in ("weights", "kv") or not isinstance(found["mirrored"], bool):
        msg = f"unknown kind {found['kind']!r}, or mirrored is no truth value"
        raise ValueError(msg)
    return Buffer(
        kind=found["kind"],
        bytes=_number(found["bytes"]),
        mirrored=found["mirrored"],
        copies=tuple(
            Copy(_number(copy["id"]), bool(copy["alias"]), _number(copy["pages"]), _number(copy["here"]))
            for copy in found["node"]
        ),
        differs=_number(found["differs"]),
        slices_pages=_number(found.get("slices_pages", 0)),
        slices_here=_number(found.get("slices_here", 0)),
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        msg = f"{value!r} is no count"
        raise ValueError(msg)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        msg = f"{value!r} is no text"
        raise TypeError(msg)
    return value
