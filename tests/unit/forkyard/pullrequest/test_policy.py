"""Prose is refused where upstream forbids it, and our trailers never leave."""

from __future__ import annotations

import pytest

from forkyard.errors import UsageError
from forkyard.pullrequest.policy import MARKER, branch_message, refuse_prose, without_own_trailers

MESSAGE = """kv : go through f32

Because: it aborts.

Upstream-Status: Pending
Retire-When: file-exists a
Adds-Files: a -> b
Reported-by: Somebody <s@example.org>
"""


def test_prose_for_llama_cpp_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError) as error:
        refuse_prose("llama.cpp")

    assert "CONTRIBUTING.md and AGENTS.md forbid" in str(error.value)
    assert "a named person writes" in str(error.value)
    refuse_prose("ik_llama.cpp")


def test_a_commit_for_llama_cpp_says_only_that_a_person_must_word_it() -> None:
    assert branch_message("llama.cpp", "kshift-bf16.patch", MESSAGE) == f"{MARKER} kshift-bf16\n"


def test_a_commit_for_ik_llama_cpp_keeps_its_message_less_our_trailers() -> None:
    assert branch_message("ik_llama.cpp", "x.patch", MESSAGE) == (
        "kv : go through f32\n\nBecause: it aborts.\n\nReported-by: Somebody <s@example.org>\n"
    )


def test_only_the_last_paragraph_holds_trailers() -> None:
    text = "a : b\n\nUpstream-Status: is a word here\n\nUpstream-Status: Pending\n"

    assert without_own_trailers(text) == "a : b\n\nUpstream-Status: is a word here\n"
    assert without_own_trailers("only a subject\n") == "only a subject\n"
    assert without_own_trailers("Upstream-Status: a subject\n") == "Upstream-Status: a subject\n"
