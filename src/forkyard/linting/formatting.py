"""The rule that lines we add are as upstream's clang-format would write them, where upstream has a .clang-format.

Only a line of ours that would itself change is a finding: upstream's own code is far from clean.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from forkyard.errors import BuildError, ToolchainError
from forkyard.linting.excerpts import excerpt
from forkyard.linting.model import Finding
from forkyard.linting.origins import Origin, Origins
from forkyard.linting.remembering import Answer, Memory
from forkyard.linting.upstream_style import UpstreamStyle
from forkyard.process import clean_environment, run

TIMEOUT_S = 60.0
_SHOWN = 8
_AT_ONCE = 2


@dataclass(frozen=True)
class _Change:
    """Consecutive lines of a file that clang-format would write in another way."""

    first: int
    """Index of the first line of ours in it."""
    wanted: tuple[str, ...]


@functools.cache
def program() -> Path:
    """The clang-format that came with forkyard: one version, so that it says the same on every machine.

    Raises:
        ToolchainError: it is not installed.
    """
    package = importlib.util.find_spec("clang_format")
    if package is None or package.origin is None:
        msg = "clang-format is not installed"
        raise ToolchainError(msg, next_step="install forkyard with its dependencies")
    # The package's own entry point is Python; the program beside it starts ten times as fast.
    return Path(package.origin).parent / "data" / "bin" / "clang-format"


@functools.cache
def _version() -> str:
    return importlib.metadata.version("clang-format")


def check(
    style: UpstreamStyle, memory: Memory, contents: Mapping[str, bytes], traced: Mapping[str, Origins]
) -> Iterator[Finding]:
    """All findings about the format of lines of ours.

    Args:
        memory: what it said in earlier runs.
        contents: files of the patched tree, by path.
        traced: the origins of their lines.
    """
    paths = [path for path in sorted(traced) if path in contents and style.formats(path)]

    def examine(path: str) -> list[_Change] | str:
        lines = contents[path].split(b"\n")
        lines = lines[:-1] if not lines[-1] else lines
        if len(lines) != len(traced[path]):
            return "the patches do not account for every line of it"
        try:
            return _changes(style, memory, path, lines, traced[path])
        except (BuildError, ToolchainError) as error:
            return error.why or error.what

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for path, outcome in zip(paths, pool.map(examine, paths), strict=True):
            origins = traced[path]
            if isinstance(outcome, str):
                first = next(item for item in origins if item is not None)
                yield first.place.finding(
                    "not-checked",
                    "warning",
                    first.line,
                    f"clang-format could not look at {path}",
                    outcome,
                    "format it by hand; a style option clang-format does not know needs another version of it",
                )
                continue
            for change in outcome:
                origin = origins[change.first]
                assert origin is not None
                yield _finding(path, origin, change)


def _finding(path: str, origin: Origin, change: _Change) -> Finding:
    text = "\n".join(change.wanted[:_SHOWN]) if change.wanted else "(no such lines)"
    more = f"\n({len(change.wanted) - _SHOWN} more lines)" if len(change.wanted) > _SHOWN else ""
    return origin.place.finding(
        "clang-format",
        "warning",
        origin.line,
        f"clang-format would write what we add to {path} in another way",
        "upstream asks for its .clang-format on lines that are new",
        f"write:\n{text}{more}",
    )


def _changes(
    style: UpstreamStyle, memory: Memory, path: str, lines: Sequence[bytes], origins: Origins
) -> list[_Change]:
    ours = [index for index, origin in enumerate(origins) if origin is not None]
    part = excerpt(lines, ours)
    mine = [index is not None and origins[index] is not None for _, index in part]
    text = b"".join(line + b"\n" for line, _ in part)
    runs = [] if all(mine) else [f"--lines={start + 1}:{end}" for start, end in _runs(mine)]
    facts = "\0".join([_version(), style.format_digest, path, *runs]).encode("utf-8", "surrogateescape")
    key = hashlib.sha256(facts + b"\0\0" + text).hexdigest()
    answer = memory.get(key)
    if answer is None:
        answer = _ask(style, path, text, runs, mine)
        memory.put(key, answer)
    found = []
    for place, wanted in answer:
        index = part[place][1] if place < len(part) else None
        if index is not None and origins[index] is not None:
            found.append(_Change(index, tuple(wanted)))
    return found


def _ask(style: UpstreamStyle, path: str, text: bytes, runs: Sequence[str], mine: Sequence[bool]) -> Answer:
    """What clang-format would write in the place of lines of ours, by the first of them."""
    options = ["--style=file", "--fallback-style=none", f"--assume-filename={style.folder / path}"]
    done = run(
        [str(program()), *options, *runs], timeout_s=TIMEOUT_S, cwd=style.folder, env=clean_environment(), stdin=text
    )
    if done.returncode != 0:
        msg = "clang-format failed"
        raise ToolchainError(msg, where=path, why=done.stderr.strip()[-400:] or f"exit status {done.returncode}")
    old = text.decode("utf-8", "replace").split("\n")[:-1]
    new = done.stdout.split("\n")[:-1]
    answer: Answer = []
    for kind, start, end, first, last in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            continue
        if start == end:
            # Between two lines of ours: a brace or an empty line that the style wants.
            touched = [start] if 0 < start < len(mine) and mine[start - 1] and mine[start] else []
        else:
            touched = [place for place in range(start, end) if mine[place]]
        if touched:
            answer.append((touched[0], new[first:last]))
    return answer


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive true flags."""
    runs: list[tuple[int, int]] = []
    for place, flag in enumerate(flags):
        if flag and runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        elif flag:
            runs.append((place, place + 1))
    return runs
