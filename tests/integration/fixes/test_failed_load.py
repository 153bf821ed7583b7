"""ik_llama.cpp's server ends with the error it printed when a model cannot be loaded; the pin dies of a signal after it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.patch("server-failed-load")

PIECE = 64 * 1024
"""Bytes of the truncated model: some of its header, none of its weights."""


@pytest.mark.parametrize("fault", ["missing", "truncated", "not a model"])
def test_the_server_ends_with_an_error(
    fault: str, engine_payload: Callable[[str], Path], smollm2: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    if fault == "truncated":
        with smollm2.open("rb") as whole:
            model.write_bytes(whole.read(PIECE))
    elif fault == "not a model":
        model.write_bytes(b"this is not a model\n" * 100)
    server = engine_payload("ik_llama.cpp") / "bin" / "llama-server"

    # It listens before it loads.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [server, "-m", model, "--port", port], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
    )

    assert done.returncode == 1, f"ended by {done.returncode}: {done.stderr[-2000:]}"
    assert str(model) in done.stdout + done.stderr
