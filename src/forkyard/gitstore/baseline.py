"""Where the present branch of the project's repository left its default branch."""

from __future__ import annotations

from forkyard.gitstore.history import merge_base
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.work import WorkRepository

_DEFAULTS = (
    "refs/remotes/origin/HEAD",
    "refs/remotes/origin/main",
    "refs/remotes/origin/master",
    "refs/heads/main",
    "refs/heads/master",
)


def default_base(repository: WorkRepository) -> str:
    """The commit a change is measured from: the merge base with the default branch, else ``HEAD``."""
    for name in _DEFAULTS:
        try:
            found = merge_base(repository, "HEAD", repository.resolve(name))
        except GitFailure:
            continue
        if found is not None:
            return found
    return "HEAD"
