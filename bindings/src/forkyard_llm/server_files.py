"""Check every file that llama-server will open, before it starts: the model, and those its own options name."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from .gguf_check import DRAFT, EMBEDDINGS, PROJECTOR, RANKING, TEXT, check

__all__ = ["check_files"]


@dataclass(frozen=True)
class _FileOption:
    """An option of llama-server that names a file, what that must be for, and the variable that does the same.

    `several`: llama.cpp takes a list with commas there. `scaled`: a factor follows the name, after a colon
    (llama.cpp) or as an argument of its own (ik_llama.cpp).
    """

    names: tuple[str, ...]
    purposes: Set[str]
    variable: str = ""
    several: bool = False
    scaled: bool = False


_FILE_OPTIONS: Final = (
    _FileOption(("-mm", "--mmproj"), {PROJECTOR}, "LLAMA_ARG_MMPROJ"),
    _FileOption(
        ("-md", "--model-draft", "--spec-draft-model"),
        {TEXT, DRAFT},
        "LLAMA_ARG_SPEC_DRAFT_MODEL",
    ),
    _FileOption(("--lora",), {"adapter"}, several=True),
    _FileOption(("--lora-scaled",), {"adapter"}, several=True, scaled=True),
    _FileOption(("--control-vector",), {"control-vector"}, several=True),
    _FileOption(("--control-vector-scaled",), {"control-vector"}, several=True, scaled=True),
)
# With one of these the server is not, or not only, to write text.
_EMBEDDING_OPTIONS: Final = ("--embedding", "--embeddings", "--rerank", "--reranking", "--pooling")
_EMBEDDING_VARIABLES: Final = ("LLAMA_ARG_EMBEDDINGS", "LLAMA_ARG_RERANKING", "LLAMA_ARG_POOLING")


def check_files(model: Path, arguments: Sequence[str], environment: Mapping[str, str], *, engine: str) -> None:
    """Check `model` and the files that `arguments` and `environment` of the server of `engine` name.

    Raises ModelError, naming the file: it is missing, damaged, or for something else than the option.
    """
    embeds = any(argument.split("=", 1)[0] in _EMBEDDING_OPTIONS for argument in arguments)
    embeds = embeds or any(environment.get(name) for name in _EMBEDDING_VARIABLES)
    check(model, engine=engine, purposes={TEXT, EMBEDDINGS, RANKING} if embeds else {TEXT})
    for option, value in _given(arguments, environment):
        for path in _paths(option, value, engine):
            check(path, engine=engine, purposes=option.purposes)


def _given(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[tuple[_FileOption, str]]:
    options = {name: option for option in _FILE_OPTIONS for name in option.names}
    # The server complains about a last option without a value itself.
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if name in options and (equals or following):
            yield options[name], value if equals else following
    for option in _FILE_OPTIONS:
        if environment.get(option.variable):
            yield option, environment[option.variable]


def _paths(option: _FileOption, value: str, engine: str) -> Iterator[Path]:
    if engine != "llama.cpp" or not option.several:
        yield Path(value)
        return
    for item in next(csv.reader([value]), []):
        yield Path(item.rpartition(":")[0] if option.scaled and ":" in item else item)
