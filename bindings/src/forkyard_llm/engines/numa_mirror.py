"""The functions the stack `numa-mirror` adds to an engine, and what they report as values.

The contract is that stack's ``ggml-numa-mirror.h``, which a payload's generated module describes.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import EngineError

__all__ = [
    "CAPABILITY",
    "NumaCopy",
    "NumaFailure",
    "NumaMirror",
    "NumaNode",
    "NumaRange",
    "NumaReport",
    "read_report",
]

CAPABILITY = "numa-mirror"
"""What a payload with these functions can do, by name."""

# Declared exactly where the others are.
_MARK = "ggml_numa_mirror_start"
_USED = (
    "ggml_numa_mirror_parse",
    "ggml_numa_mirror_set",
    "ggml_numa_mirror_take_failure",
    "ggml_numa_mirror_n_nodes",
    "ggml_numa_mirror_counters",
    "ggml_numa_mirror_reset_counters",
    "ggml_numa_mirror_report",
)
_CAUSES = "ggml_numa_mirror_cause"
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


@dataclass(frozen=True)
class NumaFailure:
    """Why a strategy has no effect, or why weights or state could not be placed."""

    cause: str
    """A name of ``ggml_numa_mirror_cause`` in lower case, without what all begin with: ``no_room``, ``refused``."""
    node: int | None
    """The kernel's number of the node; None if it is about no single one."""
    lacks: int
    """Bytes that could not be placed, or that have to be freed on the node."""
    reason: str
    """The engine's sentence."""


class NumaMirror:
    """The functions of one engine; their state is that of the process, failures are those of the calling thread.

    Args:
        abi: the payload's generated module.
        api: its functions, bound.
    """

    def __init__(self, abi: ModuleType, api: Any) -> None:
        self._abi, self._api = abi, api
        self._nodes: tuple[NumaNode, ...] = ()

    @staticmethod
    def find(abi: ModuleType, api: Any) -> NumaMirror | None:
        """The functions, None if the headers that the payload was built with do not declare them.

        Raises:
            EngineError: they are declared, but no library has them.
        """
        if _MARK not in api.missing and not hasattr(api, _MARK):
            return None
        absent = [name for name in (_MARK, *_USED) if name in api.missing or not hasattr(api, name)]
        if absent:
            msg = f"the payload's headers declare {_MARK}, but its libraries have no {absent[0]}; reinstall the payload"
            raise EngineError(msg)
        return NumaMirror(abi, api)

    def set(self, words: Iterable[str]) -> None:
        """What is mirrored of the models loaded from now on, in the engine's own words; forgets an old failure.

        Raises:
            EngineError: the engine does not know one of them.
        """
        bits = ctypes.c_int()
        text = ",".join(words)
        if not self._api.ggml_numa_mirror_parse(text.encode(), ctypes.byref(bits)):
            msg = (
                f"this payload's engine does not know the words {text!r} for what to mirror; update it or forkyard-llm"
            )
            raise EngineError(msg)
        self._api.ggml_numa_mirror_set(bits.value)
        self.take_failure()

    def take_failure(self) -> NumaFailure | None:
        """The last failure on this thread, told once; None if there was none since."""
        failure = self._abi.ggml_numa_mirror_failure()
        if not self._api.ggml_numa_mirror_take_failure(ctypes.byref(failure)):
            return None
        names = {number: name for name, number in self._abi.ENUMS[_CAUSES].items()}
        return NumaFailure(
            cause=names.get(failure.cause, "").removeprefix("GGML_NUMA_CAUSE_").lower(),
            node=None if failure.node < 0 else int(failure.node),
            lacks=int(failure.lacks),
            reason=failure.reason.decode("utf-8", "replace"),
        )

    def n_nodes(self) -> int:
        """Nodes in use; 0 while mirror and split are off."""
        return int(self._api.ggml_numa_mirror_n_nodes())

    def counters(self) -> list[NumaNode]:
        """What each node's threads have read so far; costs next to nothing."""
        count = self.n_nodes()
        if len(self._nodes) != count:
            # Ids and CPUs never change, and the report, which has them, looks at every page there is.
            self._nodes = self.report().nodes
        nodes = []
        local, remote = ctypes.c_uint64(), ctypes.c_uint64()
        for index, node in enumerate(self._nodes):
            self._api.ggml_numa_mirror_counters(index, ctypes.byref(local), ctypes.byref(remote))
            nodes.append(NumaNode(node.id, node.cpus, local.value, remote.value))
        return nodes

    def reset_counters(self) -> None:
        """Set all counters to zero."""
        self._api.ggml_numa_mirror_reset_counters()

    def report(self) -> NumaReport:
        """Ask the kernel where every page is and compare all copies: seconds for a large model."""
        size = _FIRST_BYTES
        while True:
            text = ctypes.create_string_buffer(size)
            length = int(self._api.ggml_numa_mirror_report(text, size))
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
