"""Single files of the engine under test, and of a test itself, compiled with the machine's compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from forkyard.cache import Cache

TIMEOUT_S = 1800


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert found is not None
    return found


def compiled(text: str, output: Path, *options: str) -> Path:
    """Compile a text of C++ to a program, or with ``-shared`` to a library."""
    source = output.with_suffix(".cpp")
    source.write_text(text, encoding="utf-8")
    command = [compiler(), "-std=c++17", "-o", str(output), str(source), *options]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    return output


def extract(package: Path, folder: Path, *paths: str) -> Path:
    """Write files and folders of the tree that a payload of llama.cpp is made from under ``folder``."""
    tree = json.loads((package / "manifest.json").read_text())["patched"]["tree"]
    command = ["git", "--git-dir", str(Cache.default().store("llama.cpp")), "archive", tree, *paths]
    archive = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True, timeout=TIMEOUT_S)
    return folder
