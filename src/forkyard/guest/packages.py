"""Debian packages a guest is made of, by way of apt: nothing is installed, and the system's apt state stays as it is.

apt checks the signature of its lists and the hash of every package. The hash is kept beside the files, which are used
again, without a network, as long as they still have it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from forkyard.cache import Cache, explained, write_atomic
from forkyard.console import Reporter
from forkyard.errors import NetworkError, SourceError, ToolchainError
from forkyard.network import sha256_of
from forkyard.process import clean_environment, run
from forkyard.scratch import owned_folder

KERNEL = "linux-image-cloud-amd64"
"""A package that is empty but for its dependence on the newest kernel for virtual machines."""
TOOLS = ("busybox-static", "numactl", "libnuma1")

_APT_S = 600.0
_UNPACK_S = 120.0
_KERNEL_IMAGE = re.compile(r"\blinux-image-\d[\w.+~-]*-cloud-amd64\b")
_FIELD = re.compile(r"^(Version|SHA256|Depends): (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One package file in the cache."""

    name: str
    version: str
    sha256: str

    def path(self, cache: Cache) -> Path:
        """Where it is."""
        return cache.downloads / f"{self.sha256}.deb"


def get_packages(cache: Cache, reporter: Reporter, *, offline: bool, refresh: bool = False) -> list[Package]:
    """The packages, from the cache if they are there: first the kernel, then :data:`TOOLS`.

    Args:
        refresh: ask apt for newer ones even so.

    Raises:
        NetworkError: they are not there and ``offline`` is set, or apt could not fetch them.
        SourceError: what apt fetched has another hash than apt said.
        ToolchainError: there is no apt.
    """
    index = cache.root / "guest" / "packages.json"
    known = None if refresh else _known(index, cache)
    if known is not None:
        return known
    if offline:
        msg = "the guest's packages are not in the cache"
        raise NetworkError(msg, where=str(index), next_step="run once without --offline")
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            msg = f"{tool} is not on this machine"
            raise ToolchainError(
                msg,
                why="the guest's kernel, busybox and numactl are Debian packages",
                next_step="run it on Debian (or in a Debian container): apt-get install -y apt dpkg qemu-system-x86",
            )
    with owned_folder(cache.scratch, "apt-") as scratch, reporter.step("packages for the guest", "packages") as step:
        apt = _Apt(scratch)
        refused = apt.update()
        kernel = _KERNEL_IMAGE.search(apt.facts(KERNEL, refused)["Depends"])
        if kernel is None:
            msg = f"{KERNEL} depends on no kernel"
            raise SourceError(msg, next_step="check apt's sources; they must be Debian's")
        names = (kernel[0], *TOOLS)
        found = []
        for done, name in enumerate(names):
            step.update(done, len(names), name)
            found.append(_fetch(apt, name, refused, cache))
    write_atomic(index, (json.dumps([asdict(one) for one in found], indent=1) + "\n").encode())
    return found


def unpack(packages: Sequence[Package], cache: Cache, target: Path) -> None:
    """Unpack packages into a folder, whose usual subfolders are /usr, /bin, /boot ...

    Raises:
        SourceError: one is damaged.
    """
    for package in packages:
        done = run(["dpkg-deb", "-x", str(package.path(cache)), str(target)], timeout_s=_UNPACK_S, env=_environment())
        if done.returncode != 0:
            msg = f"the package {package.name} cannot be unpacked"
            raise SourceError(msg, where=str(package.path(cache)), why=done.stderr.strip())


def _known(index: Path, cache: Cache) -> list[Package] | None:
    try:
        found = [Package(**one) for one in json.loads(index.read_text(encoding="utf-8"))]
        whole = [one for one in found if sha256_of(one.path(cache)) == one.sha256]
    except (OSError, ValueError, TypeError):
        return None
    wanted = [one.name for one in found][1:] == list(TOOLS)
    return found if wanted and whole == found else None


def _fetch(apt: _Apt, name: str, refused: str | None, cache: Cache) -> Package:
    facts = apt.facts(name, refused)
    package = Package(name, facts["Version"], facts["SHA256"])
    fetched = apt.download(f"{name}={package.version}")
    if (found := sha256_of(fetched)) != package.sha256:
        msg = f"the package {name} is not the one apt's lists name"
        raise SourceError(msg, why=f"expected sha256 {package.sha256}, got {found}")
    with explained(f"keep {fetched.name}"):
        cache.downloads.mkdir(parents=True, exist_ok=True)
        os.replace(fetched, package.path(cache))
    return package


class _Apt:
    """apt with the system's sources and keys, and lists of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("state/lists/partial", "cache/archives/partial", "debs"):
            (folder / name).mkdir(parents=True)
        self._options = [
            *("-o", f"Dir::State={folder / 'state'}", "-o", "Dir::State::status=/dev/null"),
            # The user apt would change to may not see the folder.
            *("-o", f"Dir::Cache={folder / 'cache'}", "-o", "APT::Sandbox::User=root"),
        ]

    def update(self) -> str | None:
        """Fetch the lists; returns what apt complained of, which need not have to do with our packages."""
        done = run(["apt-get", *self._options, "-q", "update"], timeout_s=_APT_S, env=_environment())
        return None if done.returncode == 0 else (done.stderr.strip() or f"apt-get update ended with {done.returncode}")

    def facts(self, name: str, refused: str | None) -> Mapping[str, str]:
        """Fields of the newest version of a package."""
        command = ["apt-cache", *self._options, "show", "--no-all-versions", name]
        done = run(command, timeout_s=_APT_S, env=_environment())
        fields = dict(_FIELD.findall(done.stdout))
        if done.returncode != 0 or not {"Version", "SHA256"} <= fields.keys():
            msg = f"apt knows no package {name}"
            raise NetworkError(
                msg,
                why=refused or done.stderr.strip(),
                next_step="check apt's sources and the network; the package is Debian's",
            )
        return {"Depends": "", **fields}

    def download(self, what: str) -> Path:
        """Fetch one package; apt checks its hash."""
        folder = self._folder / "debs"
        done = run(
            ["apt-get", *self._options, "-q", "download", what], timeout_s=_APT_S, cwd=folder, env=_environment()
        )
        files = list(folder.iterdir())
        if done.returncode != 0 or len(files) != 1:
            msg = f"apt could not fetch {what}"
            raise NetworkError(msg, why=done.stderr.strip(), next_step="check the network, then run again")
        return files[0]


def _environment() -> dict[str, str]:
    keep = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "no_proxy", "apt_config")]
    return clean_environment(extra={name: os.environ[name] for name in keep})
