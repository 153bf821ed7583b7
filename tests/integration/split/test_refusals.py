"""A device of a split that lacks a kernel for the KV cache: only a real one says so, an RPC server never does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from forkyard_llm.payloads import Payload

from ..conftest import on_software_vulkan

TIMEOUT_S = 600.0
"""For loading a model and being refused: seconds."""


@pytest.mark.deep
@pytest.mark.patch("split-kv-types")
def test_a_missing_kernel_is_said_before_anything_is_computed(vulkan_payload: Payload, smollm2: Path) -> None:
    """Vulkan has no flash attention for K and V of which one is bf16; the pin aborts at the first token."""
    program = vulkan_payload.tool("llama-bench")
    types = ["-ctk", "bf16", "-ctv", "f16"]
    split = ["-sm", "tensor", "-ngl", "99", "-fa", "1"]
    # Once listed twice it is two devices.
    environment = os.environ | on_software_vulkan(0, 0)

    done = subprocess.run(
        [str(program), "-m", str(smollm2), *split, *types, "-p", "4", "-n", "0", "-r", "1", "-v"],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 1, done.stderr[-2000:]
    assert "Meta(Vulkan0,Vulkan1) has no flash attention for K cache type bf16 and V cache type f16" in done.stderr
