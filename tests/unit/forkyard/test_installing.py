from __future__ import annotations

import pytest

from forkyard import installing
from forkyard.installing import install_command, package_manager

SYSTEMS = [
    ({"ID": "debian"}, "apt"),
    ({"ID": "ubuntu", "ID_LIKE": "debian"}, "apt"),
    ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "apt"),
    ({"ID": "fedora"}, "dnf"),
    ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "dnf"),
    ({"ID": "amzn", "ID_LIKE": "fedora"}, "dnf"),
    ({"ID": "arch"}, "pacman"),
    ({"ID": "manjaro", "ID_LIKE": "arch"}, "pacman"),
    ({"ID": "opensuse-tumbleweed", "ID_LIKE": "opensuse suse"}, "zypper"),
    ({"ID": "alpine"}, "apk"),
    ({"ID": "nixos"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("fields", "manager"), SYSTEMS)
def test_the_package_manager_of_each_system(fields: dict[str, str], manager: str | None) -> None:
    assert package_manager(fields) == manager


@pytest.mark.parametrize("manager", [manager for manager, _ in installing._MANAGERS])
@pytest.mark.parametrize("what", list(installing._PACKAGES))
def test_every_missing_thing_has_a_command_on_every_system(
    manager: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkyard.installing.os.geteuid", lambda: 0)
    as_root = install_command(what, manager)
    assert installing._PACKAGES[what][manager] in as_root
    assert "sudo" not in as_root
    monkeypatch.setattr("forkyard.installing.os.geteuid", lambda: 1000)
    command = install_command(what, manager)
    assert all(part.startswith("sudo ") for part in command.split(" && "))


def test_an_unknown_system_gets_words() -> None:
    assert "package manager" in install_command("git", None)
