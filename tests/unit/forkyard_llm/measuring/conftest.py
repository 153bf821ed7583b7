"""A llama-bench that is a script: it prints what either engine prints, with speeds of our choosing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.gguf_reader import GgufSummary, Value
from forkyard_llm.measuring.dialect import Result
from forkyard_llm.measuring.engine import Engine, examine
from forkyard_llm.measuring.records import Arm, Recorded, RunInfo, Sample

HELP = {
    "llama.cpp": "  -t, --threads <n>\n  -d, --n-depth <n>\n  --load-mode <auto|none|mmap>\n  -ub, --ubatch-size <n>\n"
    "  -fa, --flash-attn <on|off|auto>\n  --device <d>\n",
    "ik_llama.cpp": "  -t, --threads <n>\n  -tgb, --threads-gen-batch <n1,n2>\n  -gp <pp,tg>\n  -ub, --ubatch-size <n>\n"
    "  -fa, --flash-attn <0|1>\n  --fused-moe <0|1>\n",
}

# Speeds are an expression in the arguments: {"t": 4, "ub": 512, ...} as `value`, and the test's kind.
SCRIPT = """\
#!{python} -IS
import json, sys, time
facts = json.loads({facts!r})
words = sys.argv[1:]
if "--help" in words:
    print(facts["help"])
    sys.exit(0)
value = dict(zip(words, words[1:]))
fault = facts["faults"].get(value.get("-t"))
if fault == "crash":
    print("GGML_ASSERT(false) failed")
    sys.exit(134)
if fault == "garbage":
    print("[nonsense")
    sys.exit(0)
if fault == "hang":
    time.sleep(3600)
rows = []
for kind, count in (("pp", int(value.get("-p", 0))), ("tg", int(value.get("-n", 0)))):
    for depth in map(int, value.get("-d", "0").split(",")):
        if count:
            speed = eval(facts["speed"], {{"t": int(value.get("-t", 4)), "ub": int(value.get("-ub", 512)), "kind": kind}})
            row = {{"model_type": "fake 1B", "n_prompt": 0, "n_gen": 0, "avg_ts": speed, "n_depth": depth}}
            row["n_prompt" if kind == "pp" else "n_gen"] = count
            rows.append(json.dumps(row, indent=2))
print("[\\n" + ",\\n".join(rows) + "\\n]")
"""

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine(tmp_path: Path) -> MakeEngine:
    """The engine of a payload folder that is written for it."""

    def make(
        engine: str = "llama.cpp",
        speed: str = "100.0 * t if kind == 'tg' else 1000.0 * t",
        faults: dict[str, str] | None = None,
        variant: str = "avx2",
        key: str = "a" * 64,
    ) -> Engine:
        folder = tmp_path / f"{engine}-{variant}-{key[:2]}"
        (folder / "bin").mkdir(parents=True)
        facts = {"help": HELP[engine], "speed": speed, "faults": faults or {}}
        script = folder / "bin" / "llama-bench"
        script.write_text(SCRIPT.format(python=sys.executable, facts=json.dumps(facts)))
        script.chmod(0o755)
        manifest = {"engine": engine, "recipe": engine, "variant": variant, "build_key": key, "distribution": "fake"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return examine(folder)

    return make


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that stands for a model."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def summary(size: int = 1 << 30, **values: int) -> GgufSummary:
    """What a model's file says of it: 8 layers, 4 heads of 64 values, and what is given."""
    known = {
        "block_count": 8,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "embedding_length": 256,
        **values,
    }
    keys = {f"fake.{name.replace('__', '.')}": Value(4, None, one, 0) for name, one in known.items()}
    return GgufSummary(Path("model.gguf"), 3, "fake", 32, 0, size, keys, {})


def arm(name: str, *tests: str, **values: str) -> Arm:
    """An arm that nobody runs."""
    return Arm(
        name,
        ("/some/folder/llama-bench", "-m", "/other/model.gguf", "-t", "2"),
        tests or ("tg32",),
        name,
        values=values,
    )


def results(**speeds: float) -> list[Result]:
    """What a run of an arm says."""
    return [Result(test, speed, None, "fake") for test, speed in speeds.items()]


@pytest.fixture
def recorded() -> Recorded:
    """A run with an anchor, an arm that is faster, one that ties, and one that failed."""
    arms = [arm("base", "pp64", "tg32", threads="2"), arm("fast", "pp64", "tg32", threads="4"), arm("same"), arm("bad")]
    samples: list[Any] = []
    for number in range(6):
        for name, factor in (("base", 1.0), ("fast", 1.5 + number / 100), ("same", 1.0 + (-1) ** number / 50)):
            for test, speed in (("pp64", 200.0), ("tg32", 20.0)):
                if test in next(one for one in arms if one.name == name).tests:
                    samples.append(Sample(name, number, test, speed * factor, 1e9 + number, 0.5, speed))
    samples.append(Sample("fast", 6, "tg32", 1.0, 1e9, 9.0, 20.0, kept=False))
    info = RunInfo("ab" * 16, "threads", 1e9, "model.gguf", 4, {"cpu": "A CPU", "cores": 4}, "base")
    return Recorded(info, arms, samples, {"bad": "killed by signal 9"})
