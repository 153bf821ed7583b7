"""An engine that is measured: a payload's folder, and what its llama-bench says it can do."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .child import RunFailed, plain_environment, said_by

__all__ = ["READER", "SERVER", "TOOL", "Engine", "examine", "read_manifest"]

TOOL = "llama-bench"
READER = "llama-perplexity"
SERVER = "llama-server"
MANIFEST = "manifest.json"
RPC_SERVERS = ("ggml-rpc-server", "rpc-server")
"""Names of the program that lends a device to others; the engines differ, and llama.cpp over time."""
_MODES = re.compile(r"--numa\s+<([^>]*)>")
_SPLITS = re.compile(r"--split-mode\s+<([^>]*)>")
_ATTENTION = re.compile(r"--flash-attn\s+<([^>]*)>")
_DEVICE = re.compile(r"^  (\w+): ", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")


@dataclass(frozen=True)
class Engine:
    """A payload that can be measured."""

    name: str
    """``llama.cpp`` or ``ik_llama.cpp``, as its manifest says."""
    recipe: str
    """What it was built by: an engine may have recipes at several pins."""
    variant: str
    stacks: tuple[str, ...]
    """Stacks of patches that are in it; none: it is as upstream has it."""
    build_key: str
    wheel: str
    """File name of the wheel it is from, or the name of the installed distribution."""
    bench: Path
    """Its llama-bench."""
    options: frozenset[str]
    """Every option that its llama-bench's help names."""
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
    for_device: bool
    """Whether it was built for a device of this machine beside the processor."""
    nccl: bool | None
    """Whether its GPU code links to NCCL; ``None`` if the payload says nothing of it."""
    missing: tuple[str, ...]
    """Libraries that its GPU code needs and that were found nowhere for it."""
    environment: Mapping[str, str]
    """Variables that make its programs load the libraries of the instruction set it stands for."""

    def takes(self, *words: str) -> bool:
        """Whether its llama-bench takes these arguments."""
        # It reads its words in their order, and ends at --help if those before it mean something.
        return said_by([str(self.bench), *words, "--help"], plain_environment(self.environment))[0] == 0

    def reads(self, option: str, program: str = READER) -> bool:
        """Whether a program beside it has this option; ik_llama.cpp's end with an error at every ``--help``."""
        said = said_by([str(self.bench.with_name(program)), "--help"], plain_environment(self.environment))[1]
        return re.search(rf"(?<!\S){re.escape(option)}(?=[\s,])", said) is not None

    def devices(self) -> tuple[str, ...]:
        """Names of the devices beside the processor that it finds without being told of any.

        ik_llama.cpp cannot list them: a payload that was built for one counts as one.
        """
        if "--list-devices" not in self.options:
            return (self.variant,) if self.for_device else ()
        return _listed(self.bench, tuple(self.environment.items()))

    def program(self, name: str) -> Path | None:
        """A program beside its llama-bench, if the payload carries it."""
        path = self.bench.with_name(name)
        return path if path.is_file() else None


@functools.cache
def _listed(bench: Path, environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    said = said_by([str(bench), "--list-devices"], plain_environment(dict(environment)))[1]
    return tuple(_DEVICE.findall(said))


def examine(
    folder: Path, *, wheel: str = "", missing: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Engine:
    """The engine of a payload, whose package folder is `folder`, or of a build that nobody packed: its llama-bench.

    Args:
        wheel: the file it is from (default: the distribution's name, or the folder's).
        missing: libraries that it needs and that are nowhere.
        environment: as :attr:`Engine.environment`.

    Raises:
        UsageError: the payload holds no llama-bench.
        RunFailed: its llama-bench does not run here.
    """
    packed = folder.is_dir()
    facts = read_manifest(folder) if packed else {}
    bench = folder / "bin" / TOOL if packed else folder
    name = wheel or str(facts.get("distribution", folder.name))
    if not bench.is_file():
        msg = f"{name} holds no {TOOL}; build a payload whose recipe lists llama-bench in its tools"
        raise UsageError(msg)
    status, said = said_by([str(bench), "--help"], plain_environment(environment or {}))
    if status != 0:
        why = ([line for line in said.splitlines() if line.strip()] or [f"exit status {status}"])[-1][:300]
        msg = f"{TOOL} of {name} does not run on this machine"
        needs = f"; install {', '.join(missing)}, or what requires it, beside it" if missing else ""
        raise RunFailed(msg, why + needs)
    backend = facts.get("backend") or {}
    family = "ik_llama.cpp" if "--fused-moe" in said else "llama.cpp"
    if "--load-mode" in said:
        load = {True: ("-lm", "mmap"), False: ("-lm", "none")}
    else:
        load = {True: ("-mmp", "1"), False: ("-mmp", "0")}
    return Engine(
        name=str(facts.get("engine", family)),
        recipe=str(facts.get("recipe") or facts.get("engine", family)),
        variant=str(facts.get("variant", "")),
        stacks=tuple(str(one["name"]) for one in facts.get("stacks", ())),
        build_key=str(facts.get("build_key", "")),
        wheel=name,
        bench=bench,
        options=frozenset(_OPTION.findall(said)),
        modes=_words(_MODES, said),
        load=load,
        splits=_words(_SPLITS, said),
        flash_attention=("-fa", "on" if "on" in _words(_ATTENTION, said) else "1"),
        depths="--n-depth" in said,
        chooses_devices="--device " in said,
        rpc_server=next((path for one in RPC_SERVERS if (path := bench.with_name(one)).is_file()), None),
        for_device=bool(backend) and not backend.get("remote"),
        nccl=backend.get("nccl"),
        missing=tuple(missing),
        environment=dict(environment or {}),
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts of a payload's package folder. Raises UsageError if it has none."""
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{folder.name} is no payload: its {MANIFEST} cannot be read ({error})"
        raise UsageError(msg) from error
    if not isinstance(facts, dict):
        msg = f"{folder.name} is no payload: its {MANIFEST} is no table"
        raise UsageError(msg)
    return facts


def _words(pattern: re.Pattern[str], text: str) -> frozenset[str]:
    """The words of a choice such as ``<none|layer>`` in a help text."""
    found = pattern.search(text)
    return frozenset(found[1].split("|") if found else ())
