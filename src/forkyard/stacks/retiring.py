"""``Retire-When``: the condition under which a patch is no longer needed, as a program can evaluate it.

A condition is asked of an unpatched tree. Where a patch has several, one that holds is enough.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, cast, get_args

from forkyard.errors import PatchError

Kind = Literal["file-exists", "file-absent", "symbol-present", "symbol-absent", "commit-reachable"]
FORMS = (
    "file-exists PATH",
    "file-absent PATH",
    "symbol-present PATH REGEX",
    "symbol-absent PATH REGEX",
    "commit-reachable COMMIT",
)
"""The conditions there are."""
LONGEST_REGEX = 200
"""Characters a REGEX may have."""
LONGEST_LINE = 1000
"""Characters of each line that a REGEX sees: longer lines are data, and a search must end."""
MOST_REPEATS = 3
"""``*``, ``+`` and ``{}`` a REGEX may have: each multiplies the longest search by the length of the line."""
MOST_CHOICES = 6
"""``|`` and ``?`` a REGEX may have: each doubles the longest search."""

_SUPERSEDED = re.compile(r"^superseded-by\s+(?P<what>\S.*?)\s+when\s+(?P<rest>\S.*)$")
_REPEAT = re.compile(r"[*+]|\{\d*,?\d*\}")
# An opening bracket with what makes it no group of its own; a repeat with its lazy or possessive mark; a choice.
_STRUCTURE = re.compile(r"\(\??|(?P<repeat>(?:[*+]|\{(?:\d+,?\d*|,\d+)\})[?+]?)|\?[?+]?|\||\)")
_COMMIT = re.compile(r"^[0-9a-f]{7,40}$")


@dataclass(frozen=True)
class Condition:
    """One condition."""

    kind: Kind
    subject: str
    """The path in the engine's tree, or the commit id."""
    pattern: str | None = None
    """The regular expression of a ``symbol-`` condition, searched in each line by itself."""
    superseded_by: str | None = None
    """What takes the patch's place upstream, where it is another change and not the patch itself."""

    def holds(self, read_file: Callable[[str], bytes | None], reachable: Callable[[str], bool | None]) -> bool | None:
        """Whether the condition is met; ``None`` if that cannot be known here.

        A file that is gone may have moved, so ``symbol-absent`` is unknown of it, not met.

        Args:
            read_file: content of a file of the tree, ``None`` if the tree has no such file. Raises LookupError for a
                file that is there but whose content is not at hand.
            reachable: whether a commit is part of the history; ``None`` if the history is not known.
        """
        if self.kind == "commit-reachable":
            return reachable(self.subject)
        try:
            data = read_file(self.subject)
        except LookupError:
            return {"file-exists": True, "file-absent": False}.get(self.kind)
        if self.kind == "file-exists":
            return data is not None
        if self.kind == "file-absent":
            return data is None
        if data is None:
            return False if self.kind == "symbol-present" else None
        search = re.compile(self.pattern or "").search
        lines = data.decode("utf-8", "replace").split("\n")
        return any(search(line.rstrip("\r")[:LONGEST_LINE]) for line in lines) == (self.kind == "symbol-present")

    def describe(self) -> str:
        """The condition as a sentence without a full stop."""
        sentence = {
            "file-exists": f"upstream has the file {self.subject}",
            "file-absent": f"upstream has no file {self.subject} any more",
            "symbol-present": f"a line of upstream's {self.subject} matches {self.pattern}",
            "symbol-absent": f"no line of upstream's {self.subject} matches {self.pattern}",
            "commit-reachable": f"upstream's history contains commit {self.subject}",
        }[self.kind]
        return f"{self.superseded_by} has taken its place: {sentence}" if self.superseded_by else sentence


def parse_condition(text: str, where: str | None = None) -> Condition:
    """Read the value of one ``Retire-When`` trailer.

    Args:
        where: names its file and line in messages.

    Raises:
        PatchError: it is none of :data:`FORMS`, or its path, commit or regular expression cannot be used.
    """
    superseded = _SUPERSEDED.match(text.strip())
    words = (superseded["rest"] if superseded else text.strip()).split(None, 2)
    kind = words[0] if words else ""
    if kind not in get_args(Kind):
        raise _refused(text, where, f"it starts with {kind!r}" if kind else "it is empty", _forms())
    known = cast(Kind, kind)
    takes = 3 if known.startswith("symbol-") else 2
    if len(words) != takes:
        form = next(form for form in FORMS if form.startswith(known))
        raise _refused(text, where, f"{known} takes {takes - 1} argument{'s' * (takes > 2)}", f"write `{form}`")
    by = superseded["what"] if superseded else None
    if known == "commit-reachable":
        if not _COMMIT.match(words[1]):
            raise _refused(text, where, f"{words[1]!r} is no commit id", "give 7 to 40 hexadecimal digits")
        return Condition(known, words[1], superseded_by=by)
    fault = _path_fault(words[1])
    if fault is not None:
        raise _refused(text, where, fault, "give one path, from the top of the engine's tree")
    if takes == 2:
        return Condition(known, words[1], superseded_by=by)
    fault = _regex_fault(words[2])
    if fault is not None:
        raise _refused(text, where, fault, "write a simpler expression; it is searched in each line by itself")
    return Condition(known, words[1], words[2], by)


def _forms() -> str:
    return f"write one of: {'; '.join(FORMS)}; or `superseded-by WHAT when` and one of them"


def _refused(text: str, where: str | None, why: str, next_step: str) -> PatchError:
    msg = "a Retire-When trailer cannot be evaluated"
    shown = text if len(text) <= 120 else text[:120] + "..."
    return PatchError(msg, where=where, why=f"{shown!r}: {why}", next_step=next_step)


def _path_fault(path: str) -> str | None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        return f"{path!r} is no path inside a tree"
    if any(character in path for character in "*?["):
        return f"{path!r} is a pattern, not a path"
    return None


def _regex_fault(pattern: str) -> str | None:
    if len(pattern) > LONGEST_REGEX:
        return f"the regular expression has {len(pattern)} characters, {LONGEST_REGEX} are allowed"
    try:
        with warnings.catch_warnings():
            # What Python warns of today means something else tomorrow.
            warnings.simplefilter("error")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        return f"the regular expression does not compile: {error}"
    return _slow(pattern)


def _slow(pattern: str) -> str | None:
    """Why a search could take for ever: a repeated group that itself repeats or chooses, or too many of either."""
    plain = _without_atoms(pattern)
    # For each open group, and for the whole: whether something in it repeats or chooses.
    groups = [False]
    repeats = choices = position = 0
    while position < len(plain):
        word = _STRUCTURE.match(plain, position)
        if word is None:
            position += 1
            continue
        position = word.end()
        if word[0].startswith("("):
            groups.append(False)
            continue
        if word["repeat"]:
            repeats += 1
        elif word[0] != ")":
            choices += 1
        elif len(groups) > 1:
            inner = groups.pop()
            if inner and _REPEAT.match(plain, position):
                return "a repeated group that itself repeats or chooses can take for ever"
            groups[-1] = groups[-1] or inner
            continue
        groups[-1] = True
    if repeats > MOST_REPEATS:
        return f"it repeats {repeats} times, {MOST_REPEATS} are allowed"
    return f"it chooses {choices} times, {MOST_CHOICES} are allowed" if choices > MOST_CHOICES else None


def _without_atoms(pattern: str) -> str:
    """The pattern with every escape and character class made one letter, so that what is left is structure."""
    plain = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    # A `]` that comes first in a class is a member of it.
    return re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
