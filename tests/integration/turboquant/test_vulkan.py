"""A cache of ftq4, ftq3 and ftq2 on a Vulkan GPU, by Mesa's software device: what is done with it, and what is refused.

A child for each case, as that device may crash once it has compiled many large shaders.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from forkyard_llm.payloads import Payload

from ..split.split_probe import REFUSED
from .conftest import ENGINE, Case, Engine, Failure
from .test_tail import error

pytestmark = [pytest.mark.deep, pytest.mark.patch("cache-types-vulkan")]
NEAR = 1.3
"""Of the error that the same cache has on the CPU: .97 to 1.11 was seen."""

MIXED = Case(k="ftq4", v="ftq3", center=0)
CASES = (
    *(replace(MIXED, act=act) for act in ("plain", "shift", "copy", "sequence", "state")),
    replace(MIXED, k="ftq2", v="q8_0"),
    replace(MIXED, k="f16", v="ftq4"),
    replace(MIXED, v="f16", flash=False),
    replace(MIXED, v="f16", flash=False, act="shift"),
    replace(MIXED, tail=24, sinks=4, length=100),
    replace(MIXED, model="biased", v="f16", center=None),
    replace(MIXED, model="biased", v="f16", center=None, act="shift"),
)


@pytest.fixture(scope="module")
def cpu(vulkan_payload: Payload, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(ENGINE, vulkan_payload.root, tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def gpu(vulkan_payload: Payload, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(ENGINE, vulkan_payload.root, tmp_path_factory.mktemp("gpu"), device="Vulkan0")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cache_on_the_gpu_has_the_error_of_one_on_the_cpu(cpu: Engine, gpu: Engine, case: Case) -> None:
    right = cpu.logits(replace(case, k="f16", v="f16", tail=0, sinks=0, center=None))
    assert error(gpu.logits(case), right) <= NEAR * error(cpu.logits(case), right)


def test_centers_are_measured_on_the_gpu(gpu: Engine) -> None:
    case = Case("biased", k="ftq4", v="f16")
    assert not np.array_equal(gpu.logits(case), gpu.logits(replace(case, center=0)))
    assert "centers of K from 128 tokens" in gpu.said[case]


def test_a_type_that_the_gpu_cannot_write_is_refused(gpu: Engine) -> None:
    failure = gpu.run(Case(k="mxfp4", v="f16"))
    assert isinstance(failure, Failure)
    assert failure.status == REFUSED
    assert "Vulkan0 cannot write a KV cache of type mxfp4, set another type" in failure.output
