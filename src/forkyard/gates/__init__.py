"""Gates: what a finished payload wheel must be before it is put into ``dist/``."""

from forkyard.gates.gpu_gates import GpuLimits, gpu_limits
from forkyard.gates.instructions import IsaLimits, limits_for
from forkyard.gates.report import Finding, GateReport
from forkyard.gates.wheel import GATES, GPU_GATES, check_wheel, platform_floor

__all__ = [
    "GATES",
    "GPU_GATES",
    "Finding",
    "GateReport",
    "GpuLimits",
    "IsaLimits",
    "check_wheel",
    "gpu_limits",
    "limits_for",
    "platform_floor",
]
