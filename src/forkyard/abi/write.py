"""Put the three generated files of an ABI into a folder: abi.json, _abi.py and probe.c."""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from forkyard.abi.model import Abi, AbiError
from forkyard.abi.parse import DEFAULT_TARGET, generate
from forkyard.abi.render_ctypes import render_ctypes
from forkyard.abi.render_probe import render_probe
from forkyard.cache import explained

ABI_JSON = "abi.json"
ABI_MODULE = "_abi.py"
PROBE_SOURCE = "probe.c"


def write_abi(
    out_dir: Path,
    *,
    headers: Sequence[Path],
    include_dirs: Sequence[Path] = (),
    defines: Sequence[str] = (),
    target: str = DEFAULT_TARGET,
) -> str:
    """Generate from ``headers`` and write ``abi.json``, ``_abi.py`` and ``probe.c`` into ``out_dir``.

    Each file appears whole or not at all; one that already has the right bytes is left untouched, so that a build
    system sees no change. The arguments are those of :func:`forkyard.abi.generate`.

    Returns:
        The ABI's hex sha256, to be given to the probe's compiler as ``FORKYARD_ABI_SHA256``.

    Raises:
        AbiError: see :func:`forkyard.abi.generate`; also when ctypes lays a record out differently from the compiler.
        StorageError: the folder cannot be written.
    """
    abi = generate(headers, include_dirs, defines, target=target)
    module = render_ctypes(abi)
    check_module(abi, module)
    with explained("write the generated ABI files"):
        out_dir.mkdir(parents=True, exist_ok=True)
        _write(out_dir / ABI_JSON, abi.to_json())
        _write(out_dir / ABI_MODULE, module.encode())
        _write(out_dir / PROBE_SOURCE, render_probe(abi).encode())
    return abi.sha256


def check_module(abi: Abi, source: str) -> None:
    """Run the generated module and compare what ctypes makes of every record with what the headers say.

    Raises:
        AbiError: some record comes out differently (an alignment attribute, a packed record).
    """
    if struct.calcsize("P") != 8:
        msg = "the generated module can only be checked by a 64-bit Python"
        raise AbiError(msg, next_step="run forkyard with a 64-bit Python")
    module = ModuleType("forkyard_abi_check")
    exec(compile(source, ABI_MODULE, "exec"), module.__dict__)  # noqa: S102 - generated above, from our own templates
    for record in abi.records:
        ctype = getattr(module, record.name)
        seen = [ctypes.sizeof(ctype), ctypes.alignment(ctype)]
        promised = [record.size, record.align]
        for member in record.fields:
            seen.append(getattr(ctype, member.name).offset)
            promised.append(member.offset)
        if seen != promised:
            msg = f"ctypes cannot lay out {record.kind} {record.name} as the compiler does"
            raise AbiError(
                msg,
                where=record.header,
                why=f"size, alignment, offsets: the compiler has {promised}, ctypes {seen}",
                next_step="a packed or over-aligned record cannot be described; leave its header out",
            )


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
