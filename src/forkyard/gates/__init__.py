"""Gates: what a finished payload wheel must be before it is put into ``dist/``."""

from forkyard.gates.instructions import IsaLimits, limits_for
from forkyard.gates.report import Finding, GateReport
from forkyard.gates.wheel import GATES, check_wheel, platform_floor

__all__ = ["GATES", "Finding", "GateReport", "IsaLimits", "check_wheel", "limits_for", "platform_floor"]
