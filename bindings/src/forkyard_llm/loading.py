"""Load a payload into this process: libraries, generated ABI module, and the check that they belong together."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .engines.base import Engine
from .engines.ik_llama import IkLlamaEngine
from .engines.llama_cpp import LlamaCppEngine
from .engines.numa_mirror import NumaMirror
from .engines.rpc import Servers
from .errors import AbiMismatch, EngineError, PayloadRejected
from .payloads import Payload

__all__ = ["load", "loaded", "rpc_servers"]

ABI_MODULE = "_abi.py"
ABI_JSON = "abi.json"

# What the generated module must define.
_ABI_NAMES = ("ABI_SHA256", "ENUMS", "PROBE_LAYOUT", "bind", "ctypes_layout")
# A library before those that need it.
_LIBRARY_ORDER = ("ggml-base", "ggml-cpu", "ggml", "ggml-rpc", "llama", "mtmd", "llama-common", "common-c")
# The probe, checked before any of the others is loaded.
_PROBE = "probe"
# Where functions are looked up: the first library that exports one wins.
_LOOKUP_ORDER = ("llama", "mtmd", "common-c", "ggml", "ggml-cpu", "ggml-base", "ggml-rpc")

_ENGINES: dict[str, type[Engine]] = {engine.family: engine for engine in (LlamaCppEngine, IkLlamaEngine)}

_lock = threading.Lock()
_loaded: dict[tuple[Path, str], Engine] = {}


def loaded() -> tuple[Engine, ...]:
    """The engines loaded into this process so far."""
    with _lock:
        return tuple(_loaded.values())


def load(payload: Payload) -> Engine:
    """The engine of ``payload``, loaded on the first call and the same object afterwards. Nothing is ever unloaded.

    The caller must have made sure that this CPU can run the payload (see :func:`forkyard_llm.selection.select`).

    Raises:
        AbiMismatch: libraries, manifest and generated module are not of one build, or this Python sees another layout.
        PayloadRejected: another loaded payload has a library of the same name, so the linker would mix them.
        EngineError: a library cannot be loaded (something it needs is missing from the system).
    """
    with _lock:
        engine = _loaded.get(payload.key)
        if engine is None:
            _refuse_name_clash(payload)
            engine = _loaded[payload.key] = _load(payload)
        return engine


def rpc_servers(payload: Payload) -> Servers:
    """The RPC servers that ``payload``, which is not loaded for it, may call.

    Raises:
        AbiMismatch: the payload is damaged.
    """
    return Servers.of(_abi_module(payload), _ENGINES[payload.engine].rpc_greeting)


def _library_names(payload: Payload) -> set[str]:
    return {Path(entry).name for entry in payload.manifest["libraries"].values()}


def _refuse_name_clash(payload: Payload) -> None:
    for engine in _loaded.values():
        shared = sorted(_library_names(payload) & _library_names(engine.payload))
        if shared:
            msg = (
                f"cannot load {payload.title} beside {engine.payload.title} in one process: both have"
                f" {', '.join(shared)}, and the linker would take the first for both; use a child process for one"
            )
            raise PayloadRejected(msg)


def _load(payload: Payload) -> Engine:
    abi = _abi_module(payload)
    probe = _check_probe(payload, abi)
    names = [name for name in _LIBRARY_ORDER if payload.has_library(name)]
    libraries = {name: _open(payload, payload.library(name)) for name in names}
    api = abi.bind(*(libraries[name] for name in _LOOKUP_ORDER if name in libraries))
    return _ENGINES[payload.engine](payload, abi, api, probe, NumaMirror.find(abi, api))


def _open(payload: Payload, path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        msg = f"{payload.distribution}: {path.name} cannot be loaded: {error}"
        missing = re.match(r"(?P<library>[^\s:]+): cannot open shared object file", str(error))
        advice = payload.without_libraries(str(error))
        if advice:
            msg += f"; {advice}"
        elif missing is not None:
            msg += f"; install the system package that has {missing['library']}"
        elif re.search(r"version `[^']+' not found|undefined symbol: .*version ", str(error)):
            msg += "; a library it needs is older than the payload asks for"
            if os.environ.get("LD_LIBRARY_PATH"):
                msg += f", perhaps one in LD_LIBRARY_PATH={os.environ['LD_LIBRARY_PATH']}"
        raise EngineError(msg) from error


def _abi_module(payload: Payload) -> ModuleType:
    """Run the payload's generated module under a name of its own, so that two payloads' never meet."""
    path = payload.root / ABI_MODULE
    try:
        source = path.read_bytes()
        description = (payload.root / ABI_JSON).read_bytes()
    except OSError as error:
        msg = f"{payload.distribution} is damaged: {error}; reinstall it"
        raise AbiMismatch(msg) from error
    module = ModuleType(f"forkyard_llm._abi_of_{payload.manifest['package']}")
    module.__file__ = str(path)
    try:
        # The module belongs to the payload as its libraries do, which are loaded next.
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102
    except (SyntaxError, NameError, ValueError, TypeError, AttributeError, ImportError, ArithmeticError) as error:
        msg = f"{payload.distribution} is damaged: {path} does not run: {error}; reinstall it"
        raise AbiMismatch(msg) from error
    absent = [name for name in _ABI_NAMES if not hasattr(module, name)]
    if absent:
        msg = f"{payload.distribution} is damaged: {path} defines no {', '.join(absent)}; reinstall it"
        raise AbiMismatch(msg)
    described = hashlib.sha256(description).hexdigest()
    _compare(payload, "sha256 of the ABI", {"the manifest": payload.manifest["abi_sha256"], ABI_JSON: described})
    _compare(
        payload,
        "sha256 of the ABI",
        {"the manifest": payload.manifest["abi_sha256"], ABI_MODULE: module.ABI_SHA256},
    )
    return module


def _check_probe(payload: Payload, abi: ModuleType) -> ctypes.CDLL:
    """Compare build key, ABI and every size and offset with what the compiler put into the probe library."""
    probe = _open(payload, payload.library(_PROBE))
    try:
        probe.forkyard_probe_build_key.restype = ctypes.c_char_p
        probe.forkyard_probe_abi_sha256.restype = ctypes.c_char_p
        probe.forkyard_probe_layout.restype = ctypes.c_uint32
        probe.forkyard_probe_layout.argtypes = (ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)),)
    except AttributeError as error:
        msg = f"{payload.distribution} is damaged: its probe library is not one: {error}; reinstall it"
        raise AbiMismatch(msg) from error
    key, abi_sha256 = _text(probe.forkyard_probe_build_key()), _text(probe.forkyard_probe_abi_sha256())
    _compare(payload, "build key", {"the manifest": payload.build_key, "the probe": key})
    _compare(payload, "sha256 of the ABI", {ABI_MODULE: abi.ABI_SHA256, "the probe": abi_sha256})
    values = ctypes.POINTER(ctypes.c_uint64)()
    count = int(probe.forkyard_probe_layout(ctypes.byref(values)))
    compare_layout(payload.distribution, abi.PROBE_LAYOUT, values[:count], abi.ctypes_layout())
    return probe


def compare_layout(
    distribution: str, expected: Sequence[tuple[str, int]], probed: Sequence[int], seen: Sequence[int]
) -> None:
    """Compare what the headers promise with what the C compiler (``probed``) and this Python (``seen``) made of it.

    Raises:
        AbiMismatch: naming the first few that differ.
    """
    if not len(expected) == len(probed) == len(seen):
        msg = (
            f"{distribution}: the generated module lists {len(expected)} sizes and offsets, the probe {len(probed)},"
            f" ctypes {len(seen)}: they are not of one build; reinstall it"
        )
        raise AbiMismatch(msg)
    wrong = [
        f"{label}: module {want}, libraries {compiled}, ctypes {python}"
        for (label, want), compiled, python in zip(expected, probed, seen, strict=True)
        if not want == compiled == python
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        msg = (
            f"{distribution}: its libraries and its bindings disagree on the layout of structs ({'; '.join(wrong[:3])}"
            f"{more}); calling it would corrupt memory; reinstall it"
        )
        raise AbiMismatch(msg)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace")


def _compare(payload: Payload, what: str, values: dict[str, str]) -> None:
    if len(set(values.values())) != 1:
        found = ", ".join(f"{where} says {value[:16]}..." for where, value in values.items())
        msg = f"{payload.distribution}: the {what} differs: {found}; its files are not of one build: reinstall it"
        raise AbiMismatch(msg)
