from __future__ import annotations

import pytest

from forkyard.numamodel.tensors import Reading, Tensor
from forkyard.numamodel.workload import ROW_BYTES, Workload, workload_of


def a_model(**changes: float) -> Workload:
    facts = {"used": 2, "state": 100.0, "barriers": 10.0, **changes}
    return workload_of(
        "small",
        [
            Tensor(Reading.LOOKUP, 64, 1000, 8.0),
            Tensor(Reading.HEAD, 64, 1000, 16.0),
            Tensor(Reading.ALWAYS, 64, 32, 4.0),
            Tensor(Reading.ALWAYS, 64, 1, 32.0, matrix=False),
            Tensor(Reading.EXPERT, 64, 16, 4.0, experts=8),
            Tensor(Reading.EXPERT, 16, 64, 4.0, experts=8, own_rows=True),
        ],
        used=int(facts["used"]),
        state=facts["state"],
        barriers=facts["barriers"],
    )


def test_a_lookup_is_not_read() -> None:
    model = a_model()
    assert model.always == 64 * 1000 * 2 + 64 * 32 / 2 + 64 * 4
    assert model.values == 2 * 64_000 + 64 * 32 + 64 + 2 * 8 * 64 * 16
    assert model.size == model.always + model.routed + 64_000


def test_one_token_reads_the_experts_it_is_routed_to() -> None:
    model = a_model()
    assert model.routed == 2 * 8 * 64 * 16 / 2
    assert model.bytes_read(1, 0.1) == model.always + model.routed * 2 / 8 + 2 * 100


def test_a_batch_reads_what_uniform_routing_would_times_the_spread() -> None:
    model = a_model()
    uniform = 1 - (1 - 2 / 8) ** 4
    assert model.bytes_read(4, 1.0) == pytest.approx(model.always + model.routed * uniform + 200)
    assert model.bytes_read(4, 0.5) == pytest.approx(model.always + model.routed * uniform / 2 + 200)


def test_a_batch_never_reads_less_than_one_token() -> None:
    model = a_model()
    assert model.bytes_read(2, 0.0) == model.bytes_read(1, 0.0)


def test_operations_are_two_for_each_weight_a_token_meets() -> None:
    model = a_model()
    assert model.token_operations == 2 * (64 * 32 + 2 * 64 * 16 * 2)
    assert model.head_operations == 2 * 64_000
    assert model.operations(3) == 3 * model.token_operations + model.head_operations


def test_activations_count_an_input_for_each_expert_that_has_its_own() -> None:
    model = a_model()
    assert model.activations == (64 + 64 + 64 + 16 * 2) * ROW_BYTES
    assert model.matrices == 4


def test_a_dense_model_reads_the_same_for_every_batch() -> None:
    model = workload_of("dense", [Tensor(Reading.ALWAYS, 8, 8, 8.0)], barriers=1)
    assert model.bytes_read(1, 1.0) == model.bytes_read(100, 1.0) == 64
