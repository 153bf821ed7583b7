"""Gates on payloads for GPUs or other machines: what they link to, what they hold code for, how large they are."""

from __future__ import annotations

import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from forkyard.errors import StorageError
from forkyard.gates.binary_gates import Elves, path_patterns
from forkyard.gates.contents import WheelContents
from forkyard.gates.report import Finding
from forkyard.process import clean_environment
from forkyard.recipes.variants import ResolvedVariant

_LARGEST = 100 << 20
_SHOWN = 10
_TIMEOUT_S = 600.0
# Libraries of GPU vendors, of drivers and of loaders: a wheel that carries one shadows the machine's.
_FOREIGN = re.compile(
    r"lib(?:cuda|cudart|cublas(?:Lt)?|nv[A-Za-z-]*|nccl|curand|cufft|vulkan|hip[a-z]*|amdhip64|amdocl64|hsa[a-z-]*"
    r"|roc[a-z]+|rccl|sycl|ur_[a-z_]+|pi_[a-z_]+|ze_[a-z_]+|OpenCL|mkl_[a-z_0-9]+|dnnl)(?:[-.][\w.+-]*)?\.so(?:\.[\d.]+)?"
)
# `cuobjdump -lelf -lptx`: "ELF file    1: tmpxft.1.sm_80.cubin".
_CODE = re.compile(r"^(ELF|PTX) file +\d+: .*\.sm_(\d+[af]?)\.(?:cubin|ptx)$", re.MULTILINE)


@dataclass(frozen=True)
class GpuLimits:
    """What a payload for GPUs, or other machines, links to and holds."""

    library: str
    """CMake target of the library with the backend's code, as the manifest calls it."""
    needs: tuple[str, ...]
    """Sonames that it needs and that are not in the wheel."""
    folders: tuple[str, ...]
    """Folders beside the package in which they may be found."""
    architectures: tuple[str, ...]
    """As CMake writes them: 80-real, 75-virtual, or 86 for both kinds."""
    cuobjdump: Path | None
    """The toolkit's program that lists CUDA code; None if that is not CUDA's."""


def gpu_limits(resolved: ResolvedVariant, cpu_target: str, toolkit: Path | None) -> GpuLimits | None:
    """Return what a wheel built as *resolved* may link to and must hold; None for a variant without a backend.

    Args:
        cpu_target: the recipe's CPU target, which holds the backend's code where no library of its own does.
        toolkit: the folder of the toolkit it was compiled with.
    """
    backend = resolved.backend
    if backend is None:
        return None
    cuda = resolved.toolkit is not None and "CUDA" in resolved.toolkit.languages and toolkit is not None
    return GpuLimits(
        library=resolved.module or cpu_target,
        needs=backend.libraries,
        folders=backend.library_folders,
        architectures=backend.architectures,
        cuobjdump=toolkit / "bin" / "cuobjdump" if cuda and toolkit is not None else None,
    )


def check_needs(elves: Elves, names: Mapping[str, str], limits: GpuLimits) -> Iterator[Finding]:
    """The backend's code needs the variant's libraries, of their major versions; none like them is in the wheel."""
    for path in elves:
        if _FOREIGN.fullmatch(PurePosixPath(path).name):
            yield Finding("gpu-libraries", path, "belongs to a GPU's driver or toolkit, which a wheel must not carry")
    paths = [path for path in elves if names.get(path) == limits.library]
    if not paths:
        yield Finding("gpu-libraries", limits.library, "the library with the backend's code is not in the wheel")
    for path in paths:
        for soname in limits.needs:
            if soname not in elves[path].needed:
                found = [one for one in elves[path].needed if one.split(".so")[0] == soname.split(".so")[0]]
                instead = f"; it needs {', '.join(found)}" if found else ""
                yield Finding("gpu-libraries", path, f"does not need {soname}, which the variant names{instead}")


def check_architectures(
    wheel: WheelContents,
    names: Mapping[str, str],
    limits: GpuLimits,
    forbidden: Sequence[str],
    facts: dict[str, Any],
) -> Iterator[Finding]:
    """Code of each architecture of the variant is there, and no path of a build folder in it.

    Puts ``gpu_code`` (as ``sm_80`` and ``ptx_75``) into *facts*.
    """
    if limits.cuobjdump is None:
        return
    for path in (path for path in wheel.files if names.get(path) == limits.library):
        with tempfile.TemporaryDirectory(prefix="forkyard-gate-") as name:
            folder = Path(name)
            (folder / "library.so").write_bytes(wheel.files[path])
            listed = _run(limits.cuobjdump, folder, "-lelf", "-lptx")
            cubins = len([kind for kind, _ in _CODE.findall(listed) if kind == "ELF"])
            found = {f"{'sm' if kind == 'ELF' else 'ptx'}_{number}" for kind, number in _CODE.findall(listed)}
            facts["gpu_code"] = sorted(found)
            for wanted in sorted(_codes(limits.architectures)):
                # Upstream compiles 120 as 120a, which has instructions of its own.
                if not {wanted, f"{wanted}a"} & found:
                    have = ", ".join(sorted(found)) or "none"
                    yield Finding("architectures", path, f"holds no {wanted}, which the variant names (it has {have})")
            _run(limits.cuobjdump, folder, "-xelf", "all")
            extracted = sorted(folder.glob("*.cubin"))
            if len(extracted) < cubins:
                unseen = f"only {len(extracted)} of {cubins} pieces of its GPU code could be looked into"
                yield Finding("architectures", path, unseen)
            yield from _traces(path, extracted, forbidden)


def _codes(architectures: Sequence[str]) -> set[str]:
    wanted: set[str] = set()
    for name in architectures:
        number, _, kind = name.partition("-")
        wanted |= {f"{prefix}_{number}" for prefix, only in (("sm", "real"), ("ptx", "virtual")) if kind in ("", only)}
    return wanted


def _run(program: Path, folder: Path, *options: str) -> str:
    try:
        done = subprocess.run(
            [str(program), *options, "library.so"],
            cwd=folder,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = "the GPU code of a wheel cannot be listed"
        raise StorageError(msg, where=str(program), why=str(error), next_step="run it again") from error
    return done.stdout


def _traces(path: str, cubins: Sequence[Path], forbidden: Sequence[str]) -> Iterator[Finding]:
    patterns = path_patterns(forbidden)
    for cubin in cubins:
        data = cubin.read_bytes()
        for prefix, pattern in patterns:
            if pattern.search(data):
                yield Finding("architectures", path, f"holds a path below {prefix} in its GPU code ({cubin.name})")


def check_size(wheel: WheelContents) -> Iterator[Finding]:
    """The wheel is small enough for a registry; otherwise its largest files are listed."""
    size = wheel.path.stat().st_size
    if size <= _LARGEST:
        return
    with zipfile.ZipFile(wheel.path) as archive:
        files = sorted(archive.infolist(), key=lambda info: -info.compress_size)
    listed = ", ".join(f"{info.filename} {info.compress_size / 2**20:.1f} MiB" for info in files[:_SHOWN])
    yield Finding("size", wheel.name, f"has {size / 2**20:.1f} MiB, 100 are allowed; compressed: {listed}")
