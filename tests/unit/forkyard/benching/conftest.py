"""A payload wheel whose llama-bench is a script: it prints what either engine prints, with speeds of our choosing."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.measuring.machine import MemoryNode

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


SPLIT_HELP = {
    "llama.cpp": """\
  --numa <distribute|isolate|numactl>
  -d, --n-depth <n>                                 (default: 0)
  -sm, --split-mode <{splits}>         (default: layer)
  -fa, --flash-attn <on|off|auto>                   (default: auto)
  -dev, --device <dev0/dev1/...>                    (default: auto)
  -lm, --load-mode <auto|none|mmap|mlock|mmap+mlock|dio> (default: auto)
""",
    "ik_llama.cpp": """\
  -gp <pp,tg>                         (default: 0,0)
  -sm, --split-mode <{splits}>(default: layer)
  -fa, --flash-attn <0|1>             (default: 1)
  --numa <distribute|isolate|numactl> (default: disabled)
""",
}

# What the engines print of the devices with -v; between name and rest of the line as they write it.
SPLIT_DEVICE = {
    "llama.cpp": "llama_prepare_model_devices: using device {name} ({about}) (unknown id) - 24105 MiB free",
    "ik_llama.cpp": "  Device {number}: {about}, compute capability 8.6, VMM: yes, VRAM: 20053 MiB\n"
    "{name}: using device {name} - 19500 MiB free",
}

SPLIT_SCRIPT = """\
#!{python} -IS
import json, os, sys
from pathlib import Path

facts = json.loads({facts!r})
words = sys.argv[1:]
value = {{}}
for word, after in zip(words, words[1:]):
    value.setdefault(word, []).append(after)
if "--help" in words:
    if not set(value.get("-ctk", [])) <= set(facts["types"]):
        sys.exit("error: invalid parameter for argument: -ctk")
    sys.stdout.write(facts["help"])
    sys.exit(0)
arm = value["-sm"][0] + " " + value["-ctk"][0]
trial = "-v" in words
record = Path(facts["record"])
known = json.loads(record.read_text()) if record.exists() else []
number = sum(1 for call in known if call["arm"] == arm and not call["trial"])
chosen = {{name: os.environ[name] for name in sorted(os.environ) if name.startswith(("CUDA_", "GGML_"))}}
known.append({{"engine": facts["engine"], "arm": arm, "trial": trial, "words": words, "environment": chosen}})
record.write_text(json.dumps(known))
if trial:
    print(facts["devices"], file=sys.stderr, flush=True)
    if value["-sm"][0] in facts["changed"]:
        print("Split mode 'graph' is not supported for this model", file=sys.stderr)
        print("  => changing split mode to 'layer'", file=sys.stderr, flush=True)
refusal = facts["refused"].get(arm) if trial or arm not in facts["later"] else None
if refusal or facts["later"].get(arm) == number and not trial:
    print("load: much else", file=sys.stderr)
    if trial:
        print("llama_model_load: error loading model: " + refusal, file=sys.stderr)
    sys.exit("main: error: failed to load model " + repr(value["-m"][0]))
tests = []
for depth in map(int, value.get("-d", ["0"])[0].split(",")):
    tests += [(int(value["-p"][0]), 0, depth), (0, int(value["-n"][0]), depth)]
for pair in value.get("-gp", []):
    depth, generate = map(int, pair.split(","))
    tests.append((depth, generate, None))
rows = []
for prompt, generate, depth in tests:
    if prompt or generate:
        speeds = facts["speeds"].get(arm, [10.0])
        speed = speeds[number % len(speeds)] * (1 if generate else 10)
        row = {{"model_type": "fake 1B Q8_0", "n_prompt": prompt, "n_gen": generate, "avg_ts": speed}}
        if facts["engine"] == "llama.cpp":
            row["n_depth"] = depth
        elif depth is None:
            row["test"] = "tg%d@pp%d" % (generate, prompt)
        rows.append(json.dumps(row, indent=2))
print("[\\n" + ",\\n".join(rows) + "\\n]")
"""

SERVER_SCRIPT = """\
#!{python} -IS
import os, socket, sys
from pathlib import Path

value = dict(zip(sys.argv[1:], sys.argv[2:]))
listener = socket.create_server((value["-H"], int(value["-p"])))
with Path({record!r}).open("a") as record:
    record.write("%d %s\\n" % (os.getpid(), " ".join(sys.argv[1:])))
while True:
    listener.accept()[0].close()
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


@pytest.fixture(autouse=True)
def own_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test measures does not go to the user's measurements."""
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "llm"))


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
def make_split_payload(tmp_path: Path) -> Callable[..., Payload]:
    """Write the wheel of an engine that shares models between devices; all of a test record into one file."""

    def make(
        speeds: Mapping[str, list[float]] | None = None,
        *,
        engine: str = "llama.cpp",
        splits: str = "none|layer|row|tensor",
        types: tuple[str, ...] = ("f16", "q8_0", "q4_0"),
        devices: tuple[tuple[str, str], ...] = (("CUDA0", "GPU (of ours)"), ("CUDA1", "GPU (of ours)")),
        refused: Mapping[str, str] | None = None,
        later: Mapping[str, int] | None = None,
        changed: tuple[str, ...] = (),
        server: bool = False,
        needs: tuple[str, ...] = (),
        nccl: bool | None = None,
        build_key: str = "a" * 64,
    ) -> Payload:
        record = tmp_path / "calls.json"
        lines = [SPLIT_DEVICE[engine].format(number=n, name=one, about=other) for n, (one, other) in enumerate(devices)]
        facts = {
            "engine": engine,
            "help": SPLIT_HELP[engine].format(splits=splits),
            "types": types,
            "devices": "\n".join(lines),
            "refused": dict(refused or {}),
            "later": dict(later or {}),
            "changed": changed,
            "speeds": dict(speeds or {}),
            "record": str(record),
        }
        package = f"forkyard_{engine.replace('.', '_')}_{build_key[:2]}"
        tools = {"llama-bench": SPLIT_SCRIPT.format(python=sys.executable, facts=json.dumps(facts))}
        if server:
            tools["ggml-rpc-server"] = SERVER_SCRIPT.format(python=sys.executable, record=str(tmp_path / "servers.txt"))
        wheel = tmp_path / f"{package}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            manifest: dict[str, Any] = {"engine": engine, "recipe": engine, "build_key": build_key}
            manifest["backend"] = {"needs": needs, "nccl": nccl} if needs or nccl is not None else None
            archive.writestr(f"{package}/manifest.json", json.dumps(manifest))
            for name, script in tools.items():
                info = zipfile.ZipInfo(f"{package}/bin/{name}")
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
