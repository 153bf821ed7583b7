"""From an exported series to the files of the project that change: patches, the series file, whole files of ours."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from forkyard.cache import explained
from forkyard.journal import Changes
from forkyard.scratch import owned_folder
from forkyard.stacks.exporting import Exported
from forkyard.stacks.listing import read_listing, write_listing
from forkyard.stacks.model import Stack
from forkyard.stacks.patchfile import added_file_sources


def series_changes(
    changes: Changes,
    root: Path,
    stack: Stack,
    engine: str,
    exported: Exported,
    *,
    renamed: Mapping[str, str] | None = None,
    gone: Collection[str] = (),
) -> None:
    """Add to ``changes`` what makes the stack's series for an engine be the exported one.

    Args:
        root: the project's folder.
        renamed: new patch name -> old name, where a patch was renamed.
        gone: whole files, by path below ``src``, that no patch of any engine adds any more.
    """
    folder = (stack.folder / engine).relative_to(root).as_posix()
    listing = root / folder / "series"
    text = listing.read_text(encoding="utf-8") if listing.is_file() else ""
    for patch in exported.patches:
        changes.write(f"{folder}/{patch.name}", patch.data)
    for item in read_listing(text)[0]:
        if item.name not in exported.names:
            changes.delete(f"{folder}/{item.name}")
    changes.write(f"{folder}/series", write_listing(text, exported.names, dict(renamed or {})).encode())
    src = stack.src.relative_to(root).as_posix()
    for path, (data, executable) in exported.files.items():
        changes.write(f"{src}/{path}", data, executable=executable)
    for path in gone:
        changes.delete(f"{src}/{path}")


def sources_of(stack: Stack, engine: str) -> set[str]:
    """Whole files, by path below ``src``, that the stack's patches for an engine add."""
    return {source for patch in stack.series(engine).patches for source in added_file_sources(patch.data)}


def unused_files(stack: Stack, engine: str, exported: Exported) -> set[str]:
    """Whole files that the stack added for an engine, and that with its new series no patch of any engine adds."""
    kept = {source for other in stack.about.engines if other != engine for source in sources_of(stack, other)}
    return sources_of(stack, engine) - kept - set(exported.files)


@contextlib.contextmanager
def overlaid(root: Path, changes: Changes, scratch: Path) -> Iterator[Path]:
    """A copy of the project's recipes and patches as they will be after some changes, for the length of the block.

    Args:
        scratch: a folder for it.

    Raises:
        StorageError: no space or permission.
    """
    with contextlib.ExitStack() as stack:
        with explained("copy the project"):
            copy = stack.enter_context(owned_folder(scratch, "project-"))
            for name in ("recipes", "patches"):
                shutil.copytree(root / name, copy / name, symlinks=True)
            for path, data in changes.writes.items():
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                (copy / path).write_bytes(data)
                (copy / path).chmod(0o755 if path in changes.executable else 0o644)
            for path in changes.deletes:
                (copy / path).unlink(missing_ok=True)
        yield copy
