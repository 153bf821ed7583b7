"""Saying where a repository's history ends on purpose: a source that carries single commits has no parents of them."""

from __future__ import annotations

from forkyard.cache import write_if_changed
from forkyard.gitstore.store import Store
from forkyard.gitstore.work import WorkRepository


def cut_history(repository: WorkRepository, store: Store) -> list[str]:
    """Have git know that the commits at which the store's history ends have no parents in ``repository`` either.

    Without it git takes the repository for a damaged one.

    Returns:
        those commits.

    Raises:
        StorageError: no space or permission.
    """
    try:
        ends = (store.path / "shallow").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []
    listing = "".join(f"{commit}\n" for commit in ends).encode()
    answers = repository._git("cat-file", "--batch-check=%(objectname)", stdin=listing).decode("ascii").splitlines()
    here = [commit for commit, answer in zip(ends, answers, strict=True) if not answer.endswith(" missing")]
    if here:
        write_if_changed(repository.path / ".git" / "shallow", "".join(f"{commit}\n" for commit in here).encode())
    return here
