"""Reading history: which commits there are between two points, what they changed, and which are the same change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forkyard.gitstore.formats import Author, iso_date
from forkyard.gitstore.running import GitFailure, Repository

# Dates as numbers: how git writes UTC as text changed between its versions.
_FORMAT = "%H%x00%T%x00%P%x00%an%x00%ae%x00%ad%x00%B%x00%x01%x00"
# A change is the same whatever the machine's diff settings are.
_PLAIN_DIFF = {"diff.noprefix": "false", "diff.mnemonicPrefix": "false", "diff.algorithm": "myers"}


@dataclass(frozen=True)
class CommitFacts:
    """A commit as history shows it."""

    commit: str
    tree: str
    parents: tuple[str, ...]
    author: Author
    message: str

    @property
    def subject(self) -> str:
        """First line of the message."""
        return self.message.strip().split("\n", 1)[0]


def commits(repository: Repository, *words: str) -> list[CommitFacts]:
    """Commits as ``git log WORDS`` selects them, oldest first, parents before children.

    Raises:
        GitFailure: a commit or its history is not there.
    """
    output = repository._git("log", "--reverse", "--topo-order", "--date=raw", f"--format={_FORMAT}", *words)
    found = []
    for record in output.decode("utf-8", "surrogateescape").split("\0\x01\0\n"):
        if not record.strip("\n"):
            continue
        commit, tree, parents, name, email, date, message = record.split("\0")
        found.append(CommitFacts(commit, tree, tuple(parents.split()), Author(name, email, iso_date(date)), message))
    return found


def merge_base(repository: Repository, one: str, other: str) -> str | None:
    """The best common ancestor of two commits; ``None`` if their known histories do not meet."""
    status, output, problem = repository._attempt("merge-base", one, other)
    if status == 0:
        return output.decode("ascii").split()[0]
    if status == 1:
        return None
    raise GitFailure(["merge-base", one, other], status, problem)


def is_ancestor(repository: Repository, older: str, newer: str) -> bool:
    """Whether ``newer`` contains ``older``, as far as history is known."""
    status, _, problem = repository._attempt("merge-base", "--is-ancestor", older, newer)
    if status in (0, 1):
        return status == 0
    raise GitFailure(["merge-base", "--is-ancestor", older, newer], status, problem)


def patch_ids(repository: Repository, wanted: Sequence[str], *, reverse: bool = False) -> dict[str, str]:
    """git's id of each commit's change (not of merges, roots or empty commits), blind to line numbers and blanks.

    Args:
        reverse: of the change that undoes it.
    """
    if not wanted:
        return {}
    # -R swaps the prefixes as well, and they are part of what is hashed.
    words = ["-R", "--src-prefix=b/", "--dst-prefix=a/"] if reverse else []
    listing = "".join(f"{commit}\n" for commit in wanted).encode()
    diffs = repository._git(
        "diff-tree", "--stdin", "-p", "-r", "--no-renames", "--full-index", *words, stdin=listing, config=_PLAIN_DIFF
    )
    lines = repository._git("patch-id", "--stable", stdin=diffs).decode("ascii").splitlines()
    return {commit: patch for patch, commit in (line.split(" ") for line in lines)}


def changed_paths(repository: Repository, old: str, new: str) -> list[str]:
    """Paths that differ between two commits or trees; a rename counts as both its paths."""
    output = repository._git("diff-tree", "-r", "-z", "--name-only", "--no-renames", old, new)
    return [path for path in output.decode("utf-8", "surrogateescape").split("\0") if path]


def touching(repository: Repository, old: str, new: str, paths: Iterable[str]) -> list[str]:
    """Commits of ``old..new`` that change one of some paths, oldest first; none where history is not known."""
    words = [f":(literal){path}" for path in paths]
    output = repository._git("rev-list", "--reverse", "--topo-order", "--no-merges", f"{old}..{new}", "--", *words)
    return output.decode("ascii").split()
