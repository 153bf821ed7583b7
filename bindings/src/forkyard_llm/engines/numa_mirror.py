"""The functions the stack `numa-mirror` adds to an engine's base library, and what they report as values.

The contract is that stack's ``ggml-numa-mirror.h``.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError

__all__ = [
    "CAPABILITY",
    "SPLIT_STRATEGY",
    "NumaCopy",
    "NumaMirror",
    "NumaNode",
    "NumaRange",
    "NumaReport",
    "read_report",
]

CAPABILITY = "numa-mirror"
"""What a payload with these functions can do, by name."""

SPLIT_STRATEGY = 5
"""``GGML_NUMA_STRATEGY_SPLIT``: a macro of the header, not a member of upstream's enum."""

# Present exactly where the others are.
_MARK = "ggml_numa_mirror_start"
_FIRST_BYTES = 16384


@dataclass(frozen=True)
class NumaNode:
    """One node, and the bytes of weights and state that its threads have read since the last reset.

    The engine computes them from the shapes of tensors; they are not a hardware counter.
    """

    id: int
    """The kernel's number of the node."""
    cpus: int
    """CPUs of the node that the process may use."""
    local_bytes: int
    """Read from this node's own memory."""
    remote_bytes: int
    """Read from other nodes' memory."""

    @property
    def local_share(self) -> float | None:
        """Local bytes of all bytes, from 0 to 1; None where nothing was read."""
        total = self.local_bytes + self.remote_bytes
        return self.local_bytes / total if total else None


@dataclass(frozen=True)
class NumaCopy:
    """One node's copy of a range."""

    node: int
    """The kernel's number of the node."""
    primary: bool
    """Whether it is the range itself, which lies on this node already."""
    pages: int
    """Its pages."""
    pages_here: int
    """Those of them the kernel says are on the node."""


@dataclass(frozen=True)
class NumaRange:
    """One buffer of weights (``weights``) or of KV cache and recurrent state (``kv``)."""

    kind: str
    bytes: int
    mirrored: bool
    """Whether there is a copy for every node."""
    copies: tuple[NumaCopy, ...]
    """One for each node; empty if not mirrored."""
    differs: int
    """Bytes in which copies differ from the range; 0 unless something is wrong."""
    slice_pages: int = 0
    """Split: its pages; 0 in a range that is not split."""
    slice_pages_here: int = 0
    """Split: those of them that lie on the node whose threads compute their rows."""


@dataclass(frozen=True)
class NumaReport:
    """Where the weights and the state of all models of a payload are."""

    mode: str
    """``mirror``, ``split`` or ``off``."""
    nodes: tuple[NumaNode, ...]
    ranges: tuple[NumaRange, ...]
    fake: bool = False
    """Whether the nodes are pretended ones (``GGML_NUMA_FAKE_NODES``)."""


class NumaMirror:
    """The functions of one engine, bound; their state is that of the process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        counter = ctypes.POINTER(ctypes.c_uint64)
        self._set = _function(library, "ggml_numa_mirror_set", None, ctypes.c_int)
        self._n_nodes = _function(library, "ggml_numa_mirror_n_nodes", ctypes.c_int)
        self._counters = _function(library, "ggml_numa_mirror_counters", None, ctypes.c_int, counter, counter)
        self._reset = _function(library, "ggml_numa_mirror_reset_counters", None)
        self._report = _function(library, "ggml_numa_mirror_report", ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
        self._nodes: tuple[NumaNode, ...] = ()

    @staticmethod
    def find(libraries: Iterable[ctypes.CDLL]) -> NumaMirror | None:
        """The functions, from the first library that exports them; None if none does.

        Raises:
            EngineError: only some of them are there.
        """
        for library in libraries:
            try:
                library[_MARK]
            except AttributeError:
                continue
            return NumaMirror(library)
        return None

    def set(self, bits: int) -> None:
        """What is mirrored of the models loaded from now on, as bits of ``ggml_numa_mirror_what``."""
        self._set(bits)

    def n_nodes(self) -> int:
        """Nodes in use; 0 while mirror and split are off."""
        return int(self._n_nodes())

    def counters(self) -> list[NumaNode]:
        """What each node's threads have read so far; costs next to nothing."""
        count = self.n_nodes()
        if len(self._nodes) != count:
            # Ids and CPUs never change, and the report, which has them, looks at every page there is.
            self._nodes = self.report().nodes
        nodes = []
        local, remote = ctypes.c_uint64(), ctypes.c_uint64()
        for index, node in enumerate(self._nodes):
            self._counters(index, ctypes.byref(local), ctypes.byref(remote))
            nodes.append(NumaNode(node.id, node.cpus, local.value, remote.value))
        return nodes

    def reset_counters(self) -> None:
        """Set all counters to zero."""
        self._reset()

    def report(self) -> NumaReport:
        """Ask the kernel where every page is and compare all copies: seconds for a large model."""
        size = _FIRST_BYTES
        while True:
            text = ctypes.create_string_buffer(size)
            length = int(self._report(text, size))
            if length < size:
                return read_report(text.value.decode("utf-8", "replace"))
            # Counters may have more digits by the next call.
            size = length + 1024


def read_report(text: str) -> NumaReport:
    """The values of the JSON that ``ggml_numa_mirror_report`` writes.

    Raises:
        EngineError: it is not what the header describes.
    """
    try:
        body = json.loads(text)
        return NumaReport(
            mode=str(body["mode"]),
            nodes=tuple(
                NumaNode(int(node["id"]), int(node["cpus"]), int(node["local"]), int(node["remote"]))
                for node in body["nodes"]
            ),
            ranges=tuple(_range(entry) for entry in body["ranges"]),
            fake=bool(body.get("fake", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        msg = f"the engine's NUMA report cannot be read ({error!r}): {text[:200]!r}; update forkyard-llm"
        raise EngineError(msg) from error


def _range(entry: dict[str, Any]) -> NumaRange:
    return NumaRange(
        kind=str(entry["kind"]),
        bytes=int(entry["bytes"]),
        mirrored=bool(entry["mirrored"]),
        copies=tuple(
            NumaCopy(int(copy["id"]), bool(copy["alias"]), int(copy["pages"]), int(copy["here"]))
            for copy in entry["node"]
        ),
        differs=int(entry["differs"]),
        slice_pages=int(entry.get("slices_pages", 0)),
        slice_pages_here=int(entry.get("slices_here", 0)),
    )


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    try:
        # By name, not as an attribute: types set on this object stay on it.
        function = library[name]
    except AttributeError as error:
        msg = f"{library._name} has {_MARK}, but no {name}; reinstall the payload"
        raise EngineError(msg) from error
    function.restype = result
    function.argtypes = arguments
    return function
