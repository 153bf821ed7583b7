from __future__ import annotations

from pathlib import Path

import pytest
from forkyard_llm.engines.context_memory import least_bytes
from forkyard_llm.engines.quota import available_bytes

PLAIN = {
    "general.architecture": "llama",
    "llama.block_count": "30",
    "llama.context_length": "8192",
    "llama.embedding_length": "576",
    "llama.attention.head_count": "9",
    "llama.attention.head_count_kv": "3",
}


def test_keys_and_values_of_all_layers():
    # 30 layers, 3 heads of 64 keys and 64 values, 2 bytes each: 22.5 KiB a token.
    assert least_bytes(PLAIN.get, 1000, 2, 2) == 1000 * (30 * 3 * 128 * 2 + 40)
    assert least_bytes(PLAIN.get, 0, 2, 2) == 8192 * (30 * 3 * 128 * 2 + 40)


def test_sizes_the_model_gives_itself():
    model = {**PLAIN, "llama.attention.key_length": "128", "llama.nextn_predict_layers": "2"}
    assert least_bytes(model.get, 10, 1, 0.5) == 10 * (28 * 3 * (128 + 32) + 40)


@pytest.mark.parametrize(
    "more",
    [
        {"llama.attention.sliding_window": "512"},
        {"llama.attention.kv_lora_rank": "512"},
        {"llama.ssm.state_size": "16"},
        {"llama.attention.head_count": "[9, 9]"},
    ],
)
def test_models_that_may_keep_less_are_not_guessed_at(more: dict[str, str]):
    assert least_bytes({**PLAIN, **more}.get, 1000, 2, 2) == 40_000


def test_what_the_system_has_left(tmp_path: Path):
    (tmp_path / "proc").mkdir()
    meminfo = tmp_path / "proc" / "meminfo"
    assert available_bytes(tmp_path) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    5 kB\nSwapFree: 2 kB\nHugePages_Total: 0\n")
    assert available_bytes(tmp_path) == 7 * 1024
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:\n")
    assert available_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("mount", "own", "files"),
    [
        (
            "cgroup2 cgroup2 rw",
            "0::/a/b",
            {
                "a/memory.max": "4000",
                "a/memory.current": "3000",
                "a/memory.stat": "anon 9\nactive_file 100\ninactive_file 50\n",
                "a/b/memory.max": "max",
                "a/b/memory.current": "3000",
            },
        ),
        (
            "cgroup cgroup rw,memory",
            "4:memory:/a",
            {
                "a/memory.limit_in_bytes": "4000",
                "a/memory.usage_in_bytes": "3000",
                "a/memory.stat": "active_file 1\ntotal_active_file 100\ntotal_inactive_file 50\n",
                "memory.limit_in_bytes": "9223372036854771712",
                "memory.usage_in_bytes": "3000",
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_limits_of_control_groups(tmp_path: Path, mount: str, own: str, files: dict[str, str]):
    everything = {
        "proc/meminfo": "MemAvailable: 900 kB\nSwapFree: 0 kB\n",
        "proc/self/cgroup": own + "\n",
        "proc/self/mountinfo": f"31 23 0:27 / /cg rw - {mount}\n",
        **{f"cg/{name}": text for name, text in files.items()},
    }
    for name, text in everything.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_bytes(tmp_path) == 1000 + 150
