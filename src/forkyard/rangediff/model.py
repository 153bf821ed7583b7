"""What a comparison of two revisions of a stack found, and reading it from git's words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from forkyard.errors import ToolchainError
from forkyard.gitstore.comparing import CREATION_FACTOR

SHORT = 12
"""Digits of a commit id in texts."""
Sign = Literal["=", "!", "<", ">"]
"""git's: the same in both, changed, only in the old one, only in the new one."""

# At most three blanks: a line of a difference has four. Four would stand before the numbers of 10,000 patches.
_HEADER = re.compile(
    r"^(?P<gap> {0,3})(?P<old>\d+|-):  (?P<old_id>[0-9a-f]{40}|-{40}) (?P<sign>[=!<>])"
    r" (?P<new_gap> {0,3})(?P<new>\d+|-):  (?P<new_id>[0-9a-f]{40}|-{40})(?: (?P<subject>.*))?$"
)
_INDENT = "    "


@dataclass(frozen=True)
class Line:
    """One line of the difference of two patches, each of which is itself lines of a difference."""

    text: str
    """As git writes it, less the indentation."""

    @property
    def outer(self) -> str:
        """``-`` only in the old patch, ``+`` only in the new one, a blank for both; ``@`` starts a hunk."""
        return self.text[:1] or " "

    @property
    def inner(self) -> str:
        """What the patch does with the line: ``-``, ``+``, a blank; ``@`` and ``#`` are headings in it."""
        if self.outer == "@":
            return "@"
        rest = self.text[1:]
        if rest.startswith(("+", "-")):
            return rest[0]
        return "@" if rest.startswith("@@") else "#" if rest.startswith(" ## ") else " "

    def as_json(self) -> dict[str, str]:
        """For machines; ``text`` without the outer sign."""
        outer = self.outer
        return {"outer": outer, "inner": self.inner, "text": self.text if outer == "@" else self.text[1:]}


@dataclass(frozen=True)
class RawPair:
    """One entry of git's comparison."""

    gap: str
    """Blanks before the numbers, which git aligns."""
    old: int | None
    old_commit: str | None
    sign: Sign
    new_gap: str
    new: int | None
    new_commit: str | None
    subject: str
    lines: tuple[Line, ...] = ()

    def header(self, sign: Sign | None = None) -> str:
        """git's line, with commit ids of :data:`SHORT` digits, and optionally another sign."""
        sides = []
        for gap, number, commit in ((self.gap, self.old, self.old_commit), (self.new_gap, self.new, self.new_commit)):
            sides.append(f"{gap}{number or '-'}:  {(commit or '-' * SHORT)[:SHORT]}")
        return f"{sides[0]} {sign or self.sign} {sides[1]}" + (f" {self.subject}" if self.subject else "")


def read_range_diff(output: bytes) -> tuple[RawPair, ...]:
    """Read what ``git range-diff`` printed without colour and with full commit ids.

    Bytes that are no UTF-8 are read as escapes (``\\xff``).

    Raises:
        ToolchainError: git prints something else than it is known to.
    """
    found: list[tuple[re.Match[str], list[Line]]] = []
    text = output.decode("utf-8", "backslashreplace")
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        header = _HEADER.match(line)
        if header is not None:
            found.append((header, []))
        elif found and line.startswith(_INDENT):
            found[-1][1].append(Line(line[len(_INDENT) :]))
        else:
            msg = "what this git's range-diff prints is not understood"
            raise ToolchainError(
                msg, where=f"line {number}", why=repr(line[:200]), next_step="report it, with `git --version`"
            )
    return tuple(_raw(header, lines) for header, lines in found)


def _raw(header: re.Match[str], lines: Sequence[Line]) -> RawPair:
    def side(name: str) -> tuple[int | None, str | None]:
        number, commit = header[name], header[f"{name}_id"]
        return (None, None) if number == "-" else (int(number), commit)

    (old, old_commit), (new, new_commit) = side("old"), side("new")
    sign = cast(Sign, header["sign"])
    subject = header["subject"] or ""
    return RawPair(header["gap"], old, old_commit, sign, header["new_gap"], new, new_commit, subject, tuple(lines))


@dataclass(frozen=True)
class Fact:
    """Something that is one thing in the old revision and another in the new one; ``None`` where there is none."""

    what: str
    old: str | None
    new: str | None

    def as_json(self) -> dict[str, str | None]:
        """For machines."""
        return {"what": self.what, "old": self.old, "new": self.new}


@dataclass(frozen=True)
class Side:
    """A patch in one of the revisions."""

    number: int
    """Place in the series, from 1."""
    name: str
    """Of its file."""
    commit: str
    subject: str

    def as_json(self) -> dict[str, str | int]:
        """For machines."""
        return {"number": self.number, "name": self.name, "commit": self.commit, "subject": self.subject}


@dataclass(frozen=True)
class Pair:
    """A patch, and what became of it."""

    sign: Sign
    old: Side | None
    new: Side | None
    header: str
    """git's line about it."""
    lines: tuple[Line, ...] = ()
    facts: tuple[Fact, ...] = ()
    """Changes of trailers and date, and of what no difference shows: modes of new files, content of binary ones."""
    moved: bool = False
    """Whether it is at another place among the patches that are in both."""
    rewritten: bool = False
    """Whether the other revision has a patch of this file name, too different to be taken for the same."""

    @property
    def name(self) -> str:
        """File name, the new one if there are two."""
        side = self.new or self.old
        assert side is not None, "a pair has at least one side"
        return side.name

    @property
    def renamed_from(self) -> str | None:
        """The old file name where it was another."""
        return self.old.name if self.old and self.new and self.old.name != self.new.name else None

    @property
    def changed(self) -> bool:
        """Whether anything about it differs."""
        return self.sign != "=" or bool(self.facts) or self.moved or self.renamed_from is not None

    @property
    def counts(self) -> tuple[int, int]:
        """Lines of the difference only the new patch has, and only the old one."""
        return sum(line.outer == "+" for line in self.lines), sum(line.outer == "-" for line in self.lines)

    def as_json(self, *, lines: bool) -> dict[str, Any]:
        """For machines."""
        plus, minus = self.counts
        document: dict[str, Any] = {
            "sign": self.sign,
            "old": self.old.as_json() if self.old else None,
            "new": self.new.as_json() if self.new else None,
            "moved": self.moved,
            "renamed": self.renamed_from is not None,
            "rewritten": self.rewritten,
            "facts": [fact.as_json() for fact in self.facts],
            "lines_added": plus,
            "lines_removed": minus,
        }
        return {**document, "lines": [line.as_json() for line in self.lines]} if lines else document


@dataclass(frozen=True)
class Place:
    """Where one side of a comparison was taken."""

    revision: str
    """For people."""
    project_commit: str | None
    """``None`` for the work tree."""
    pin: str | None
    """The upstream commit; ``None`` where the stack was not there."""
    date: str | None
    after: tuple[str, ...] = ()
    """Stacks that are applied before it."""
    patches: int = 0
    notes: tuple[str, ...] = ()

    @property
    def there(self) -> bool:
        """Whether the stack was there, for this engine."""
        return self.pin is not None

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "revision": self.revision,
            "project_commit": self.project_commit,
            "pin": self.pin,
            "date": self.date,
            "after": list(self.after),
            "patches": self.patches,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Comparison:
    """A stack for one engine at two revisions."""

    stack: str
    engine: str
    old: Place
    new: Place
    pairs: tuple[Pair, ...] = ()
    metadata: tuple[Fact, ...] = ()
    """Fields of stack.toml."""
    files: tuple[Fact, ...] = ()
    """Whole files of ours below ``src``: path, and the beginning of either sha256."""
    creation_factor: int = CREATION_FACTOR
    """Percent; what git was told of how different one patch may be."""

    @property
    def differs(self) -> bool:
        """Whether the stack changed: a patch, their order, a file or stack.toml. The base is no part of it."""
        return any(pair.changed for pair in self.pairs) or bool(self.metadata or self.files)

    def as_json(self, *, lines: bool = True) -> dict[str, Any]:
        """For machines.

        Args:
            lines: with the differences themselves.
        """
        return {
            "engine": self.engine,
            "old": self.old.as_json(),
            "new": self.new.as_json(),
            "differs": self.differs,
            "creation_factor": self.creation_factor,
            "pairs": [pair.as_json(lines=lines) for pair in self.pairs],
            "metadata": [fact.as_json() for fact in self.metadata],
            "files": [fact.as_json() for fact in self.files],
        }


def differing(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Fact]:
    """The keys whose values are not the same, the old ones' order first."""
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield Fact(key, old.get(key), new.get(key))


def moved_numbers(pairs: Sequence[tuple[int, int]]) -> set[int]:
    """Of patches at (old, new) places: the new places of as few as must have moved to explain the new order.

    All others are a longest increasing subsequence, found in O(n^2) for the hundred patches a stack may have.
    """
    ordered = [new for _, new in sorted(pairs)]
    lengths: list[int] = []
    previous: list[int | None] = []
    for number, new in enumerate(ordered):
        smaller = [earlier for earlier in range(number) if ordered[earlier] < new]
        best = max(smaller, key=lengths.__getitem__, default=None)
        lengths.append(1 if best is None else lengths[best] + 1)
        previous.append(best)
    at = max(range(len(ordered)), key=lengths.__getitem__, default=None)
    stays = set()
    while at is not None:
        stays.add(ordered[at])
        at = previous[at]
    return set(ordered) - stays
