"""Layers of the cache with types of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ..split.split_probe import REFUSED
from .conftest import Case, Engine, Failure
from .test_tail import error

pytestmark = pytest.mark.patch("kv-layer-types")
ALL = "first1=q8_0,last1=q8_0"
"""Every layer of the tiny models, which have two."""
NAMED = Case("dense", k="q4_0", v="q4_0", layers=ALL)


@pytest.mark.parametrize(
    "case",
    [
        *(replace(NAMED, act=act) for act in ("plain", "shift-sinks", "copy", "sequence", "state", "back")),
        *(replace(NAMED, act=act, unified=False) for act in ("copy", "state")),
        replace(NAMED, layers="0-1=q8_0"),
        replace(NAMED, layers="0=f16,1=f16/q4_0,first2=q8_0"),
        replace(NAMED, k="f16", v="f16"),
        replace(NAMED, k="f16", v="f16", act="shift"),
        replace(NAMED, tail=24, sinks=4, length=100, act="shift"),
        replace(NAMED, k="f16", v="f16", tail=24, sinks=4, length=100),
        replace(NAMED, center=1),
        replace(NAMED, model="window", layers="first1=q8_0,1-5=q8_0"),
    ],
    ids=str,
)
def test_layers_that_all_have_one_type_are_a_cache_of_it(patched: Engine, case: Case) -> None:
    assert np.array_equal(patched.logits(case), patched.logits(replace(case, k="q8_0", v="q8_0", layers="")))


@pytest.mark.parametrize("act", ["plain", "shift", "state"])
@pytest.mark.parametrize("layers", ["first1=f16", "last1=f16", "0=f16/q4_0", "1=q4_0/f16"])
def test_a_layer_of_f16_has_no_error_of_its_own(patched: Engine, layers: str, act: str) -> None:
    """Rotated with the others, and turned with them by a shift."""
    case = replace(NAMED, layers=layers, act=act)
    exact = patched.logits(replace(case, k="f16", v="f16", layers=""))
    both = error(patched.logits(replace(case, layers="")), exact)
    assert 0 < error(patched.logits(case), exact) < both


def test_a_layer_of_few_bits_among_f16(patched: Engine) -> None:
    case = Case("dense", k="f16", v="f16", layers="1=ftq4")
    exact = patched.logits(replace(case, layers=""))
    assert 0 < error(patched.logits(case), exact) < error(patched.logits(replace(case, layers="first2=ftq4")), exact)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ("0", "'0' is not LAYERS=K or LAYERS=K/V"),
        ("=q8_0", "'=q8_0' is not LAYERS=K or LAYERS=K/V"),
        ("1-0=q8_0", "'1-0=q8_0' is not LAYERS=K or LAYERS=K/V"),
        ("first0=q8_0", "'first0=q8_0' is not LAYERS=K or LAYERS=K/V"),
        ("0=q8_0,,", "'' is not LAYERS=K or LAYERS=K/V"),
        ("-1=q8_0", "'-1=q8_0' is not LAYERS=K or LAYERS=K/V"),
        ("99999999=q8_0", "'99999999=q8_0' is not LAYERS=K or LAYERS=K/V"),
        ("2=q8_0", "names layers that are not there, the model has 0 to 1"),
        ("last3=q8_0", "names layers that are not there, the model has 0 to 1"),
        ("0=q9_9", "there is no type 'q9_9'"),
        ("0=q8_0/", "there is no type ''"),
        ("0=q4_K", "there is no type 'q4_K'"),
    ],
)
def test_words_that_mean_nothing_are_refused(patched: Engine, layers: str, reason: str) -> None:
    refused(patched.run(replace(NAMED, layers=layers)), reason)


def test_a_quantized_v_needs_flash_attention(patched: Engine) -> None:
    refused(patched.run(replace(NAMED, v="f16", flash=False)), "a quantized V needs flash attention")


def test_latent_attention_has_no_layers_of_its_own(patched: Engine) -> None:
    refused(
        patched.run(replace(NAMED, model="latent", k="f16", v="f16", layers="0=q8_0")), "the attention of this model"
    )


def refused(result: object, reason: str) -> None:
    assert isinstance(result, Failure)
    assert result.status == REFUSED
    assert reason in result.output
