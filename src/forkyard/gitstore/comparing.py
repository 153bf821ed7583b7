"""Comparing two ranges of commits in a store, and the facts about each commit that such a comparison leaves out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from forkyard.errors import ToolchainError
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.store import Store

CREATION_FACTOR = 60
"""Percent: how different two patches may be and still count as one; git's own default."""
RANGE_DIFF_S = 600.0
"""Seconds a comparison may take: it compares every patch of one range with every patch of the other."""
# The same text whatever git's defaults and this machine's settings are. Renames are followed, as git does unless told
# otherwise: a moved file would else be shown as two whole ones.
RANGE_CONFIG = {
    "core.abbrev": "40",
    "core.quotePath": "false",
    "diff.algorithm": "myers",
    "diff.colorMoved": "no",
    "diff.context": "3",
    "diff.indentHeuristic": "true",
    "diff.interHunkContext": "0",
    "diff.mnemonicPrefix": "false",
    "diff.noprefix": "false",
    "diff.renameLimit": "1000",
    "diff.renames": "true",
    "diff.suppressBlankEmpty": "false",
    "i18n.logOutputEncoding": "UTF-8",
    "log.showSignature": "false",
}
RANGE_OPTIONS = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-notes", "--unified=3")


@dataclass(frozen=True)
class Change:
    """What a commit did to one path; a rename counts as both its paths."""

    path: str
    status: str
    """git's letter: ``A`` added, ``D`` deleted, ``M`` modified, ``T`` another type."""
    mode: str
    """The new mode; zeros where the file is gone."""
    oid: str
    """Object id of the new content."""
    binary: bool
    """Whether git shows no lines of it."""


def range_diff(
    store: Store, old: tuple[str, str], new: tuple[str, str], *, creation_factor: int = CREATION_FACTOR
) -> bytes:
    """What ``git range-diff`` says of two ranges, each from a base (not part of it) to a tip, with full commit ids.

    Raises:
        GitFailure: a commit, or a file it changes, is not in the store.
        ToolchainError: git is too old to compare ranges.
    """
    ranges = []
    for (base, tip), (other_base, other_tip) in ((old, new), (new, old)):
        if base != tip:
            ranges.append(f"{base}..{tip}")
        elif other_base != other_tip:
            # git takes `X..X` for no range at all. What is reachable from the other's base but not from its tip is
            # as empty.
            ranges.append(f"{other_tip}..{other_base}")
        else:
            return b""
    command = ["range-diff", *RANGE_OPTIONS, f"--creation-factor={creation_factor}", *ranges]
    status, output, problem = store._attempt(*command, config=RANGE_CONFIG, timeout_s=RANGE_DIFF_S)
    if status != 0:
        if "not a git command" in problem:
            msg = "this git cannot compare ranges: 2.19 or newer is needed"
            raise ToolchainError(msg, why=problem.strip().splitlines()[0], next_step="install a newer git")
        raise GitFailure(command, status, problem)
    return output


def changes_of(store: Store, commits: Iterable[str]) -> dict[str, tuple[Change, ...]]:
    """What each commit did to each path, by commit id; merges and roots have none.

    Raises:
        GitFailure: a commit or a file is not in the store.
    """
    wanted = list(commits)
    if not wanted:
        return {}
    listing = "".join(f"{commit}\n" for commit in wanted)
    output = store._git(
        "diff-tree",
        "--stdin",
        "--always",
        "-r",
        "-z",
        "--raw",
        "--numstat",
        "--no-renames",
        "--no-ext-diff",
        stdin=listing.encode(),
        config=RANGE_CONFIG,
        timeout_s=RANGE_DIFF_S,
    )
    fields = iter(output.decode("utf-8", "surrogateescape").split("\0"))
    found: dict[str, dict[str, Change]] = {}
    current: dict[str, Change] = {}
    for field in fields:
        if field.startswith(":"):
            _, mode, _, oid, status = field.split(" ")
            path = next(fields)
            current[path] = Change(path, status, mode, oid, binary=False)
        elif "\t" in field:
            lines, _, path = field.split("\t", 2)
            if lines == "-":
                was = current[path]
                current[path] = Change(path, was.status, was.mode, was.oid, binary=True)
        elif field:
            current = found.setdefault(field.strip(), {})
    for commit in wanted:
        # git only repeats what it does not know.
        if commit not in found or (not found[commit] and not store.has(commit, "commit")):
            raise GitFailure(["diff-tree"], 128, f"bad object {commit}")
    return {commit: tuple(changes.values()) for commit, changes in found.items()}
