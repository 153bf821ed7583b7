from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from forkyard_llm.measuring.numa_modes import MODES, Scenario

from forkyard.benching.foretelling import foretell


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with 16 MB of weights in one matrix."""
    path = tmp_path / "weights.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("output.weight", np.ones((2048, 2048), dtype=np.float32))
    writer.add_tensor("token_embd.weight", np.ones((16, 2048), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def scenario(nodes: int) -> Scenario:
    return Scenario(tuple(MODES.values()), 512, 128, 3, threads_per_node=24, nodes=nodes, fake=False)


def test_generation_is_bound_by_the_bandwidth(weights: Path) -> None:
    found = foretell(weights, scenario(2), 1e9)
    size = 2048 * 2048 * 4
    assert found.bytes_per_token == size
    assert found.speeds["isolate"] == pytest.approx(1e9 / size, rel=0.01)
    assert found.speeds["mirror"] == found.speeds["split"] == pytest.approx(2e9 / size, rel=0.01)
    assert "distribute" not in found.speeds


def test_more_nodes_and_more_bandwidth_are_not_slower(weights: Path) -> None:
    two = foretell(weights, scenario(2), 1e9).speeds["mirror"]
    assert foretell(weights, scenario(4), 1e9).speeds["mirror"] > two
    assert foretell(weights, scenario(2), 2e9).speeds["mirror"] > two
