"""What upstream's own .editorconfig and .clang-format files, as they are at the pin, ask of a path."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from editorconfig.exceptions import ParsingError
from editorconfig.ini import EditorConfigParser

from forkyard.linting.pin import PinTree

EDITOR, FORMAT = ".editorconfig", ".clang-format"


@dataclass(frozen=True)
class TextStyle:
    """What the lines of a file must be like."""

    indent: str | None = None
    """``space``, ``tab`` or unsaid."""
    trim: bool = True
    final_newline: bool = True
    line_feeds: bool = True
    longest: int | None = None


@dataclass(frozen=True)
class UpstreamStyle:
    """Upstream's configuration files laid out in a folder of their own; made by :meth:`of`."""

    folder: Path
    editor: frozenset[str]
    """Folders of the tree, ``.`` for its top, that have an .editorconfig."""
    format: frozenset[str]
    """The same for .clang-format."""
    format_digest: str = ""
    """Of all .clang-format files and where they are."""

    @classmethod
    @contextlib.contextmanager
    def of(cls, pin: PinTree | None) -> Iterator[UpstreamStyle]:
        """The style of a pin, for the length of the block; without a pin nothing is configured."""
        with tempfile.TemporaryDirectory(prefix="forkyard-lint-") as name:
            folder = Path(name).resolve()
            kept: dict[str, set[str]] = {EDITOR: set(), FORMAT: set()}
            digest = hashlib.sha256()
            if pin is not None:
                pin.load([*pin.named(EDITOR), *pin.named(FORMAT)])
                for kind, folders in kept.items():
                    for path in pin.named(kind):
                        with contextlib.suppress(LookupError):
                            data = pin.read(path)
                            (folder / path).parent.mkdir(parents=True, exist_ok=True)
                            (folder / path).write_bytes(data or b"")
                            folders.add(str(PurePosixPath(path).parent))
                            if kind == FORMAT:
                                digest.update(f"{path}\0{pin.entries[path].oid}\0".encode())
            yield cls(folder, frozenset(kept[EDITOR]), frozenset(kept[FORMAT]), digest.hexdigest())

    def of_text(self, path: str) -> TextStyle:
        """What the nearest .editorconfig says of a path. The defaults are our own conventions."""
        options: dict[str, str] = {}
        for parent in PurePosixPath(path).parents:
            if str(parent) not in self.editor:
                continue
            parser = EditorConfigParser(str(self.folder / path))
            # What could be read of a broken file still counts: it is upstream's, not ours to report.
            with contextlib.suppress(ParsingError, UnicodeDecodeError):
                parser.read(str(self.folder / parent / EDITOR))
            options = {**parser.options, **options}
            if parser.root_file:
                break
        said = {name: value.lower() for name, value in options.items()}
        longest = said.get("max_line_length", "")
        indent = said.get("indent_style")
        return TextStyle(
            indent=indent if indent in ("space", "tab") else None,
            trim=said.get("trim_trailing_whitespace", "true") == "true",
            final_newline=said.get("insert_final_newline", "true") == "true",
            line_feeds=said.get("end_of_line", "lf") == "lf",
            longest=int(longest) if longest.isdecimal() and len(longest) < 7 else None,
        )

    def formats(self, path: str) -> bool:
        """Whether a .clang-format of upstream's applies to a path."""
        return any(str(parent) in self.format for parent in PurePosixPath(path).parents)
