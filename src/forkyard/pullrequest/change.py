"""What a branch changes in upstream's tree, in upstream's terms: operators, types, headers, backends, symbols."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from forkyard.gitstore import Store
from forkyard.gitstore.differences import ChangedFile, changed_files

GGML_HEADER = "ggml/include/ggml.h"
_PUBLIC = re.compile(r"^(include/.*\.h|ggml/include/.*\.h|tools/mtmd/mtmd[^/]*\.h|common/arg\.cpp)$")
_BACKEND = re.compile(r"^ggml/src/ggml-([a-z0-9]+)/")
_CPU_OPERATORS = re.compile(r"^ggml/src/(ggml-cpu/(ops|unary-ops|binary-ops|vec|repack)\b.*|ggml-[a-z0-9]+/.*)$")
_DEPENDENCY = re.compile(
    r"find_package\s*\(|FetchContent_|ExternalProject_|CPMAddPackage|pkg_check_modules|^\s*pkg_search_module",
)
_REQUIREMENTS = re.compile(r"(^|/)(requirements[^/]*\.txt|pyproject\.toml|poetry\.lock|package\.json|\.gitmodules)$")
_FUNCTION = re.compile(r"(~?[A-Za-z_]\w*(?:::~?[A-Za-z_]\w*)*)\s*\(")
_NO_FUNCTION = {"if", "for", "while", "switch", "return", "sizeof", "defined", "static_assert", "GGML_ASSERT"}


@dataclass(frozen=True)
class Change:
    """The difference between the commit a branch begins at and its tip."""

    files: tuple[ChangedFile, ...]
    new_types: tuple[str, ...] = ()
    """Enumerators of ``ggml_type`` the branch adds."""
    new_operators: tuple[str, ...] = ()
    """Enumerators of ``ggml_op`` (and its unary and GLU kin) the branch adds."""

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Everything that is touched."""
        return tuple(file.path for file in self.files)

    def added_files(self) -> list[str]:
        """Files the branch adds."""
        return [file.path for file in self.files if file.status == "A"]

    def below(self, *prefixes: str) -> list[str]:
        """Touched paths below some folders, or with exactly these names."""
        return [path for path in self.paths if path.startswith(prefixes)]

    def public(self) -> list[str]:
        """Touched files that make up the public interface: headers, and the command line's options."""
        return [path for path in self.paths if _PUBLIC.match(path)]

    def backends(self) -> list[str]:
        """Backends whose folders are touched, ``cpu`` among them."""
        return sorted({match[1] for path in self.paths if (match := _BACKEND.match(path))})

    def operator_files(self) -> list[str]:
        """Touched files that implement operators; whether one behaves differently only a person can tell."""
        return [path for path in self.paths if _CPU_OPERATORS.match(path)]

    def dependencies(self) -> list[str]:
        """What looks like a new third-party dependency, as ``path:line: text``, or a path."""
        found = [file.path for file in self.files if _REQUIREMENTS.search(file.path) or file.mode == "160000"]
        found += [path for path in self.added_files() if path.startswith("vendor/")]
        for file in self.files:
            if file.path.endswith(("CMakeLists.txt", ".cmake", "Makefile")):
                for number, line in file.added:
                    text = line.decode("utf-8", "replace")
                    if _DEPENDENCY.search(text):
                        found.append(f"{file.path}:{number}: {text.strip()}")
        return found

    def symbols(self) -> list[str]:
        """Functions whose bodies are touched and enumerators that are added, by how often they are, then by name."""
        counts: dict[str, int] = {}
        for file in self.files:
            for context in file.contexts:
                for name in _FUNCTION.findall(context)[-1:]:
                    if name not in _NO_FUNCTION:
                        counts[name] = counts.get(name, 0) + 1
        names = sorted(counts, key=lambda name: (-counts[name], name))
        return list(dict.fromkeys([*self.new_types, *self.new_operators, *names]))


def read_change(store: Store, below: str, tip: str) -> Change:
    """Look at what a branch changes.

    Args:
        below: tree or commit the branch begins at.
        tip: its last.

    Raises:
        GitFailure: the store lacks a file that must be looked into.
    """
    files = tuple(changed_files(store, below, tip))
    if GGML_HEADER not in {file.path for file in files}:
        return Change(files)
    before, after = ((store.read_file(tree, GGML_HEADER) or b"").decode("utf-8", "replace") for tree in (below, tip))
    types = _new(enumerators(before, "GGML_TYPE_"), enumerators(after, "GGML_TYPE_"))
    prefixes = ("GGML_OP_", "GGML_UNARY_OP_", "GGML_GLU_OP_")
    operators = _new(
        [name for prefix in prefixes for name in enumerators(before, prefix)],
        [name for prefix in prefixes for name in enumerators(after, prefix)],
    )
    return Change(files, types, operators)


def _new(before: Iterable[str], after: Iterable[str]) -> tuple[str, ...]:
    known = set(before)
    return tuple(name for name in after if name not in known and not name.endswith("_COUNT"))


def enumerators(header: str, prefix: str) -> list[str]:
    """Enumerators with a prefix that a C header defines, in order; comments do not count."""
    plain = re.sub(r"/\*.*?\*/|//[^\n]*", " ", header, flags=re.DOTALL)
    names: list[str] = []
    for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", plain):
        names += [
            match[1]
            for item in body.split(",")
            if (match := re.match(rf"\s*({re.escape(prefix)}\w+)\s*(?:=.*)?$", item, re.DOTALL))
        ]
    return list(dict.fromkeys(names))
