"""Both commands of the README as a newcomer types them: in an empty Debian with python3, python3-venv, git and g++ alone.

``nox -s newcomer -- SUITE`` (bookworm, trixie). Debootstrap makes the root from the mirror of this machine's own apt
sources; the project is cloned into it as it is committed; an ordinary user runs the commands. Mounts live in a
namespace of their own and end with it, whatever ends the run. Nothing of this machine is in the root but its address
of the package registry, its certificates and the kernel's /proc, /sys and /dev.

``--cache FOLDER`` becomes the user's ~/.cache, so that a second run need not download and compile all again; times of
such a run say nothing about a cold machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.errors import ForkyardError, ToolchainError, UsageError
from forkyard.installing import this_package_manager
from forkyard.process import run, stream
from forkyard.scratch import owned_folder

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("bookworm", "trixie")
PACKAGES = "python3,python3-venv,git,g++"
# What says where the package registry is and how it is reached. Not its login: a newcomer has none.
SETTINGS = re.compile(
    r"PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|CERT|DEFAULT_TIMEOUT)|.*_proxy|.*_PROXY|SSL_CERT_FILE"
)
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TIMEOUT_S = 6 * 3600.0
MOUNTS = """
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
if [ -n "$2" ]; then mkdir -p "$1/home/newcomer/.cache"; mount --bind "$2" "$1/home/newcomer/.cache"; fi
root=$1; shift 2
status=0; chroot --userspec=newcomer:newcomer "$root" "$@" || status=$?
exit $status
"""


def readme_command(name: str, text: str) -> str:
    """The shell command that stands below ``<!-- command: NAME -->`` in a README."""
    match = re.search(rf"<!-- command: {name} -->\n```sh\n(.*?)\n```", text, re.DOTALL)
    if match is None:
        msg = f"README.md has no command {name!r}"
        raise UsageError(msg)
    return match[1]


def mirror(targets: str, codename: str) -> str:
    """The address of a Debian mirror, from apt's own list of what it downloads: lines ``address codename component``."""
    for line in targets.splitlines():
        address, release, component = line.split(" ")
        if (release, component) == (codename, "main"):
            return address
    msg = "this machine's apt sources name no Debian mirror"
    raise ToolchainError(msg, where="apt-get indextargets", next_step="run it on a Debian machine")


def debian(suite: str, folder: Path, log: Path) -> None:
    """Make the root."""
    if os.geteuid() != 0:
        msg = "an empty root can be made by root alone"
        raise ToolchainError(msg, next_step="run it as root")
    if shutil.which("debootstrap") is None or this_package_manager() != "apt":
        msg = "debootstrap is not on this machine"
        raise ToolchainError(msg, next_step="on Debian: apt-get install debootstrap")
    codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
    listed = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"],
        timeout_s=60,
    ).stdout
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(folder)]
    status = stream([*command, mirror(listed, codename)], log=log, on_line=lambda _: None, timeout_s=1800)
    if status != 0:
        msg = f"debootstrap could not make {suite}"
        raise ToolchainError(msg, where=str(log), next_step="its last lines say why")
    # Made for its owner alone; the newcomer lives in it.
    folder.chmod(0o755)
    for path in (Path("/etc/resolv.conf"), Path("/etc/hosts"), CERTIFICATES):
        if path.is_file():
            target = folder / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(path, target)


def inside(folder: Path, cache: Path | None, command: str, log: Path) -> int:
    """Run a shell command as the newcomer, in the clone; returns its exit status."""
    settings = {name: value for name, value in os.environ.items() if SETTINGS.fullmatch(name)}
    settings |= {
        "HOME": "/home/newcomer",
        "USER": "newcomer",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }
    if CERTIFICATES.is_file():
        settings |= dict.fromkeys(
            ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"), str(CERTIFICATES)
        )
    words = ["env", "-i", *(f"{name}={value}" for name, value in sorted(settings.items()))]
    words += ["bash", "-euo", "pipefail", "-c", f"cd ~/forkyard; {command}"]
    # Whatever kills us kills unshare, then the shell that is the first process in there, then all others.
    mounting = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-euc",
        MOUNTS,
        "sh",
    ]
    return stream(
        [*mounting, str(folder), str(cache or ""), *words],
        log=log,
        on_line=lambda line: print(line, flush=True),
        timeout_s=TIMEOUT_S,
    )


def main() -> int:
    """Run it; returns the exit status of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="The newcomer's ~/.cache, kept from run to run.")
    parser.add_argument(
        "--command", action="append", default=[], help="A command instead of the README's; several are run in turn."
    )
    given = parser.parse_args()
    cache = Cache.default()
    cache.prepare()
    log = cache.logs / f"newcomer-{given.suite}.log"
    log.unlink(missing_ok=True)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = []
    with owned_folder(cache.scratch, "newcomer-") as folder:
        with Console().step(f"making an empty {given.suite}", ""):
            debian(given.suite, folder, log)
        home = folder / "home" / "newcomer"
        for command in (
            ["chroot", str(folder), "useradd", "--create-home", "newcomer"],
            ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(home / "forkyard")],
            ["chroot", str(folder), "chown", "-R", "newcomer:newcomer", "/home/newcomer"],
        ):
            done = run(command, timeout_s=600)
            if done.returncode != 0:
                msg = f"the root of {given.suite} could not be set up"
                raise ToolchainError(msg, where=shlex.join(command), why=done.stderr.strip())
        if given.cache is not None:
            given.cache.mkdir(parents=True, exist_ok=True)
            owner = (home / "forkyard").stat()
            # What somebody put there beforehand is the newcomer's, too.
            for path in (given.cache, *given.cache.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        readme = [(name, readme_command(name, text)) for name in ("build", "tests")]
        for name, line in [(line, line) for line in given.command] or readme:
            begun = time.monotonic()
            status = inside(folder, given.cache and given.cache.absolute(), line, log)
            rows.append(
                f"{name:<6} {'passed' if status == 0 else f'FAILED ({status})'} in {time.monotonic() - begun:.0f} s"
            )
            if status != 0:
                break
    print(f"newcomer on {given.suite}, {'with a cache' if given.cache else 'cold'} (log: {log})", *rows, sep="\n  ")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ForkyardError as error:
        print(error.describe(), file=sys.stderr)
        sys.exit(error.exit_code)
