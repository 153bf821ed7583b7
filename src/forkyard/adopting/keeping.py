"""What a person goes on with where a fork clashes with the pin: ``work/from-branch-<name>/``.

``mails`` is the complete series on the upstream state it was made on, ``repo`` an ordinary repository whose branch is
that series, with the pin beside it, and ``report.md`` and ``report.json`` say what clashes. A folder that somebody
worked in is never replaced.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from forkyard.cache import explained, write_atomic
from forkyard.errors import SourceError
from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.work import WorkRepository, lend

FORK_BASE, PIN = "fork-base", "pin"
"""Branches of ``repo``: what the series is made on, and where it is to go."""
MADE = "refs/forkyard/made"
"""Where the series ended when `repo` was made; no other repository has it."""


def work_folder(root: Path, name: str) -> Path:
    """The folder kept for a stack that is being adopted."""
    return root / "work" / f"from-branch-{name}"


def refuse_if_touched(folder: Path, name: str) -> None:
    """See that nobody's work would be lost if the folder were made anew.

    Raises:
        SourceError: somebody worked in it.
    """
    if not folder.exists():
        return
    repository = WorkRepository(folder / "repo")
    try:
        made = repository.resolve(MADE) if repository.exists else None
        same = made is not None and made == repository.resolve(f"refs/heads/{name}") == repository.resolve("HEAD")
        idle = same and not repository.operation() and not repository.dirty()
    except GitFailure:
        idle = False
    if not idle:
        msg = f"{folder.name} is there already, and somebody worked in it"
        raise SourceError(
            msg,
            where=str(folder),
            next_step="finish what is in it (its report.md says how), or move it away, then run again",
        )


def keep(
    folder: Path,
    name: str,
    lenders: Sequence[Store],
    *,
    tip: str,
    base: str,
    home: str,
    mails: Sequence[tuple[str, bytes]],
    upstream: Mapping[str, str],
) -> Path:
    """Make the folder completely, under a name of its own; :func:`publish` gives it its place.

    Args:
        lenders: the store that holds the commits, then others with upstream's history; all objects are borrowed.
        tip, base: last commit of the series, and what its first is made on.
        home: the commit it is to go to.
        mails: name and content of each patch.
        upstream: see :meth:`WorkRepository.make`.

    Raises:
        StorageError: no space or permission.
    """
    new = folder.with_name(f".{folder.name}.new")
    with explained(f"make {folder.name}"):
        shutil.rmtree(new, ignore_errors=True)
        (new / "mails").mkdir(parents=True)
        width = mail_width(len(mails))
        for number, (file, data) in enumerate(mails, start=1):
            (new / "mails" / f"{number:0{width}}-{file}").write_bytes(data)
    lend(lenders, folder / "repo")
    refs = {f"refs/heads/{FORK_BASE}": base, f"refs/heads/{PIN}": home, MADE: tip}
    WorkRepository.make(new / "repo", lenders[0], tip, name, refs, lenders=lenders, upstream=upstream)
    return new


def fork_behind(repository: Path | None) -> dict[str, str] | None:
    """Where the series in a kept repository comes from: ``repository``, ``branch`` and ``commit`` of the fork itself.

    Args:
        repository: a folder on this disk, kept or not.
    """
    if repository is None or not WorkRepository(repository).exists:
        return None
    try:
        fork = json.loads((repository.parent / "report.json").read_bytes())["fork"]
        fork = fork.get("behind") or fork
        return {name: str(fork[name]) for name in ("repository", "branch", "commit")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def mail_width(count: int) -> int:
    """Digits in the number a mail's file name begins with."""
    return max(4, len(str(count)))


def add_report(folder: Path, markdown: str, document: str) -> None:
    """Put the reports into a folder."""
    write_atomic(folder / "report.md", markdown.encode())
    write_atomic(folder / "report.json", document.encode())


def publish(new: Path, folder: Path) -> None:
    """Give a finished folder its place, instead of one nobody worked in."""
    with explained(f"make {folder.name}"):
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
