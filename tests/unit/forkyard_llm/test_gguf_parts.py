"""Split models: every file the engine will open by itself is checked like the first, and the message names it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from forkyard_llm.errors import ModelError
from forkyard_llm.gguf_check import TEXT, check

from .gguf_bytes import I32, U16, U32, gguf, scalar, string, tensor, u32

COUNT = 3


def part(
    number: int, *more: bytes, count: int = COUNT, tensors: int = COUNT, name: bytes | None = None, first: bool = True
) -> bytes:
    """A part with one tensor, as llama-gguf-split makes them: only the first one has the model's metadata."""
    values = [
        scalar("split.no", U16, number),
        scalar("split.count", U16, count),
        scalar("split.tensors.count", I32, tensors),
    ]
    if number == 0 and first:
        values.insert(0, string(b"general.architecture", b"llama"))
    return gguf([*values, *more], [tensor(name or b"t%d" % number, [8], 0, 0)], b"\0" * 32)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"m-{number + 1:05}-of-{COUNT:05}.gguf" for number in range(COUNT)]
    for number, path in enumerate(paths):
        path.write_bytes(part(number))
    return paths


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check(path)
    return str(caught.value)


def test_a_sound_split(parts: list[Path]) -> None:
    assert check(parts[0], purposes={TEXT}).architecture == "llama"


def test_a_first_part_without_tensors_is_no_vocabulary(parts: list[Path]) -> None:
    values = [string(b"general.architecture", b"llama"), string(b"tokenizer.ggml.model", b"llama")]
    split = [scalar("split.no", U16, 0), scalar("split.count", U16, COUNT), scalar("split.tensors.count", I32, 2)]
    parts[0].write_bytes(gguf([*values, *split]))
    for number in (1, 2):
        parts[number].write_bytes(part(number, tensors=2))
    check(parts[0], purposes={TEXT})


def test_a_merged_model_is_not_split(tmp_path: Path) -> None:
    """llama-gguf-split leaves the keys in what it merges, with a count of 0."""
    path = tmp_path / "merged.gguf"
    path.write_bytes(part(0, count=0))
    check(path)


def test_alignment_of_a_later_part(parts: list[Path]) -> None:
    parts[1].write_bytes(part(1, u32(b"general.alignment", 0)))
    assert refused(parts[0]).startswith(f"{parts[1]}: general.alignment is 0")


@pytest.mark.parametrize("number", [1, 2])
def test_a_truncated_part(parts: list[Path], number: int) -> None:
    parts[number].write_bytes(part(number)[:-1])
    assert refused(parts[0]).startswith(f"{parts[number]}: ")


def test_a_missing_part(parts: list[Path]) -> None:
    parts[2].unlink()
    said = refused(parts[0])
    assert f"the model has 3 parts, and {parts[2].name} is not beside the first one" in said


def test_the_second_part_given(parts: list[Path]) -> None:
    assert f"this is part 2 of 3 of a split model; give the first, {parts[0].name}" in refused(parts[1])


def test_a_renamed_first_part(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    assert "its name, which must end in -00001-of-00003.gguf" in refused(renamed)


def test_the_same_part_twice(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])
    said = refused(parts[0])
    assert said.startswith(f"{parts[2]}: by its name this is part 3 of 3, but it says it is part 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (part(1, count=4), "the first part says there are 3 parts, this one 4"),
        (part(1, tensors=9), "a part of another model"),
        (part(1, string(b"general.architecture", b"qwen2")), "a part of a qwen2 model"),
        (part(1, name=b"t0"), "the tensor t0 is in m-00001-of-00003.gguf, too"),
        (gguf([], [tensor(b"t1", [8], 0, 0)], b"\0" * 32), "says nothing of being part 2 of 3"),
        (b"<html>", "a web page"),
        (b"", "it is empty"),
    ],
)
def test_a_part_of_something_else(parts: list[Path], content: bytes, message: str) -> None:
    parts[1].write_bytes(content)
    said = refused(parts[0])
    assert said.startswith(f"{parts[1]}: ")
    assert message in said


def test_tensors_that_no_part_has(parts: list[Path]) -> None:
    for number, path in enumerate(parts):
        path.write_bytes(part(number, tensors=4))
    assert "split.tensors.count is 4, but the 3 parts have 3 tensors" in refused(parts[0])


@pytest.mark.parametrize("key", ["split.no", "split.count"])
def test_keys_of_another_type(parts: list[Path], key: str) -> None:
    """The engines read these with functions that end the process for any other type."""
    values = {"split.no": 1, "split.count": COUNT}
    kept = [scalar(name, U16, value) for name, value in values.items() if name != key]
    wrong = scalar(key, U32, values[key])
    parts[1].write_bytes(gguf([*kept, wrong], [tensor(b"t1", [8], 0, 0)], b"\0" * 32))
    assert f"{key} is uint32, not uint16" in refused(parts[0])


def test_parts_that_are_no_files(parts: list[Path]) -> None:
    parts[1].unlink()
    os.mkfifo(parts[1])
    assert refused(parts[0]).startswith(f"{parts[1]} is not a regular file")
    parts[1].unlink()
    parts[1].mkdir()
    assert refused(parts[0]).startswith(f"{parts[1]} is not a regular file")
    parts[1].rmdir()
    parts[1].symlink_to("/dev/zero")
    assert refused(parts[0]).startswith(f"{parts[1]} is not a regular file")


def test_parts_behind_symbolic_links(parts: list[Path]) -> None:
    for path in parts:
        moved = path.rename(path.with_name(f"blob-{path.stem}"))
        path.symlink_to(moved)
    check(parts[0])
    parts[1].unlink()
    parts[1].symlink_to("gone")
    assert f"{parts[1].name} is not beside the first one" in refused(parts[0])


def test_more_parts_than_any_model(parts: list[Path]) -> None:
    parts[0].write_bytes(part(0, count=60000))
    assert "split.count is 60000" in refused(parts[0])
