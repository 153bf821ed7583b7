"""The workload of a model file: its weights' shapes and sizes, read from the head of a GGUF.

Format: ``docs/gguf.md`` of https://github.com/ggml-org/ggml. Sizes are the distances between the weights' offsets, so
no table of storage types is needed, and types that nobody knew when this was written are measured as well.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkyard.errors import UsageError
from forkyard.numamodel.architecture import BARRIERS_PER_MATRIX
from forkyard.numamodel.tensors import Reading, Tensor
from forkyard.numamodel.workload import Workload, workload_of

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_ALIGNMENT = 32
_MOST = 1 << 32
"""No count in a file's head is larger; one that is means a damaged file."""


@dataclass(frozen=True)
class _Stored:
    """A weight as a file describes it."""

    name: str
    shape: tuple[int, ...]
    size: int


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._data, self.position)
        self.position += struct.calcsize(code)
        return value

    def count(self) -> int:
        value = int(self.number("<Q"))
        if value > _MOST:
            msg = f"a count of {value}"
            raise ValueError(msg)
        return value

    def text(self) -> str:
        length = self.count()
        start, self.position = self.position, self.position + length
        if self.position > len(self._data):
            msg = "a text beyond the end"
            raise ValueError(msg)
        return self._data[start : self.position].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value; of arrays only the length is kept."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        inner, length = self.number("<I"), self.count()
        if inner in _SCALARS:
            self.position += struct.calcsize(_SCALARS[inner]) * length
        else:
            for _ in range(length):
                self.value(inner)
        return length


def read_workload(path: Path) -> Workload:
    """The workload of a GGUF, its other parts found beside it.

    Barriers are estimated from the number of matrices, as in the models whose barriers were counted.

    Raises:
        UsageError: it is no such file, or a part is missing.
    """
    facts: dict[str, Any] = {}
    stored: list[_Stored] = []
    for part in _parts(path):
        found, weights = _read(part)
        facts = {**found, **facts}
        stored += weights
    arch = facts.get("general.architecture", "")
    tensors = list(_tensors(stored, facts, arch))
    used = int(facts.get(f"{arch}.expert_used_count", 0))
    layers = sum(weight.name.endswith(".ssm_out.weight") for weight in stored)
    state = 4.0 * facts.get(f"{arch}.ssm.inner_size", 0) * facts.get(f"{arch}.ssm.state_size", 0) * layers
    bare = workload_of(path.name, tensors, used=used, state=state, barriers=0.0)
    return workload_of(path.name, tensors, used=used, state=state, barriers=BARRIERS_PER_MATRIX * bare.matrices)


def _parts(path: Path) -> list[Path]:
    match = _PART.search(path.name)
    if match is None:
        return [path]
    stem, total = path.name[: match.start()], match.group(2)
    return [path.with_name(f"{stem}-{number:05d}-of-{total}.gguf") for number in range(1, int(total) + 1)]


def _read(path: Path) -> tuple[dict[str, Any], list[_Stored]]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _head(_Reader(data), len(data))
    except (ValueError, KeyError, struct.error, RecursionError) as error:
        msg = f"{path.name} is no GGUF model, or is damaged"
        raise UsageError(msg, where=str(path), why=str(error), next_step="name another file with --model") from error
    except OSError as error:
        msg = f"{path.name} cannot be read"
        raise UsageError(msg, where=str(path), why=str(error), next_step="name another file with --model") from error


def _head(reader: _Reader, length: int) -> tuple[dict[str, Any], list[_Stored]]:
    if reader.number("<4s") != b"GGUF":
        msg = "it does not begin with GGUF"
        raise ValueError(msg)
    if (version := reader.number("<I")) not in (2, 3):
        msg = f"version {version} is unknown"
        raise ValueError(msg)
    weights, entries = reader.count(), reader.count()
    facts: dict[str, Any] = {}
    for _ in range(entries):
        key = reader.text()
        facts[key] = reader.value(reader.number("<I"))
    described = []
    for _ in range(weights):
        name = reader.text()
        shape = tuple(reader.count() for _ in range(reader.number("<I")))
        reader.number("<I")
        described.append((int(reader.number("<Q")), name, shape))
    alignment = int(facts.get("general.alignment", _ALIGNMENT))
    start = -(-reader.position // alignment) * alignment
    described.sort()
    ends = [offset for offset, _, _ in described[1:]] + [length - start]
    stored = [_Stored(name, shape, end - offset) for (offset, name, shape), end in zip(described, ends, strict=True)]
    if any(weight.size < 0 for weight in stored):
        msg = "it ends before its weights do"
        raise ValueError(msg)
    return facts, stored


def _tensors(stored: list[_Stored], facts: Mapping[str, Any], arch: str) -> Iterator[Tensor]:
    tied = not any(weight.name == "output.weight" for weight in stored)
    # Layers that predict further tokens are in the file and not in the graph.
    layers = int(facts.get(f"{arch}.block_count", 0)) - int(facts.get(f"{arch}.nextn_predict_layers", 0))
    for weight in stored:
        block = _BLOCK.match(weight.name)
        values = math.prod(weight.shape)
        if not values:
            continue
        bits = weight.size * 8 / values
        inputs, outputs = weight.shape[0], values // weight.shape[0]
        matrix = len(weight.shape) > 1 and outputs > 1 and weight.name.endswith(".weight")
        if weight.name == "per_layer_token_embd.weight" or (block and layers and int(block.group(1)) >= layers):
            yield Tensor(Reading.LOOKUP, inputs, outputs, bits)
        elif weight.name == "token_embd.weight":
            yield Tensor(Reading.HEAD if tied else Reading.LOOKUP, inputs, outputs, bits)
        elif weight.name == "output.weight":
            yield Tensor(Reading.HEAD, inputs, outputs, bits)
        elif "_exps." in weight.name and len(weight.shape) == 3:
            yield Tensor(
                Reading.EXPERT,
                inputs,
                weight.shape[1],
                bits,
                experts=weight.shape[2],
                own_rows="down_exps" in weight.name,
            )
        else:
            yield Tensor(Reading.ALWAYS, inputs, outputs, bits, matrix=matrix and "conv1d" not in weight.name)
