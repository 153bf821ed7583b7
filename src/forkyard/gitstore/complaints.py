"""What git says when it fails, reduced to what a person needs: the cause first, and a next step that helps.

git says many things at once: progress, what the other side says, what ssh says, and last a sentence that fits every
cause. So all of it is read, and the line that names the cause is looked for; a single word is never enough to guess by.
git runs with ``LC_ALL=C``, so these are its English words.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "disk-full", "ownership", "locked", "too-old", "no-transport", "incomplete", "damaged", "cut-off", "absent",
    "access", "unreachable", "no-repository", "other",
]  # fmt: skip

_SHOWN = 8
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOISE = re.compile(
    r"^(remote: )?(?:(Enumerating|Counting|Compressing|Receiving|Resolving|Unpacking|Updating|Writing|Checking|"
    r"Filtering|Expanding|Indexing|Negotiating)\b.*\d+.*|Total \d+ \(delta .*|hint: .*|\s*)$"
    r"|^(Please make sure you have the correct access rights|and the repository exists\.)$"
    r"|^(To add an exception for this directory, call:|\s+git config --global --add safe\.directory .*)$"
    r"|^(From \S+| [*+=!t-] \[?\S.* -> \S+.*)$"
)


@dataclass(frozen=True)
class Complaint:
    """What a git that failed complained about."""

    kind: Kind
    meaning: str | None
    """The cause in our words; ``None`` where it is not known."""
    lines: tuple[str, ...]
    """git's own words without progress and courtesies, the line that names the cause first."""
    next_step: str | None = None
    """What helps with this cause; ``None`` where that depends on what was being done."""

    @property
    def why(self) -> str:
        """Cause and git's words, as an error shows them."""
        shown = [*([self.meaning] if self.meaning else []), *self.lines[:_SHOWN]]
        if len(self.lines) > _SHOWN:
            shown.append(f"({len(self.lines) - _SHOWN} more lines)")
        return "\n         ".join(shown)

    @property
    def brief(self) -> str:
        """The cause on one line."""
        first = self.lines[0] if self.lines else "no reason given"
        return f"{self.meaning} ({first})" if self.meaning else first


@dataclass(frozen=True)
class _Cause:
    kind: Kind
    pattern: re.Pattern[str]
    meaning: str
    next_step: str | Callable[[re.Match[str], str], str] | None


def _exception(match: re.Match[str], text: str) -> str:
    """The command that has git trust a repository: it must name the very path that git's check is about.

    git names the folder that holds the repository's objects and refs; for most repositories that ends in ``.git``. Of
    a linked work tree or a submodule it checks the ``.git`` file that leads there, and names the wrong one of the two.
    """
    folder = Path(match["path"])
    with contextlib.suppress(OSError, ValueError):
        leads = folder / "gitdir"
        if leads.is_file():
            folder = Path(leads.read_text().rstrip("\n"))
        else:
            tree = re.search(r"^\s*worktree = (.+)$", (folder / "config").read_text(), re.MULTILINE)
            folder = Path(os.path.normpath(folder / tree[1] / ".git")) if tree is not None else folder
    return f"if you trust it, run: git config --global --add safe.directory {shlex.quote(str(folder))}"


def _cause(kind: Kind, pattern: str, meaning: str, step: str | Callable[[re.Match[str], str], str] | None) -> _Cause:
    return _Cause(kind, re.compile(pattern), meaning, step)


_PARTIAL = "it is a partial clone: files of its history are not in it"
_REFETCH = "run `git fetch --refetch --no-filter` in it, or give the address it was cloned from"
_DAMAGED = "objects of the repository are damaged or missing"

# The first that fits a line of the complaint is the cause: what is special stands before what follows from it.
_CAUSES = (
    _cause("disk-full", r"No space left on device|Disk quota exceeded", "the disk is full", "make room on it"),
    _cause(
        "ownership",
        r"detected dubious ownership in repository at '(?P<path>.*)'",
        "git does not read a repository that belongs to somebody else",
        _exception,
    ),
    _cause(
        "locked",
        r"Unable to create '(?P<path>.*\.lock)': File exists",
        "another git works there, or was killed there and left its lock file",
        lambda match, text: f"see that no git runs there, then delete it: rm {shlex.quote(match['path'])}",
    ),
    _cause(
        "access",
        r"Permission denied \([a-z,-]+\)",
        "the server accepts none of your ssh keys",
        "see which keys ssh offers (`ssh-add -l`), add one to your account on the server, or use the https address",
    ),
    _cause(
        "access",
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "ssh does not know the server's key, or knew another one",
        "compare the key with the one the server's owner publishes: `ssh SERVER` shows it and asks whether to take it"
        " (`ssh-keygen -R SERVER` forgets an old one)",
    ),
    _cause(
        "no-transport",
        r"cannot run ssh: |ssh: (command )?not found|ssh: No such file",
        "there is no ssh on this machine",
        "install it (Debian: apt-get install openssh-client), or use the https address",
    ),
    _cause(
        "no-transport",
        r"git: 'remote-(?P<scheme>[^']*)' is not a git command|[Uu]nable to find remote helper for '(?P<other>[^']*)'",
        "this git does not know that kind of address",
        "give an https, ssh or file address; for https install all of git (Debian: apt-get install git)",
    ),
    _cause(
        "no-transport",
        r"transport '(?P<scheme>[^']*)' not allowed",
        "git may not use that kind of address",
        "give an https or ssh address, or a clone on this disk",
    ),
    _cause(
        "unreachable",
        r"Could not resolve (host|hostname|proxy):? *(?P<host>[^\s:]*)",
        "no address is known for the server's name",
        "check the name and the network (behind a proxy: https_proxy), or give a clone on this disk",
    ),
    _cause(
        "access",
        r"SSL certificate problem|server (certificate )?verification failed|certificate verif|certificate signer"
        r"|SSL: no alternative certificate|SSL peer certificate|gnutls_handshake\(\) failed: .*certificate",
        "the server's certificate is not accepted",
        "check this machine's clock and its ca-certificates; a company's own authority is named by"
        " `git config --global http.sslCAInfo FILE`",
    ),
    _cause(
        "access",
        r"could not read (Username|Password) for|Authentication failed for|HTTP Basic: Access denied"
        r"|(returned error|HTTP): (401|403)\b",
        "the server asks who you are, or the repository is not there: many servers answer the same to both",
        "check the address; if it is right, sign in with git itself (`git ls-remote ADDRESS`) and have a credential"
        " helper keep it, for forkyard never asks; or use ssh",
    ),
    _cause(
        "no-repository",
        r"repository '.*' not found|Repository not found|(returned error|HTTP): (404|410)\b",
        "there is no such repository, or you may not see it",
        "check the address, and that your account may read it",
    ),
    _cause(
        "no-repository",
        r"does not appear to be a git repository|[Nn]ot a git repository|is this a git repository\?|invalid gitfile",
        "there is no git repository",
        "check the address or folder; give the folder that holds `.git`, or a bare repository",
    ),
    _cause(
        "unreachable",
        r"Failed to connect to|[Cc]onnect to host .* port|unable to connect to|Connection (refused|timed out|reset)"
        r"|[Oo]peration (timed out|too slow)|Network is unreachable|No route to host|(returned error|HTTP): 5\d\d\b",
        "the server cannot be reached, or is not well",
        "check the address and the network, and try again later; or give a clone on this disk",
    ),
    _cause(
        "incomplete",
        r"could not fetch [0-9a-f]{40} from promisor remote",
        _PARTIAL,
        _REFETCH,
    ),
    _cause(
        "cut-off",
        r"shallow roots are not allowed|from a shallow repository|source repository is shallow",
        "the history there is cut off",
        "run `git fetch --unshallow` in it, or give the address it was cloned from",
    ),
    # Those that name an object before those that only say that something is wrong.
    _cause(
        "damaged",
        r"object [0-9a-f]{40} .*is corrupt\b|object file .* is empty"
        r"|(bad object|hash mismatch|missing \w+|corrupt).* [0-9a-f]{40}"
        r"|[0-9a-f]{40}: object corrupt|unable to (read|unpack) .*[0-9a-f]{40}|[0-9a-f]{40} .*is garbage",
        _DAMAGED,
        None,
    ),
    _cause(
        "damaged",
        r"inflate: |inflate returned|bad object\b|is corrupt\b|[Cc]orrupt (loose |packed )?object|hash mismatch"
        r"|possible repository corruption|packfile .* (cannot|does not|claims)|SHA1 COLLISION|pack has (bad|junk)"
        r"|missing (blob|tree|commit)\b|did not send all necessary objects",
        _DAMAGED,
        None,
    ),
    _cause(
        "absent",
        r"not our ref [0-9a-f]+|couldn't find remote ref|unadvertised object [0-9a-f]+|[Nn]o such remote ref",
        "it does not have that commit, or does not give it out",
        "fetch the commit into it on a branch, or give a repository that has it",
    ),
    _cause("incomplete", r"lazy fetching disabled", _PARTIAL, _REFETCH),
    _cause(
        "unreachable",
        r"early EOF|RPC failed|remote end hung up|unexpected disconnect|invalid index-pack output|bad pack header",
        "the connection ended before everything had arrived",
        "run it again; if it stays so, try another network or a mirror",
    ),
    _cause(
        "access",
        r"(fatal|error|warning): .*Permission denied",
        "a file or folder may not be read by you",
        "have its owner give you the right to read it, or make a clone of your own",
    ),
    _cause(
        "too-old",
        r"unknown (option|switch) `|^usage: git |is not a git command",
        "this git is too old for what is asked of it",
        "install a newer git",
    ),
)  # fmt: skip


def read_complaint(text: str) -> Complaint:
    """Read what git wrote to standard error."""
    lines = []
    for line in re.split(r"[\r\n]+", _ESCAPE.sub("", text)):
        clean = "".join(c if c.isprintable() or c == "\t" else "?" for c in line.replace("\0", "")).rstrip()
        if clean and not _NOISE.match(clean) and clean not in lines:
            lines.append(clean)
    for cause in _CAUSES:
        for line in lines:
            match = cause.pattern.search(line)
            if match is not None:
                rest = [other for other in lines if other != line]
                step = cause.next_step(match, text) if callable(cause.next_step) else cause.next_step
                return Complaint(cause.kind, cause.meaning, (line, *rest), step)
    # What ends git is last; what led to it stands above.
    telling = [line for line in lines if re.match(r"(remote: )?(fatal|error): ", line)]
    return Complaint("other", None, (*telling, *(line for line in lines if line not in telling)))
