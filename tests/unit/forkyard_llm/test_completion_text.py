from __future__ import annotations

from itertools import pairwise

import pytest
from forkyard_llm.completion_text import TextAssembler, stop_strings
from forkyard_llm.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st


def assemble(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """What comes out piece by piece, as a caller of a stream sees it."""
    assembler = TextAssembler(stops)
    out = []
    for piece in pieces:
        out.append(assembler.add(piece))
        if assembler.stopped:
            return out, True
    out.append(assembler.finish())
    return out, assembler.stopped


def test_text_comes_out_at_once_without_stop_strings():
    assert assemble([b"ab", b"c"]) == (["ab", "c", ""], False)


def test_a_character_cut_by_a_token_border_waits_for_its_rest():
    smile = "\N{GRINNING FACE}".encode()
    assert assemble([b"a" + smile[:1], smile[1:3], smile[3:] + b"b"]) == (["a", "", "\N{GRINNING FACE}b", ""], False)


def test_incomplete_utf8_at_the_end_becomes_a_replacement_character():
    assert assemble([b"a", "é".encode()[:1]]) == (["a", "", "\N{REPLACEMENT CHARACTER}"], False)


def test_a_stop_string_across_token_borders_never_shows():
    assert assemble([b"one ST", b"O", b"P two"], ("STOP",)) == (["one ", "", ""], True)


def test_what_only_looked_like_a_stop_string_comes_out_later():
    assert assemble([b"one ST", b"O", b"RM"], ("STOP",)) == (["one ", "", "STORM", ""], False)


def test_a_held_back_beginning_comes_out_at_the_end():
    assert assemble([b"abcST"], ("STOP",)) == (["abc", "ST"], False)


def test_the_stop_string_completed_first_ends_the_text():
    assert assemble([b"abcX"], ("abcX", "bc")) == (["a"], True)
    assert assemble([b"a", b"b", b"c", b"X"], ("abcX", "bc")) == (["", "", "a"], True)


def test_of_stop_strings_completed_together_the_longest_cuts():
    assert assemble([b"xabc"], ("c", "abc")) == (["x"], True)


def test_nothing_comes_after_a_stop_string():
    assembler = TextAssembler(("X",))
    assert assembler.add(b"aXb") == "a"
    assert assembler.add(b"more") == ""
    assert assembler.finish() == ""


def test_a_stop_string_may_hold_characters_of_several_bytes():
    assert assemble(["ça".encode()[:1], "ça va".encode()[1:]], ("a v",)) == (["", "ç"], True)


def reference(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The definition, character by character: the first completed stop string, the longest of those."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    st.text(alphabet="abé\N{GRINNING FACE}", max_size=30),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3).map(tuple),
    st.lists(st.integers(min_value=0, max_value=90), max_size=12),
)
def test_streaming_equals_the_definition_however_the_bytes_are_cut(text, stops, cuts):
    raw = text.encode()
    borders = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[start:end] for start, end in pairwise(borders)]
    out, stopped = assemble(pieces, stops)
    assert ("".join(out), stopped) == reference(text, stops)


@given(st.lists(st.binary(max_size=5), max_size=10))
def test_any_bytes_give_the_text_python_makes_of_them(pieces: list[bytes]):
    assert "".join(assemble(pieces)[0]) == b"".join(pieces).decode("utf-8", "replace")


def test_stop_strings_as_callers_give_them():
    assert stop_strings(None) == ()
    assert stop_strings("x") == ("x",)
    assert stop_strings(["x", "y", "x"]) == ("x", "y")


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [b"x"], [3]])
def test_stop_strings_that_make_no_sense_are_refused(stop):
    with pytest.raises(UsageError, match="stop must be"):
        stop_strings(stop)
