"""Checking stacks: everything about patches that can be found without building an engine."""

from forkyard.linting.checking import lint
from forkyard.linting.model import Finding, Pin, Report, Size
from forkyard.linting.report import as_text

__all__ = ["Finding", "Pin", "Report", "Size", "as_text", "lint"]
