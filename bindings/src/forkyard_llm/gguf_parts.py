"""Read all the files a split model has: the engines open the others by themselves, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from .errors import ModelError
from .gguf_reader import GgufSummary, fail, read, type_name

__all__ = ["read_parts"]

_NAME: Final = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NUMBER: Final = "split.no"
_COUNT: Final = "split.count"
_TENSORS: Final = "split.tensors.count"
# The engines read these with functions that abort on any other type.
_TYPES: Final = {_NUMBER: 2, _COUNT: 2, _TENSORS: 5}
_MAX_PARTS: Final = 1024  # the largest models have some tens


def read_parts(path: Path, *, engine: str | None = None) -> Sequence[GgufSummary]:
    """Every file of the model whose first one is `path`, in order; only that one if it is not split.

    Raises ModelError, naming the file, for what `gguf_reader.read` refuses in any of them, for a part that is
    missing, in the wrong place or of another model, and for a `path` that is not the first.
    """
    first = read(path, engine=engine)
    count = _split_value(first, _COUNT, 1)
    if count > _MAX_PARTS:
        _fail(first, _COUNT, f"{_COUNT} is {count}; a model has at most {_MAX_PARTS} parts")
    if count < 2:  # 0 in a file that llama-gguf-split merged
        return [first]
    number = _split_value(first, _NUMBER, 0)
    if number != 0:
        names = _names(path, count)
        which = f"give the first, {names[0].name}" if names else "give the first"
        _fail(first, _NUMBER, f"this is part {number + 1} of {count} of a split model; {which}")
    names = _names(path, count)
    if not names:
        ending = f"-00001-of-{count:05}.gguf"
        _fail(
            first,
            _COUNT,
            f"this is the first of {count} parts, and the engine finds the others by its name, which must end in"
            f" {ending}; give every part its old name",
        )
    missing = [name for name in names[1:] if not name.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        msg = (
            f"{path}: the model has {count} parts, and {missing[0].name} is not beside the first one{more};"
            " get all parts, into one folder"
        )
        raise ModelError(msg)
    parts = [first, *(_part(name, first, index, count, engine) for index, name in enumerate(names[1:], 1))]
    _check_tensors(parts)
    return parts


def _names(path: Path, count: int) -> list[Path]:
    """The names of all parts, made from that of one as the engines make them; none if it is no part's name."""
    found = _NAME.fullmatch(path.name)
    if found is None or int(found["count"]) != count:
        return []
    return [path.with_name(f"{found['prefix']}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1)]


def _part(name: Path, first: GgufSummary, index: int, count: int, engine: str | None) -> GgufSummary:
    part = read(name, engine=engine)
    if _NUMBER not in part.values:
        msg = f"{name}: this file says nothing of being part {index + 1} of {count} ({_NUMBER}); download it again"
        raise ModelError(msg)
    number = _split_value(part, _NUMBER, index)
    if number != index:
        _fail(
            part,
            _NUMBER,
            f"by its name this is part {index + 1} of {count}, but it says it is part {number + 1}; download it again",
        )
    theirs = _split_value(part, _COUNT, count)
    if theirs != count:
        _fail(part, _COUNT, f"the first part says there are {count} parts, this one {theirs}; get all from one place")
    if part.architecture not in (None, first.architecture):
        msg = f"{name}: a part of a {part.architecture} model, and the first part is of {first.architecture}"
        raise ModelError(msg)
    tensors = _split_value(first, _TENSORS, 0)
    theirs = _split_value(part, _TENSORS, tensors)
    if theirs != tensors:
        _fail(
            part,
            _TENSORS,
            f"a part of another model: it says that all parts have {theirs} tensors, the first part says {tensors}",
        )
    return part


def _check_tensors(parts: Sequence[GgufSummary]) -> None:
    owner: dict[str, GgufSummary] = {}
    for part in parts:
        twice = owner.keys() & part.shapes.keys()
        if twice:
            name = min(twice)
            msg = f"{part.path}: the tensor {name} is in {owner[name].path.name}, too; get all parts from one place"
            raise ModelError(msg)
        owner.update(dict.fromkeys(part.shapes, part))
    first = parts[0]
    if _TENSORS not in first.values:
        msg = f"{first.path}: a split model without {_TENSORS}; download it again"
        raise ModelError(msg)
    wanted = _split_value(first, _TENSORS, 0)
    if wanted != len(owner):
        _fail(first, _TENSORS, f"{_TENSORS} is {wanted}, but the {len(parts)} parts have {len(owner)} tensors")


def _split_value(part: GgufSummary, key: str, default: int) -> int:
    value = part.values.get(key)
    if value is None:
        return default
    if value.count is not None or value.kind != _TYPES[key] or not isinstance(value.data, int):
        what = f"an array of {type_name(value.kind)}" if value.count is not None else type_name(value.kind)
        _fail(part, key, f"{key} is {what}, not {type_name(_TYPES[key])}")
    return value.data


def _fail(part: GgufSummary, key: str, problem: str) -> NoReturn:
    fail(part.path, problem, part.values[key].offset)
