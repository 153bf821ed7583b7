"""Describe an engine's C interface from its own headers, and generate the bindings and the probe that checks them."""

from __future__ import annotations

from forkyard.abi.model import Abi, AbiError
from forkyard.abi.parse import DEFAULT_TARGET, generate
from forkyard.abi.render_ctypes import render_ctypes
from forkyard.abi.render_probe import render_probe
from forkyard.abi.write import write_abi

__all__ = ["DEFAULT_TARGET", "Abi", "AbiError", "generate", "render_ctypes", "render_probe", "write_abi"]
