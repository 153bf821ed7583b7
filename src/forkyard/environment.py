"""The environments the project makes for itself: what of the user's settings reaches them, and when one is whole.

Only the standard library is used: the front door loads this file by its path before anything is installed.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# What pip may take from the user: where packages come from and how to get there; never where they go, or which.
_INDEX_KEYS = {
    "index-url", "extra-index-url", "no-index", "find-links", "trusted-host", "cert", "client-cert", "proxy",
    "keyring-provider", "cache-dir", "no-cache-dir", "timeout", "default-timeout", "retries",
}  # fmt: skip
# Another environment's, or another Python's: each can make ours run what is not in it.
_FOREIGN = ("CONDA_", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_STAMP = "installed.json"


class EnvironmentFailure(Exception):
    """An environment could not be made; the message says why and what to do."""


def pip_settings(listing: str, sections: Sequence[str]) -> dict[str, str]:
    """Read the output of ``pip config list``, lines ``section.key='value'``; of several sections the later one wins."""
    values: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        name, equals, quoted = line.partition("=")
        section, dot, key = name.rpartition(".")
        if not equals or not dot or section not in sections:
            continue
        try:
            value = ast.literal_eval(quoted)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, str) and sections.index(section) >= values.get(key, (-1, ""))[0]:
            values[key] = (sections.index(section), value)
    return {key: value for key, (_, value) in values.items()}


def own_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for programs of our own environments: no other Python's, and of pip's only those about indexes."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_FOREIGN)
        and (not name.startswith("PYTHON") or name.startswith("PYTHON_"))
        and (not name.startswith("PIP_") or name == "PIP_CONFIG_FILE" or _key(name) in _INDEX_KEYS)
    }


def _key(variable: str) -> str:
    return variable.removeprefix("PIP_").lower().replace("_", "-")


def pip_variables(python: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables under which ``python -m pip install`` obeys the user's index settings and no other configuration.

    Args:
        python: one that has pip, which reads the user's files.
    """
    variables = own_variables(environ)
    asked = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], env=variables, capture_output=True, text=True, check=False
    )
    # A file pip cannot read is none: an installation without it may still succeed.
    found = pip_settings(asked.stdout if asked.returncode == 0 else "", ("global", "install", ":env:"))
    variables |= {f"PIP_{key.upper().replace('-', '_')}": text for key, text in found.items() if key in _INDEX_KEYS}
    return {**variables, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def ensure(folder: Path, root: Path, extra: str, say: Callable[[str], None]) -> Path:
    """Have a virtual environment in ``folder`` with the project at ``root`` installed for editing.

    Nothing counts as installed before it was seen to run, and what was installed is looked for again each time: a
    deleted package, another Python or a moved clone leads to a new environment. Of two runs at once one waits.

    Args:
        extra: the project's extra to install besides; empty for none.
        say: is called with what takes time.

    Returns:
        the folder of its programs.

    Raises:
        EnvironmentFailure: it cannot be made.
    """
    if extra in _installed(folder, root):
        return folder / "bin"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        have = _installed(folder, root)
        if extra not in have:
            if not have:
                say(f"setting up the environment in {folder} (once)")
                _make(folder)
            # Whatever happens to what was there: it is not whole until this is done.
            (folder / _STAMP).unlink(missing_ok=True)
            _install(folder, root, {*have, extra})
    return folder / "bin"


def _identity(folder: Path, root: Path) -> str:
    """What an environment is made for: these dependencies, this Python, this place."""
    whole = hashlib.sha256((root / "pyproject.toml").read_bytes())
    whole.update("\0".join([sys.version, os.path.abspath(folder), os.path.abspath(root)]).encode("utf-8", "replace"))
    return whole.hexdigest()


def _contents(folder: Path) -> set[str]:
    return {path.name for packages in folder.glob("lib/python*/site-packages") for path in packages.iterdir()}


def _installed(folder: Path, root: Path) -> set[str]:
    """The extras that are there; none if the environment is not whole."""
    try:
        stamp = json.loads((folder / _STAMP).read_bytes())
        whole = stamp["identity"] == _identity(folder, root) and set(stamp["contents"]) <= _contents(folder)
        # The programs may be links to a Python that is gone, or copies whose library is gone.
        programs = all(os.access(folder / "bin" / name, os.X_OK) for name in ("python", "forkyard"))
        return set(stamp["extras"]) if whole and programs and os.path.exists(stamp["library"]) else set()
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _make(folder: Path) -> None:
    try:
        venv.create(folder, with_pip=True, clear=True)
    except ValueError as error:
        # A colon in the path: the folder of programs could not be put into PATH.
        msg = f"{error} Move the project to a folder without that character."
        raise EnvironmentFailure(msg) from None
    except (subprocess.CalledProcessError, OSError) as error:
        msg = f"Python could not make a virtual environment: {error} (on Debian and Ubuntu it needs python3-venv)"
        raise EnvironmentFailure(msg) from None


def _install(folder: Path, root: Path, extras: set[str]) -> None:
    python = folder / "bin" / "python"
    chosen = ",".join(sorted(extras - {""}))
    what = f"{root}[{chosen}]" if chosen else str(root)
    command = [str(python), "-m", "pip", "install", "--quiet", "--editable", what]
    if subprocess.run(command, env=pip_variables(python, os.environ), check=False).returncode != 0:
        msg = "pip could not install forkyard's dependencies; its message above says why"
        raise EnvironmentFailure(msg)
    try:
        tried = subprocess.run(
            [str(folder / "bin" / "forkyard"), "--version"],
            env=own_variables(os.environ),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        problem = tried.stderr.strip()[-500:] if tried.returncode != 0 else None
    except OSError as error:
        problem = str(error)
    if problem is not None:
        msg = f"forkyard was installed and does not run: {problem}"
        raise EnvironmentFailure(msg)
    stamp = {
        "identity": _identity(folder, root),
        "extras": sorted({"", *extras}),
        "contents": sorted(_contents(folder) - {"__pycache__"}),
        "library": os.__file__,
    }
    # Last, by rename: what is cut off before is done again.
    part = folder / f"{_STAMP}.part"
    part.write_text(json.dumps(stamp), encoding="utf-8")
    part.replace(folder / _STAMP)
