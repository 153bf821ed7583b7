"""Reading other people's repositories: their refs, a branch with its history, and how that history lies to upstream's.

Nothing of such a repository runs here. git reads it through ``upload-pack``, which takes no command from a repository's
own configuration; that configuration is only ever read as a file, for the URLs of its remotes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import git

from forkyard.gitstore.running import SHORT_S, GitFailure
from forkyard.gitstore.store import FETCH_S, Store
from forkyard.locks import held_locks

# Also for the programs git starts: a partial clone must not fetch what it lacks through a command of its own.
_GUARDED = {"GIT_ALLOW_PROTOCOL": "file:https:ssh", "GIT_NO_LAZY_FETCH": "1"}
_SLOW = {"http.lowSpeedLimit": "1000", "http.lowSpeedTime": "60", "protocol.version": "2"}
_PROGRESS = re.compile(r"(?:remote: )?(?:Receiving|Counting|Compressing) objects:\s+\d+% \((\d+)/(\d+)\)")
_CHATTER = re.compile(r"^(remote: )?(Enumerating|Counting|Compressing|Receiving|Resolving|Unpacking) ")


@dataclass(frozen=True)
class FileChange:
    """What a commit did to one path."""

    modes: tuple[str, str]
    oids: tuple[str, str]

    @property
    def reversed(self) -> FileChange:
        """The change that undoes it."""
        return FileChange((self.modes[1], self.modes[0]), (self.oids[1], self.oids[0]))


def list_refs(store: Store, location: str) -> dict[str, str]:
    """Every ref of another repository, ``HEAD`` among them, and the object it is at; of a tag, its commit.

    Raises:
        GitFailure: the repository cannot be read.
    """
    output = store._git(
        "ls-remote", "--end-of-options", location, users_config=True, config=_SLOW, env=_GUARDED, timeout_s=SHORT_S
    )
    found: dict[str, str] = {}
    for line in output.decode("utf-8", "surrogateescape").splitlines():
        oid, _, name = line.partition("\t")
        # An annotated tag is listed twice; the second line names what it is on.
        found[name.removesuffix("^{}")] = oid
    return found


def fetch_refs(
    store: Store,
    location: str,
    wanted: Mapping[str, str],
    *,
    accept_shallow: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, str]:
    """Fetch refs or commits of another repository with all the history it has; the caller holds the store's lock.

    Args:
        wanted: ref of ours, to be set -> ref there, or a commit id.
        accept_shallow: also take history that is cut off there. The store is then shallow for everybody who uses it.

    Returns:
        the commit each ref of ours is at now; those that were refused, as cut-off history is, are left out.

    Raises:
        GitFailure: something could not be fetched.
    """
    store._free("shallow")
    for ref in wanted:
        store._free(ref)
        store._attempt("update-ref", "-d", ref)
    environment = {**store._environment(None, users_config=True), **_GUARDED}
    command = store._program(environment, users_config=True)
    for name, value in _SLOW.items():
        command += ["-c", f"{name}={value}"]
    command += ["fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
    command += ["--update-shallow"] if accept_shallow else []
    command += ["--end-of-options", location, *(f"+{theirs}:{ours}" for ours, theirs in wanted.items())]
    said: list[str] = []

    def listen(line: str) -> None:
        counted = _PROGRESS.match(line)
        if counted is not None and progress is not None:
            progress(int(counted[1]), int(counted[2]))
        elif counted is None and not _CHATTER.match(line):
            said.append(line)

    process = git.Git(str(store.path)).execute(
        command, as_process=True, universal_newlines=True, env=environment, pass_fds=held_locks()
    )
    timer = threading.Timer(FETCH_S, process.terminate)
    timer.daemon = True
    timer.start()
    try:
        git.cmd.handle_process_output(process, None, listen, decode_streams=False)
        process.wait()
    except git.GitCommandError as error:
        text = "\n".join(said) or str(error)
        raise GitFailure(["fetch"], error.status if isinstance(error.status, int) else 1, text) from error
    finally:
        timer.cancel()
    found = {}
    for ref in wanted:
        status, output, _ = store._attempt("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        if status == 0:
            found[ref] = output.decode("ascii").strip()
    return found


def common_ancestors(store: Store, tip: str, others: Sequence[str]) -> list[str]:
    """The newest commits that are both in the history of ``tip`` and in that of one of ``others``."""
    if not others:
        return []
    status, output, problem = store._attempt("merge-base", "--all", tip, *others)
    if status not in (0, 1):
        raise GitFailure(["merge-base"], status, problem)
    return output.decode("ascii").split()


def shared_ancestor(store: Store, tips: Sequence[str]) -> str | None:
    """A newest commit that is in the history of all of some commits."""
    if len(tips) == 1:
        return tips[0]
    status, output, problem = store._attempt("merge-base", "--octopus", *tips)
    if status not in (0, 1):
        raise GitFailure(["merge-base"], status, problem)
    return output.decode("ascii").split()[0] if status == 0 else None


def count(store: Store, *words: str) -> int:
    """How many commits ``git rev-list WORDS`` selects."""
    return int(store._line("rev-list", "--count", *words))


def trees_of(store: Store, wanted: Iterable[str]) -> dict[str, str]:
    """Tree id of each of some commits.

    Raises:
        GitFailure: one of them is not there.
    """
    names = sorted(set(wanted))
    text = "".join(f"{name}^{{tree}}\n" for name in names).encode()
    answers = store._git("cat-file", "--batch-check=%(objectname) %(objecttype)", stdin=text).decode("ascii")
    found = {}
    for name, line in zip(names, answers.splitlines(), strict=True):
        oid, _, kind = line.partition(" ")
        if kind != "tree":
            raise GitFailure(["cat-file"], 128, f"missing tree of commit {name}")
        found[name] = oid
    return found


def history_trees(store: Store, tip: str) -> list[tuple[str, str]]:
    """Commit and tree of everything in the history of ``tip``, newest first."""
    output = store._git("log", "--topo-order", "--format=%H %T", tip).decode("ascii")
    return [(line[:40], line[41:]) for line in output.splitlines()]


def cut_off(store: Store) -> set[str]:
    """Commits whose parents the store was not given."""
    path = store.path / "shallow"
    return set(path.read_text(encoding="ascii").split()) if path.is_file() else set()


def commits_touching(store: Store, tips: Sequence[str], excluded: Sequence[str], paths: Iterable[str]) -> list[str]:
    """Commits in the history of ``tips`` and not of ``excluded`` that change one of some paths; no merges."""
    lines = [*tips, *(f"^{one}" for one in excluded), "--", *(f":(literal){path}" for path in paths)]
    text = "".join(f"{line}\n" for line in lines if "\n" not in line).encode("utf-8", "surrogateescape")
    return store._git("rev-list", "--full-history", "--no-merges", "--stdin", stdin=text).decode("ascii").split()


def changes_of(store: Store, wanted: Sequence[str]) -> dict[str, dict[str, FileChange]]:
    """For each of some commits that are no merges, every path it changes; a rename counts as both its paths."""
    found: dict[str, dict[str, FileChange]] = {commit: {} for commit in wanted}
    if not wanted:
        return found
    text = "".join(f"{commit}\n" for commit in wanted).encode()
    output = store._git("diff-tree", "--stdin", "-r", "-z", "--root", "--no-renames", stdin=text)
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    position, current = 0, found[wanted[0]]
    while position < len(fields):
        field = fields[position]
        position += 1
        if field.startswith(":"):
            old_mode, new_mode, old, new, _ = field[1:].split(" ")
            current[fields[position]] = FileChange((old_mode, new_mode), (old, new))
            position += 1
        elif field:
            current = found[field]
    return found


def binary_paths(store: Store, commit: str) -> set[str]:
    """Paths a commit changes as binary files."""
    output = store._git("diff-tree", "-r", "-z", "--root", "--no-renames", "--numstat", "--no-commit-id", commit)
    lines = output.decode("utf-8", "surrogateescape").split("\0")
    return {line.removeprefix("-\t-\t") for line in lines if line.startswith("-\t-\t")}


def sizes_of(store: Store, oids: Iterable[str]) -> dict[str, int]:
    """Bytes of each of some objects; those the store does not hold are left out."""
    names = sorted(set(oids))
    if not names:
        return {}
    text = "".join(f"{name}\n" for name in names).encode()
    answers = store._git("cat-file", "--batch-check=%(objectname) %(objectsize)", stdin=text).decode("ascii")
    words = [line.split(" ") for line in answers.splitlines()]
    return {name: int(size) for name, size in words if size != "missing"}


def remotes(store: Store, folder: Path) -> dict[str, str]:
    """Name and URL of the remotes a repository on this disk has; none if ``folder`` is no repository."""
    config = _common_folder(folder) / "config"
    if not config.is_file():
        return {}
    # As a plain file: no include is followed, and nothing it says is done.
    words = ["--file", str(config), "--no-includes", "-z", "--get-regexp", r"^remote\..*\.url$"]
    status, output, _ = store._attempt("config", *words)
    found = {}
    for record in output.decode("utf-8", "replace").split("\0") if status == 0 else ():
        key, newline, url = record.partition("\n")
        if newline:
            found[key.removeprefix("remote.").removesuffix(".url")] = url
    return found


def is_shallow(folder: Path) -> bool:
    """Whether the history of a repository on this disk is cut off."""
    return (_common_folder(folder) / "shallow").is_file()


def _common_folder(folder: Path) -> Path:
    """Where a repository keeps its configuration: ``.git``, a bare repository itself, or what a linked one names."""
    inside = folder / ".git"
    if inside.is_file():
        text = inside.read_text(encoding="utf-8", errors="surrogateescape")
        inside = folder / text.partition("gitdir:")[2].strip()
    elif not inside.is_dir():
        inside = folder
    common = inside / "commondir"
    if common.is_file():
        inside = inside / common.read_text(encoding="utf-8", errors="surrogateescape").strip()
    return inside
