"""From an exported series to the files of the project that change: patches, the series file, whole files of ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from forkyard.journal import Changes
from forkyard.stacks.exporting import Exported
from forkyard.stacks.listing import read_listing, write_listing
from forkyard.stacks.model import Stack


def series_changes(
    changes: Changes,
    root: Path,
    stack: Stack,
    family: str,
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
    folder = (stack.folder / family).relative_to(root).as_posix()
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
