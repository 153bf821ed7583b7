"""How many physical cores this process may use, and the default number of threads that follows from them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .quota import cpu_quota
from .threads import openmp_limit

__all__ = ["default_threads", "physical_cores"]

_TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Threads to compute with where the caller gives no number; at least 1.

    Physical cores of the affinity mask, but no more than whole CPUs of the CPU quota: threads of one computation wait
    for each other, so one that the kernel holds back for want of quota holds back all. OMP_THREAD_LIMIT counts, too.
    """
    limits = [limit for limit in (cpu_quota(), openmp_limit()) if limit is not None]
    return max(1, int(min([physical_cores(), *limits])))


def physical_cores(cpus: Iterable[int] | None = None, topology: Path = _TOPOLOGY) -> int:
    """Physical cores among ``cpus`` (default: this process's affinity mask); at least 1.

    Two logical CPUs are one core when Linux gives them the same package and core id
    (Documentation/ABI/stable/sysfs-devices-system-cpu). A CPU whose topology cannot be read counts as a core.
    """
    if cpus is None:
        affinity = getattr(os, "sched_getaffinity", None)
        cpus = affinity(0) if affinity is not None else range(os.cpu_count() or 1)
    cores = {_core(cpu, topology) for cpu in cpus}
    return max(1, len(cores))


def _core(cpu: int, topology: Path) -> tuple[int, ...]:
    folder = topology / f"cpu{cpu}" / "topology"
    try:
        return int((folder / "physical_package_id").read_text()), int((folder / "core_id").read_text())
    except (OSError, ValueError):
        return (-1, -1, cpu)
