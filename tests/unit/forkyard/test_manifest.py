"""What a payload's manifest says of its backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from forkyard.manifest import _backend
from forkyard.plan import Plan


@pytest.mark.parametrize(
    ("variant", "libraries", "expected"),
    [
        ("cuda13", (), False),
        ("cuda13", ("libnccl.so.2",), True),
        ("cuda13", ("libncclish.so.2",), False),
        ("hip", (), False),
        ("hip", ("librccl.so.1",), True),
        ("vulkan", (), None),
        ("rpc", (), None),
    ],
)
def test_whether_nccl_is_linked(
    plan_of: Callable[..., Plan], variant: str, libraries: tuple[str, ...], expected: bool | None
) -> None:
    plan = plan_of(variant)
    backend = plan.variant.backend
    assert backend is not None
    more = backend.model_copy(update={"libraries": backend.libraries + libraries})
    facts = _backend(replace(plan, variant=replace(plan.variant, backend=more)))
    assert facts is not None
    assert facts["nccl"] is expected


def test_a_backend_for_other_machines(plan_of: Callable[..., Plan]) -> None:
    assert _backend(plan_of("avx2")) is None
    plan = plan_of("rpc")
    facts = _backend(plan)
    assert facts is not None
    assert (facts["remote"], facts["toolkit"], facts["needs"]) == (True, None, [])
    assert plan.tools == (*plan.recipe.build.tools, *plan.variant.tools)
    cuda = _backend(plan_of("cuda13"))
    assert cuda is not None
    assert cuda["remote"] is False
