"""Say what this machine's CPU and operating system let a payload execute, in the manifest's words.

Two sources, each with a trap this module exists to avoid:

* archspec names the best *known* microarchitecture the host is compatible with; `host().features` lists that
  one's features only: a Sapphire Rapids in a virtual machine that hides one feature is "icelake" and seems to
  lack AVX512_BF16. What the host really reports is in archspec's raw detection, which is what is used here.
* On Linux archspec reads /proc/cpuinfo. The kernel leaves out of it what it does not save on a context switch
  (avx without XSAVE state, say), so a name being there means CPU *and* kernel. The one exception is AMX: tile
  data additionally needs a permission each process must ask for (arch_prctl(2), ARCH_REQ_XCOMP_PERM; Linux
  Documentation/arch/x86/xstate.rst). `request_amx_permission` asks, and is meant for the probing child.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = [
    "FEATURE_ALIASES",
    "HostCpu",
    "MissingFeature",
    "explain_missing",
    "host",
    "is_known",
    "missing",
    "request_amx_permission",
]

FEATURE_ALIASES = {
    # The kernel writes sse3 as Prescott New Instructions and lzcnt as AMD's extension that brought it.
    "sse3": ("pni", "sse3"),
    "pni": ("pni", "sse3"),
    "lzcnt": ("abm", "lzcnt"),
    "abm": ("abm", "lzcnt"),
    "pclmul": ("pclmulqdq",),
    "sse4.1": ("sse4_1",),
    "sse4.2": ("sse4_2",),
    "cmpxchg16b": ("cx16",),
    "rdrnd": ("rdrand",),
    "sha": ("sha_ni",),
    # compilers' -m names of what the kernel writes with an underscore (or without one)
    "avxvnni": ("avx_vnni",),
    "avx512vnni": ("avx512_vnni",),
    "avx512bf16": ("avx512_bf16",),
    "avx512fp16": ("avx512_fp16",),
    "avx512vbmi2": ("avx512_vbmi2",),
    "avx512bitalg": ("avx512_bitalg",),
    "avx512vpopcntdq": ("avx512_vpopcntdq",),
    "avx512_vbmi": ("avx512vbmi",),
    "avx512_ifma": ("avx512ifma",),
    "amx-tile": ("amx_tile",),
    "amx-int8": ("amx_int8",),
    "amx-bf16": ("amx_bf16",),
}
"""Feature name -> the names that mean the same in raw detection. Names not listed stand for themselves."""

_EXTRA_KNOWN = frozenset({
    # Real /proc/cpuinfo names that archspec's microarchitecture data (0.2.x) has no use for.
    "pni", "lzcnt", "mmxext", "cmov", "cx8", "fxsr", "tsc", "rdtscp", "xsaves", "xgetbv1", "osxsave",
    "3dnowprefetch", "clflush", "erms", "fsrm", "hle", "rtm", "amx_fp16", "amx_complex", "avx10", "avx10_1",
    "avx512_4vnniw", "avx512_4fmaps", "avx_vnni_int16", "apxf",
})  # fmt: skip

_SYS_ARCH_PRCTL = 158  # x86-64 only, asm/unistd_64.h
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


@dataclass(frozen=True)
class HostCpu:
    """What was detected: the closest microarchitecture archspec knows, and the features really reported."""

    microarchitecture: str
    vendor: str
    brand: str
    machine: str
    features: frozenset[str]

    def has(self, feature: str) -> bool:
        """Whether the host reports `feature`, by any of its names."""
        return any(name in self.features for name in FEATURE_ALIASES.get(feature, (feature,)))


@dataclass(frozen=True)
class MissingFeature:
    """One required feature the host lacks, and why it counts as missing."""

    feature: str
    reason: str


@functools.lru_cache(maxsize=1)
def host() -> HostCpu:
    """Detect the host CPU, once per process; if that fails it has no features, so nothing is acceptable."""
    archspec: Any = import_module("archspec.cpu")
    detect: Any = import_module("archspec.cpu.detect")
    with warnings.catch_warnings():
        # archspec warns when a source of information fails and falls back to "no features", which is handled
        # here.
        warnings.simplefilter("ignore")
        raw = detect.detected_info()
        best = archspec.host()
        brand = archspec.brand_string()
    return HostCpu(
        microarchitecture=best.name,
        vendor=raw.vendor or best.vendor,
        brand=(brand or "").strip() or "unknown",
        machine=platform.machine(),
        features=frozenset(raw.features),
    )


def missing(features: Iterable[str]) -> list[str]:
    """Those of `features` (manifest names) the host lacks, in the same order. Unknown names are lacking."""
    return [item.feature for item in explain_missing(features)]


def explain_missing(features: Iterable[str], cpu: HostCpu | None = None) -> list[MissingFeature]:
    """As `missing`, each with its reason. `cpu` replaces the detected host."""
    cpu = cpu or host()
    result = []
    for feature in features:
        if cpu.has(feature):
            continue
        if is_known(feature):
            reason = "not reported by this CPU and kernel"
        else:
            reason = "not a CPU feature name this forkyard-llm knows, so it cannot be shown to be present"
        result.append(MissingFeature(feature, reason))
    return result


def is_known(feature: str) -> bool:
    """Whether `feature` is a name some CPU could report."""
    return feature in FEATURE_ALIASES or feature in _EXTRA_KNOWN or feature in _archspec_names()


def request_amx_permission() -> str | None:
    """Ask the kernel to let this process use AMX tile data; None when granted, else the reason.

    The grant holds for the process and its later children and cannot be taken back, so ask in a child process
    when only the answer is wanted.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "AMX needs x86-64 Linux"
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(
        ctypes.c_long(_SYS_ARCH_PRCTL),
        ctypes.c_ulong(_ARCH_REQ_XCOMP_PERM),
        ctypes.c_ulong(_XFEATURE_XTILEDATA),
    )
    if result == 0:
        return None
    problem = os.strerror(ctypes.get_errno())
    return f"the kernel (Linux 5.16 is needed) refuses AMX tile data: arch_prctl ARCH_REQ_XCOMP_PERM: {problem}"


@functools.lru_cache(maxsize=1)
def _archspec_names() -> frozenset[str]:
    names: set[str] = set()
    archspec: Any = import_module("archspec.cpu")
    for target in archspec.TARGETS.values():
        names |= target.features
    return frozenset(names)
