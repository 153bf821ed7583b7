"""The engine under test: a payload wheel unpacked for the length of a measurement, and what its llama-bench can do."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import explained
from forkyard.errors import BuildError, UsageError
from forkyard.process import clean_environment, run, show
from forkyard.scratch import owned_folder

TOOL = "llama-bench"
READER = "llama-perplexity"
SERVERS = ("ggml-rpc-server", "rpc-server")
"""Names of the program that lends a device to others; the engines differ, and llama.cpp over time."""
_HELP_S = 60.0
_MODES = re.compile(r"--numa\s+<([^>]*)>")
_SPLITS = re.compile(r"--split-mode\s+<([^>]*)>")
_ATTENTION = re.compile(r"--flash-attn\s+<([^>]*)>")


@dataclass(frozen=True)
class Engine:
    """A payload that can be measured."""

    name: str
    """``llama.cpp`` or ``ik_llama.cpp``, as its manifest says."""
    recipe: str
    """What it was built by: an engine may have recipes at several pins."""
    build_key: str
    wheel: str
    """File name of the wheel it is from."""
    bench: Path
    """Its llama-bench."""
    modes: frozenset[str]
    """Words it takes after ``--numa``."""
    load: Mapping[bool, tuple[str, ...]]
    """Arguments that load the model mapped (true) or read into memory (false)."""
    splits: frozenset[str]
    """Words it takes after ``--split-mode``."""
    flash_attention: tuple[str, ...]
    """Arguments that turn flash attention on."""
    depths: bool
    """Whether it measures with tokens in the KV cache (``-d``), prompts as well."""
    chooses_devices: bool
    """Whether it takes devices by name (``-dev``), those of RPC servers among them."""
    rpc_server: Path | None
    """Its program that lends a device to others, if the payload carries it."""
    nccl: bool | None
    """Whether its GPU code links to NCCL; ``None`` if the payload says nothing of it."""
    missing: tuple[str, ...]
    """Libraries that its GPU code needs and that forkyard found nowhere for it."""

    def takes(self, *words: str) -> bool:
        """Whether its llama-bench takes these arguments."""
        # It reads its words in their order, and ends at --help if those before it mean something.
        return run([str(self.bench), *words, "--help"], timeout_s=_HELP_S, env=clean_environment()).returncode == 0

    def reads(self, option: str) -> bool:
        """Whether its llama-perplexity has this option; ik_llama.cpp's ends with an error at every ``--help``."""
        done = run([str(self.bench.with_name(READER)), "--help"], timeout_s=_HELP_S, env=clean_environment())
        return re.search(rf"(?<!\S){re.escape(option)}(?=[\s,])", done.stdout + done.stderr) is not None


@contextlib.contextmanager
def unpacked(wheel: Path, scratch: Path, installed: Sequence[Path] = ()) -> Iterator[Engine]:
    """The engine of a payload wheel, for the length of the block.

    Args:
        installed: folders like Python's site-packages, where libraries that the payload requires may be.

    Raises:
        UsageError: the file is no payload wheel, or holds no llama-bench.
        BuildError: its llama-bench does not run here.
    """
    with owned_folder(scratch, "bench-") as folder:
        try:
            with explained("unpack the engine"), zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    path = Path(archive.extract(info, folder))
                    path.chmod((info.external_attr >> 16) & 0o777 or 0o644)
        except (zipfile.BadZipFile, FileNotFoundError) as error:
            msg = f"{wheel.name} is no wheel"
            raise UsageError(
                msg, where=str(wheel), why=str(error), next_step="name a wheel that forkyard built"
            ) from error
        yield _examine(wheel, folder, installed)


def _examine(wheel: Path, folder: Path, installed: Sequence[Path]) -> Engine:
    manifests = [path for path in folder.glob("*/manifest.json") if (path.parent / "bin" / TOOL).is_file()]
    if len(manifests) != 1:
        msg = f"{wheel.name} holds no {TOOL}"
        raise UsageError(msg, where=str(wheel), next_step="build a payload whose recipe lists llama-bench in its tools")
    facts = json.loads(manifests[0].read_text(encoding="utf-8"))
    bench = manifests[0].parent / "bin" / TOOL
    backend = facts.get("backend") or {}
    missing = _put_beside(folder, backend.get("needs", ()), installed)
    said = _help(bench, missing)
    if "--load-mode" in said:
        load = {True: ("-lm", "mmap"), False: ("-lm", "none")}
    else:
        load = {True: ("-mmp", "1"), False: ("-mmp", "0")}
    return Engine(
        name=str(facts.get("engine", "unknown")),
        build_key=str(facts.get("build_key", "")),
        wheel=wheel.name,
        bench=bench,
        recipe=str(facts.get("recipe") or facts.get("engine", "unknown")),
        modes=_words(_MODES, said),
        load=load,
        splits=_words(_SPLITS, said),
        flash_attention=("-fa", "on" if "on" in _words(_ATTENTION, said) else "1"),
        depths="--n-depth" in said,
        chooses_devices="--device " in said,
        rpc_server=next((path for name in SERVERS if (path := bench.with_name(name)).is_file()), None),
        nccl=backend.get("nccl"),
        missing=missing,
    )


def _words(pattern: re.Pattern[str], text: str) -> frozenset[str]:
    """The words of a choice such as ``<none|layer>`` in a help text."""
    found = pattern.search(text)
    return frozenset(found[1].split("|") if found else ())


def _put_beside(folder: Path, needs: Sequence[str], installed: Sequence[Path]) -> tuple[str, ...]:
    """Link the libraries that a payload finds beside it once both are installed; what is nowhere is returned.

    A library of a driver is in none of these folders either: the loader finds it, or its absence leaves no device.
    """
    missing = []
    for soname in needs:
        found = next((path for site in installed for path in site.glob(f"*/*/lib/{soname}")), None)
        if found is None:
            missing.append(soname)
            continue
        link = folder / found.parents[2].name
        if not link.exists():
            link.symlink_to(found.parents[2].absolute())
    return tuple(missing)


def _help(bench: Path, missing: Sequence[str]) -> str:
    command = [str(bench), "--help"]
    done = run(command, timeout_s=_HELP_S, env=clean_environment())
    if done.returncode != 0:
        msg = f"{TOOL} does not run on this machine"
        raise BuildError(
            msg,
            where=show([TOOL, "--help"]),
            why=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300],
            next_step=f"install {', '.join(missing)}, or what requires it, where forkyard is installed"
            if missing
            else "choose a --variant that this processor can run: `forkyard variants`",
        )
    return done.stdout + done.stderr
