"""Rules about third parties: a heuristic for packages and headers neither of upstream, nor ours, nor the system's.

Names are compared, nothing is resolved, so every finding is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from forkyard.linting.headers import is_known
from forkyard.linting.model import Finding
from forkyard.linting.pin import PinTree
from forkyard.linting.subject import Case, Place, is_c, is_cmake

_PACKAGE = re.compile(
    rb"\b(find_package|pkg_check_modules|pkg_search_module|CPMAddPackage)\s*\(|\b(FetchContent|ExternalProject)",
    re.IGNORECASE,
)
_INCLUDE = re.compile(rb"^\s*#\s*include\s*<([^>\s]{1,200})>")


def check(case: Case, pin: PinTree | None, ours: Collection[str]) -> Iterator[Finding]:
    """All findings about what a case newly depends on.

    Args:
        pin: without it no header can be told from upstream's, and includes are not looked at.
        ours: paths that the stacks of the combination bring.
    """
    for patch in case.patches:
        for file in patch.text.files:
            lines = [(line.number, line.text) for line in file.added()]
            yield from _lines(patch, file.path, lines, pin, ours)
    for own in case.whole:
        yield from _lines(own, own.target, enumerate(own.data.split(b"\n"), start=1), pin, ours)


def _lines(
    place: Place, path: str, lines: Iterable[tuple[int, bytes]], pin: PinTree | None, ours: Collection[str]
) -> Iterator[Finding]:
    if is_cmake(path):
        for number, line in lines:
            package = _PACKAGE.search(line.split(b"#", 1)[0])
            if package:
                yield place.finding(
                    "dependency",
                    "warning",
                    number,
                    f"{(package[1] or package[2]).decode()} is used in {path}",
                    "upstream takes no new third-party dependency, and a build must fetch nothing",
                    "do without; if upstream's own build finds the package already, say so in the message",
                )
    elif is_c(path) and pin is not None:
        for number, line in lines:
            header = _INCLUDE.match(line)
            if header is None:
                continue
            name = header[1].decode("utf-8", "replace")
            if not is_known(name) and not _in_tree(name, pin, ours):
                yield place.finding(
                    "include",
                    "warning",
                    number,
                    f"<{name}> is included in {path}",
                    "it is no header of the system, of upstream or of ours that this check knows",
                    "do without the library it belongs to; if the system brings it, add it to linting/headers.py",
                )


def _in_tree(name: str, pin: PinTree, ours: Collection[str]) -> bool:
    last = name.rsplit("/", 1)[-1]
    return any(path == name or path.endswith("/" + name) for path in (*pin.named(last), *ours))
