"""Try one payload, in a process that may die of it: `python -m forkyard_llm.probing PACKAGE_FOLDER [MEMBER]`.

Loads the libraries (with every check loading makes), starts the engine and multiplies small matrices of the
kinds real models use, comparing with the same product in Python: a payload that needs an instruction this
machine does not execute dies here, one that computes nonsense is found out here. The verdict is one JSON
object on the last line of standard output: {"usable": bool, "reason": text, ...}; dying by a signal is a
verdict too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from . import cpu
from .errors import ForkyardLlmError
from .loading import load
from .payloads import Payload, read_payload
from .products import layouts, multiply_error
from .verdicts import stamp

__all__ = ["main", "probe"]

# Largest error allowed, as a share of the largest exact value: 4-bit weights alone cost up to 0.09 here, and
# a wrong product is off by about 1.
_TOLERANCE = 0.2
_TYPES = ("GGML_TYPE_F16", "GGML_TYPE_Q8_0", "GGML_TYPE_Q4_0", "GGML_TYPE_Q4_K")


def main(arguments: list[str] | None = None) -> None:
    """Probe the payload folder named on the command line, as one of the instruction sets it carries if that is named.

    Prints the verdict and exits (0 usable, 1 not).
    """
    words = sys.argv[1:] if arguments is None else arguments
    # What the engine prints must not mix with the verdict: its standard output becomes our standard error.
    verdict_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Dying is one of the expected answers: no core file, and no debugger that ggml starts for a backtrace.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if len(words) not in (1, 2):
        usage = "usage: python -m forkyard_llm.probing PACKAGE_FOLDER [MEMBER]"
        verdict: dict[str, Any] = {"usable": False, "reason": usage}
    else:
        try:
            verdict = probe(read_payload(Path(words[0]), *words[1:]))
        except ForkyardLlmError as error:
            verdict = {"usable": False, "reason": str(error), "error": type(error).__name__}
        except OSError as error:
            verdict = {"usable": False, "reason": f"cannot be loaded: {error}", "error": type(error).__name__}
    if words:
        verdict["depends_on"] = _system_libraries(Path(words[0]).resolve())
    verdict_stream.write(json.dumps(verdict) + "\n")
    verdict_stream.flush()
    # The verdict is out: no destructor of a strange library may still change the outcome.
    os._exit(0 if verdict["usable"] else 1)


def probe(payload: Payload) -> dict[str, Any]:
    """Load and exercise `payload` in this process. Raises ForkyardLlmError or OSError, or dies of it."""
    lacking = cpu.missing(payload.cpu_features)
    if lacking:
        return {"usable": False, "reason": "this CPU lacks " + ", ".join(lacking)}
    if any(feature.startswith("amx") for feature in payload.cpu_features):
        refusal = cpu.request_amx_permission()
        if refusal:
            return {"usable": False, "reason": refusal}
    engine = load(payload)
    engine.start()
    facts: dict[str, Any] = {
        "system_info": " ".join(engine.system_info().split()),
        "no_gpu": engine.no_gpu,
        "devices": [dataclasses.asdict(device) for device in engine.devices()],
    }
    types = _types(engine.abi)
    worst = {name: multiply_error(engine, number) or 0.0 for name, number in types.items()}
    # A model's weights usually lie in one of these, and AMX instructions are reached in no other way.
    for layout in layouts(engine):
        for name, number in types.items():
            error = multiply_error(engine, number, layout)
            if error is not None:
                worst[f"{name} in {layout.name}"] = error
    facts["multiplied"] = {name: round(error, 5) for name, error in worst.items()}
    wrong = [name for name, error in worst.items() if not error <= _TOLERANCE]  # also NaN
    if wrong:
        reason = f"multiplies {', '.join(wrong)} matrices wrongly on this CPU"
    else:
        reason = f"loads, and multiplies {', '.join(worst)} matrices correctly"
    return {"usable": not wrong, "reason": reason, **facts}


def _system_libraries(root: Path) -> list[list[Any]]:
    """Path, size and time of change (ns) of every library outside `root` that this process has loaded by now."""
    try:
        lines = Path("/proc/self/maps").read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    # Columns: addresses, permissions, offset, device, inode, path.
    paths = {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6 and ".so" in fields[5]}
    stamps = (stamp(path) for path in sorted(paths) if not Path(path).is_relative_to(root))
    return [entry for entry in stamps if entry[1] is not None]


def _types(abi: ModuleType) -> dict[str, int]:
    present = [name for name in _TYPES if hasattr(abi, name)]
    return {name.removeprefix("GGML_TYPE_").lower(): int(getattr(abi, name)) for name in present}


if __name__ == "__main__":
    main()
