"""What the measurements run on: a small model and a text everybody with Python has."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

from forkyard.cache import explained, write_if_changed
from forkyard.errors import ForkyardError
from forkyard.network import sha256_of
from forkyard.process import clean_environment, run

MODEL = "smollm2-135m"
_DOWNLOAD_S = 1800.0


@dataclass(frozen=True)
class Inputs:
    """Model and text, as paths below the evidence folder."""

    model: str
    model_sha256: str
    text: str
    text_sha256: str

    @property
    def key(self) -> list[str]:
        """What evidence depends on."""
        return [self.model_sha256, self.text_sha256]


def get_inputs(root: Path, out: Path, model: Path | None, *, offline: bool) -> Inputs | str:
    """Put model and text into the evidence folder.

    Args:
        model: a model file of the user's; ``None`` for the small one that the bindings know by name.

    Returns:
        them, or why there is no model.
    """
    if model is None:
        found = _known_model(root, offline=offline)
        if isinstance(found, str):
            return found
        model = found
    elif not model.is_file():
        return f"there is no file {model}"
    folder = out / "inputs"
    with explained("put the inputs in place"):
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / (model.name if model.suffix == ".gguf" else f"{model.name}.gguf")
        new = link.with_name(f".{link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(model.absolute())
        os.replace(new, link)
        text = folder / "topics.txt"
        write_if_changed(text, "\n\n".join(topics[name] for name in sorted(topics)).encode())
    return Inputs(f"inputs/{link.name}", sha256_of(model), "inputs/topics.txt", sha256_of(text))


def _known_model(root: Path, *, offline: bool) -> Path | str:
    # The bindings come after forkyard in the chain of modules, so they are asked as any user would ask them.
    script = f"from forkyard_llm import models; print(models.get({MODEL!r}, offline={offline!r}))"
    keep = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "FORKYARD_LLM_"))}
    # A proxy or cache folder of the user's is theirs to choose.
    keep |= {name: os.environ[name] for name in ("XDG_CACHE_HOME", "HTTPS_PROXY", "https_proxy") if name in os.environ}
    environment = clean_environment(extra={**keep, "PYTHONPATH": str(root / "bindings" / "src")})
    try:
        done = run([sys.executable, "-c", script], timeout_s=_DOWNLOAD_S, env=environment)
    except ForkyardError as error:
        return f"the model {MODEL} could not be had: {error.what}"
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines or not Path(lines[-1]).is_file():
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"the model {MODEL} could not be had: {said[:300]}"
    return Path(lines[-1])
