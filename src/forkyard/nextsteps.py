"""Command lines a person is told to paste: complete, quoted, and the same from any folder.

Whatever else is said between them is a comment of the shell's, so that a whole list can be pasted.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from forkyard.network import without_secrets

_KINDS = ("git", "registry", "local")


def command(*words: str | Path, **options: str | Path | Sequence[str] | bool | None) -> str:
    """A command line of forkyard's.

    Args:
        words: the command and its arguments.
        options: by name, with ``_`` for ``-``. ``None`` and ``False`` are left out, ``True`` is a flag, of several
            values each is given.
    """
    line = ["forkyard", *map(_word, words)]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            line.append(option)
        elif isinstance(value, str | Path):
            line += [option, _word(value)]
        elif value:
            line += [part for one in value for part in (option, one)]
    return shlex.join(line)


def source_word(source: str | None) -> str | None:
    """What was given as ``--source``, as it can be given again from another folder; without secrets."""
    if source is None or source in _KINDS:
        return source
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else without_secrets(source)


def trying(out: Path, wheels: Sequence[str], engine: str) -> list[str]:
    """Command lines that install wheels of an output folder, by the beginnings of their names, and run one of them."""
    folder = shlex.quote(str(out.absolute()))
    # The version is left to the shell, which takes what lies there when this is pasted.
    files = " ".join(f"{folder}/{name}-*.whl" for name in ("forkyard_llm", *wheels))
    run = ["forkyard-llm", "generate", "-m", "smollm2-135m", "--engine", engine, "-p", "The capital of France is"]
    return [f"pip install {files}", shlex.join([*run, "-n", "32"])]


def _word(value: str | Path) -> str:
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value
