"""Verifying stacks: every beginning of every series, every stack alone, every pair, and all of them together."""

from forkyard.verifying.records import Level, Result
from forkyard.verifying.report import as_json, as_text
from forkyard.verifying.running import Options, Outcome, Verification, Verified, verify
from forkyard.verifying.units import Role, Unit, default_variant, plan_units

__all__ = [
    "Level",
    "Options",
    "Outcome",
    "Result",
    "Role",
    "Unit",
    "Verification",
    "Verified",
    "as_json",
    "as_text",
    "default_variant",
    "plan_units",
    "verify",
]
