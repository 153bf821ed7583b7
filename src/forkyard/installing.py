"""The exact command that installs what is missing, for the package manager of this system."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

# Package names by package manager; the manager is chosen by /etc/os-release.
_INSTALL = {
    "apt": "apt-get install -y {}",
    "dnf": "dnf install -y {}",
    "pacman": "pacman -S --needed {}",
    "zypper": "zypper install -y {}",
    "apk": "apk add {}",
}
_PACKAGES: dict[str, dict[str, str]] = {
    "compiler": {"apt": "gcc g++", "dnf": "gcc gcc-c++", "pacman": "gcc", "zypper": "gcc gcc-c++", "apk": "build-base"},
    "git": {"apt": "git", "dnf": "git", "pacman": "git", "zypper": "git", "apk": "git"},
    "openmp": {"apt": "libgomp1", "dnf": "libgomp", "pacman": "gcc-libs", "zypper": "libgomp1", "apk": "libgomp"},
    # clang's own OpenMP library, with the header: clang does not build with gcc's.
    "openmp of clang": {
        "apt": "libomp-dev",
        "dnf": "libomp-devel",
        "pacman": "openmp",
        "zypper": "libomp-devel",
        "apk": "openmp-dev",
    },
}
_MANAGERS = (
    ("apt", ("debian", "ubuntu")),
    ("dnf", ("fedora", "rhel", "centos")),
    ("pacman", ("arch",)),
    ("zypper", ("suse",)),
    ("apk", ("alpine",)),
)


def package_manager(os_release: Mapping[str, str]) -> str | None:
    """The package manager of a system described by its os-release fields."""
    words = f"{os_release.get('ID', '')} {os_release.get('ID_LIKE', '')}".split()
    return next(
        (manager for manager, names in _MANAGERS if any(word.startswith(name) for word in words for name in names)),
        None,
    )


def install_command(what: str, manager: str | None) -> str:
    """The command that installs ``what``; for an unknown system, words."""
    if manager is None:
        return f"install {what} with your system's package manager"
    return install_packages(_PACKAGES[what][manager], manager)


def install_packages(names: str, manager: str) -> str:
    """The command by which a package manager installs packages, their names separated by spaces."""
    prefix = "" if os.geteuid() == 0 else "sudo "
    update = f"{prefix}apt-get update && " if manager == "apt" else ""
    return update + prefix + _INSTALL[manager].format(names)


def this_package_manager() -> str | None:
    """The package manager of this machine."""
    try:
        return package_manager(platform.freedesktop_os_release())
    except OSError:
        return None
