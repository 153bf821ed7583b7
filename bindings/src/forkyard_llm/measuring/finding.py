"""Find what is to be measured: an installed payload by its name, a wheel, a folder, or the llama-bench of any build."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..cache import expanded
from ..errors import UsageError
from ..payloads import Payload
from ..selection import select, survey
from .engine import MANIFEST, TOOL, Engine, examine

__all__ = ["each_usable", "engine_of", "found", "label_all", "unpack"]


def engine_of(payload: Payload) -> Engine:
    """An installed payload as an engine that is measured. Raises as :func:`forkyard_llm.measuring.engine.examine`."""
    return examine(payload.root, wheel=payload.title, environment=payload.environment())


def each_usable() -> list[Engine]:
    """Every payload that works here, of every instruction set, the best first."""
    return [engine_of(one.payload) for one in survey(refresh=False) if one.verdict.usable]


@contextlib.contextmanager
def found(word: str) -> Iterator[Engine]:
    """The engine that a word names, for the length of the block.

    Raises:
        UsageError: the word is a path, and there is nothing that can be measured.
        PayloadNotFound, PayloadRejected: it is the name of an engine or payload that is not here, or does not work.
    """
    path = expanded(word)
    if path.suffix == ".whl":
        with tempfile.TemporaryDirectory(prefix="forkyard-llm-") as folder:
            yield examine(unpack(path, Path(folder)), wheel=path.name)
    elif path.is_dir():
        bench = next((one for one in (path / TOOL, path / "bin" / TOOL) if one.is_file()), path)
        yield examine(path if (path / MANIFEST).is_file() else bench, wheel=path.name)
    elif path.is_file():
        yield examine(path, wheel=path.name)
    else:
        yield engine_of(select(word))


def unpack(wheel: Path, folder: Path) -> Path:
    """The package folder of a payload wheel, unpacked into `folder` with the modes of its files.

    Raises:
        UsageError: it is no wheel, or holds no payload.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                path = Path(archive.extract(info, folder))
                path.chmod((info.external_attr >> 16) & 0o777 or 0o644)
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        msg = f"{wheel} is no wheel: {error}"
        raise UsageError(msg) from error
    manifests: Sequence[Path] = list(folder.glob(f"*/{MANIFEST}"))
    if len(manifests) != 1:
        msg = f"{wheel.name} holds no payload"
        raise UsageError(msg)
    return manifests[0].parent


def label_all(engines: Sequence[Engine]) -> list[tuple[str, Engine]]:
    """Each engine with a name of its own: recipe, then variant, then build key, as far as it takes to tell them."""
    names = [one.recipe for one in engines]
    for longer in (_with_variant, _with_key):
        if len(set(names)) < len(names):
            names = [longer(one) if names.count(name) > 1 else name for name, one in zip(names, engines, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return list(zip(names, engines, strict=True))


def _with_variant(one: Engine) -> str:
    return f"{one.recipe} {one.variant}".strip()


def _with_key(one: Engine) -> str:
    return f"{_with_variant(one)} {one.build_key[:8]}".strip()
