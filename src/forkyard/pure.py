"""Building the wheels of the bindings, which are pure Python, byte for byte the same from the same files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from pathlib import Path

from forkyard.cache import Cache, explained, publish
from forkyard.console import Reporter
from forkyard.errors import BuildError
from forkyard.locks import hold
from forkyard.process import clean_environment, run
from forkyard.scratch import owned_folder

_PROGRAM = "import sys; from hatchling.build import build_wheel; print('forkyard-wheel: ' + build_wheel(sys.argv[1]))"
# A fixed date: the bindings are not tied to a pin.
_EPOCH = "1767225600"


def bindings_digest(project: Path) -> str:
    """Digest over everything the wheel of ``project`` is made from."""
    whole = hashlib.sha256(f"hatchling {importlib.metadata.version('hatchling')}".encode())
    for path in sorted(path for path in project.rglob("*") if path.is_file()):
        relative = path.relative_to(project)
        if "__pycache__" in relative.parts or relative.parts[0] in ("dist", "llama_cpp"):
            continue
        whole.update(f"{relative.as_posix()}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def build_bindings(root: Path, cache: Cache, out: Path, reporter: Reporter) -> list[Path]:
    """Have the wheels of forkyard-llm and of the module llama_cpp in ``out``; does nothing if they are current.

    Raises:
        BuildError: the build backend failed.
    """
    projects = [root / "bindings", *sorted(path.parent for path in root.glob("bindings/*/pyproject.toml"))]
    return [_build(project, cache, out, reporter) for project in projects]


def _build(project: Path, cache: Cache, out: Path, reporter: Reporter) -> Path:
    folder = cache.root / "wheels" / f"bindings-{bindings_digest(project)}"
    with hold(cache.locks / "bindings.lock"):
        kept = next(iter(sorted(folder.glob("*.whl"))), None)
        if kept is None:
            with (
                reporter.step(f"packing {project.name}"),
                owned_folder(cache.scratch, "bindings-") as scratch,
            ):
                done = run(
                    [sys.executable, "-c", _PROGRAM, str(scratch)],
                    cwd=project,
                    env=clean_environment(extra={"SOURCE_DATE_EPOCH": _EPOCH}),
                    timeout_s=300,
                )
                name = done.stdout.rpartition("forkyard-wheel: ")[2].strip()
                if done.returncode != 0 or not name:
                    msg = "the bindings could not be packed"
                    raise BuildError(msg, where=str(project), why=done.stderr.strip()[-2000:])
                kept = folder / name
                publish(scratch / name, kept)
        target = out / kept.name
        if not (target.is_file() and target.read_bytes() == kept.read_bytes()):
            publish(kept, target)
        for other in out.glob(f"{kept.name.split('-')[0]}-*.whl"):
            if other.name != kept.name:
                with explained(f"remove the older {other.name}"):
                    other.unlink(missing_ok=True)
    return target
