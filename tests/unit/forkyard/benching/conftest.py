"""A payload wheel whose llama-bench is a script: it prints what either engine prints, with speeds of our choosing."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from forkyard.benching.nodes import MemoryNode

PACKAGE = "forkyard_llama_cpp_avx2"

HELP = {
    "llama.cpp": """\
options:
  --numa <{modes}>
                                              numa mode (default: disabled)
  -o, --output <csv|json|jsonl|md|sql>        output format printed to stdout (default: md)
  -lm, --load-mode <auto|none|mmap|mlock|mmap+mlock|dio> (default: auto)
""",
    "ik_llama.cpp": """\
  -mmp, --mmap <0|1>                  (default: 1)
  --numa <{modes}> (default: disabled)
  -o, --output <csv|json|md|sql>      (default: md)
""",
}

SCRIPT = """\
#!{python}
import json, os, sys
from pathlib import Path

facts = json.loads({facts!r})
words = sys.argv[1:]
if words == ["--help"]:
    sys.stdout.write(facts["help"])
    sys.exit(facts["help_status"])
value = dict(zip(words, words[1:]))
mode = value["--numa"]
record = Path(facts["record"])
known = json.loads(record.read_text()) if record.exists() else []
number = sum(1 for call in known if call["mode"] == mode)
known.append({{"mode": mode, "words": words, "fake": os.environ.get("GGML_NUMA_FAKE_NODES")}})
record.write_text(json.dumps(known))
if mode in facts["broken"]:
    sys.stderr.write("error: no copy on node 1: 512 bytes lacking\\n")
    sys.exit(3)
print("load: some line [with brackets]", file=sys.stderr, flush=True)
rows = []
for kind, count in (("pp", int(value["-p"])), ("tg", int(value["-n"]))):
    if count:
        speeds = facts["speeds"][mode]
        row = {{"model_type": "fake 1B Q8_0", "n_prompt": 0, "n_gen": 0}}
        row["n_prompt" if kind == "pp" else "n_gen"] = count
        row["avg_ts"] = speeds[number % len(speeds)] * (10 if kind == "pp" else 1)
        if mode in ("mirror", "split") and facts["counts"]:
            row["numa_local"] = 99.5
        if facts["engine"] == "ik_llama.cpp":
            row["test"] = f"{{kind}}{{count}}"
        rows.append(json.dumps(row, indent=2))
print("[", flush=True)
print((",\\n").join(rows[:1]), flush=True)
print("between the rows", file=sys.stderr, flush=True)
for row in rows[1:]:
    print(",\\n  " + row)
print("]")
"""


class Payload:
    """The wheel, and what its llama-bench was asked."""

    def __init__(self, wheel: Path, record: Path) -> None:
        self.wheel = wheel
        self.record = record

    @property
    def calls(self) -> list[dict[str, object]]:
        """Every run: mode, words, and the environment's number of pretended nodes."""
        return list(json.loads(self.record.read_text())) if self.record.exists() else []


@pytest.fixture
def make_payload(tmp_path: Path) -> Callable[..., Payload]:
    """Write the wheel of an engine."""

    def make(
        speeds: Mapping[str, list[float]] | None = None,
        *,
        engine: str = "llama.cpp",
        modes: str = "distribute|isolate|numactl|mirror|split",
        broken: tuple[str, ...] = (),
        counts: bool = True,
        help_status: int = 0,
        tool: str = "llama-bench",
    ) -> Payload:
        record = tmp_path / "calls.json"
        usual = {"isolate": [10.0], "distribute": [9.0], "mirror": [15.0], "split": [14.0]}
        facts = {
            "engine": engine,
            "help": HELP[engine].format(modes=modes),
            "help_status": help_status,
            "speeds": dict(speeds or usual),
            "broken": list(broken),
            "counts": counts,
            "record": str(record),
        }
        script = SCRIPT.format(python=sys.executable, facts=json.dumps(facts))
        wheel = tmp_path / f"{PACKAGE}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{PACKAGE}/manifest.json", json.dumps({"engine": engine, "build_key": "a" * 64}))
            info = zipfile.ZipInfo(f"{PACKAGE}/bin/{tool}")
            info.external_attr = 0o100755 << 16
            archive.writestr(info, script)
        return Payload(wheel, record)

    return make


@pytest.fixture
def two_nodes() -> tuple[MemoryNode, ...]:
    """A machine with two nodes of four cores."""
    return (MemoryNode(0, (0, 1, 2, 3), 4), MemoryNode(2, (4, 5, 6, 7), 4))


@pytest.fixture
def one_node() -> tuple[MemoryNode, ...]:
    """A machine with one node."""
    return (MemoryNode(0, (0, 1, 2, 3), 4),)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that stands for a model."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path
