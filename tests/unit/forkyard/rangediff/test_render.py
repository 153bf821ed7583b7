"""What people see: text, colours, a page."""

from __future__ import annotations

import html.parser
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from forkyard.rangediff.model import Comparison, Fact, Line, Pair, Place, Side
from forkyard.rangediff.render import as_html, as_text, difference, fact_text, visible

A, B = "a" * 40, "b" * 40
NASTY = "\x1b[31m\x07\x9b2J\u202e</pre><script>alert(1)</script>&amp;\r"


def side(number: int, name: str, subject: str = "part : do it") -> Side:
    return Side(number, name, A, subject)


COMPARISON = Comparison(
    "part",
    "llama.cpp",
    Place("HEAD~3 (0123456789ab)", "0" * 40, A, "2026-01-02", ("fixes",), 4),
    Place("worktree", None, B, "2026-03-04", ("fixes",), 4, ("bbbbbbbbbbbb already has all that part/c.patch does",)),
    (
        Pair("=", side(1, "a.patch"), side(1, "a.patch"), "1:  aaaaaaaaaaaa = 1:  aaaaaaaaaaaa part : do it"),
        Pair(
            "!",
            side(3, "c.patch"),
            side(2, "see.patch"),
            "3:  aaaaaaaaaaaa ! 2:  aaaaaaaaaaaa part : do it",
            tuple(
                Line(text)
                for text in (
                    "@@ Metadata",
                    "  ## Commit message ##",
                    "-    old words",
                    "+    new words",
                    "  ## a.c ##",
                    " @@ a.c: int f(void)",
                    "  \tcontext",
                    " -gone",
                    "-+was added",
                    "++is added",
                )
            ),
            (Fact("Upstream-Status", "Pending", "Accepted 0123456"),),
            moved=True,
        ),
        Pair("<", side(2, "b.patch"), None, "2:  aaaaaaaaaaaa < -:  ------------ part : do it", rewritten=True),
        Pair(">", None, side(3, "b.patch"), "-:  ------------ > 3:  aaaaaaaaaaaa part : do it", rewritten=True),
    ),
    (Fact("title", "One", "Other"), Fact("test", None, "tests/x.py")),
    (Fact("src/x.c", "0123456789ab", None),),
)
GOLDEN = """\
part for llama.cpp
  old: HEAD~3 (0123456789ab), 4 patches on aaaaaaaaaaaa of 2026-01-02 after fixes
  new: worktree, 4 patches on bbbbbbbbbbbb of 2026-03-04 after fixes
       bbbbbbbbbbbb already has all that part/c.patch does
  old   new  patch
    1 =   1  a.patch
    3 !   2  see.patch  changed +2 -2, was c.patch, moved from 3 to 2
             Upstream-Status: Pending -> Accepted 0123456
    2 <   -  b.patch    dropped, rewritten: the other revision has another patch of this name
    - >   3  b.patch    added, rewritten: the other revision has another patch of this name
  stack.toml
    title: One -> Other
    test: now tests/x.py
  whole files (sha256)
    src/x.c: no longer 0123456789ab
"""
GITS = """\
1:  aaaaaaaaaaaa = 1:  aaaaaaaaaaaa part : do it
3:  aaaaaaaaaaaa ! 2:  aaaaaaaaaaaa part : do it
    @@ Metadata
      ## Commit message ##
    -    old words
    +    new words
      ## a.c ##
     @@ a.c: int f(void)
      \tcontext
     -gone
    -+was added
    ++is added
2:  aaaaaaaaaaaa < -:  ------------ part : do it
-:  ------------ > 3:  aaaaaaaaaaaa part : do it
"""


def test_the_text() -> None:
    assert as_text([COMPARISON], stat=True).plain + "\n" == GOLDEN
    assert as_text([COMPARISON]).plain + "\n" == GOLDEN + "\n" + GITS


def test_two_engines() -> None:
    assert as_text([COMPARISON, COMPARISON], stat=True).plain == GOLDEN + "\n" + GOLDEN.removesuffix("\n")


def test_a_side_that_was_not_there() -> None:
    gone = Comparison("part", "llama.cpp", Place("v1", A, None, None), Place("worktree", None, B, "2026-03-04"))
    assert as_text([gone]).plain.splitlines() == [
        "part for llama.cpp",
        "  old: v1, where it was not there",
        "  new: worktree, 0 patches on bbbbbbbbbbbb of 2026-03-04",
        "  no patches in either",
    ]
    assert "where it was not there" in as_html([gone])


def coloured(comparison: Comparison) -> list[str]:
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard", soft_wrap=True, highlight=False).print(
        difference(comparison)
    )
    return out.getvalue().splitlines()


def test_colours_show_both_levels() -> None:
    lines = coloured(COMPARISON)
    assert lines[0].startswith("\x1b[32m")
    # Outer sign in reverse; what the patch removes stays in the colour of a removal, its old lines dim, its new bold.
    assert "    \x1b[7;31m-\x1b[0m\x1b[2;32m+was added\x1b[0m" in lines
    assert "    \x1b[7;32m+\x1b[0m\x1b[1;32m+is added\x1b[0m" in lines
    assert "     \x1b[31m-gone\x1b[0m" in lines


def nasty() -> Comparison:
    pair = Pair(
        "!",
        side(1, NASTY, NASTY),
        side(1, NASTY + ".patch", NASTY),
        f"1:  {A[:12]} ! 1:  {A[:12]} {NASTY}",
        (Line(f"+{NASTY}"), Line(NASTY), Line("")),
        (Fact(NASTY, NASTY, NASTY),),
    )
    return Comparison(
        NASTY,
        "llama.cpp",
        Place(NASTY, None, A, NASTY, (NASTY,), 1, (NASTY,)),
        Place(NASTY, None, None, None),
        (pair,),
        (Fact(NASTY, None, NASTY),),
        (Fact(NASTY, NASTY, None),),
    )


def test_nothing_steers_a_terminal() -> None:
    text = as_text([nasty()]).plain
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "^[[31m^G<U+009B>2J<U+202E></pre>" in text


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                self.links.append(value or "")


def read(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def test_the_page_is_safe_and_needs_nothing_else() -> None:
    text = as_html([nasty(), COMPARISON])
    assert "\x1b" not in text
    assert "\u202e" not in text
    page = read(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "link" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\(|@import", text)


def test_every_patch_has_a_place_to_link_to() -> None:
    page = read(as_html([COMPARISON, COMPARISON]))
    targets = {link.removeprefix("#") for link in page.links}
    assert targets <= set(page.ids)
    assert {f"patch-{engine}-{number}" for engine in (1, 2) for number in range(1, 5)} <= targets
    assert len(page.ids) == len(set(page.ids))


def test_the_page_shows_signs_and_words() -> None:
    text = as_html([COMPARISON])
    assert '<span class="l on"><b>+</b><span class="ip">+is added</span></span>' in text
    assert '<span class="l oo"><b>-</b><span class="ip">+was added</span></span>' in text
    assert '<span class="l ob"><b> </b><span class="im">-gone</span></span>' in text
    assert "Upstream-Status: Pending -&gt; Accepted 0123456" in text
    assert "moved from 3 to 2" in text
    assert "prefers-color-scheme: dark" in text


def test_a_long_difference_is_folded() -> None:
    def page(count: int) -> str:
        pair = Pair("!", side(1, "a.patch"), side(1, "a.patch"), "h", tuple(Line("++x") for _ in range(count)))
        place = Place("worktree", None, A, "2026-01-02", patches=1)
        return as_html([Comparison("part", "llama.cpp", place, place, (pair,))])

    assert "<details open>" in page(10)
    assert "<details>" in page(10_000)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb", "a\tb"),
        ("\x00\x1b\x7f\r\n", "^@^[^?^M^J"),
        ("\x85\u2028\ufeff\udc80", "<U+0085><U+2028><U+FEFF><U+DC80>"),
        ("\u00fc \u2713 \U0001f600", "\u00fc \u2713 \U0001f600"),
    ],
)
def test_control_characters_are_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters()))
def test_whatever_is_shown_is_one_line(text: str) -> None:
    assert len(visible(text).splitlines()) <= 1
    # Not every text can be written: a lone surrogate could not.
    visible(text).encode()


def test_of_long_texts_only_what_differs() -> None:
    words = [f"word{number}" for number in range(60)]
    other = [*words[:30], "new", *words[31:]]
    text = fact_text(Fact("intent", "\n".join(words), " ".join(other)))
    assert text == (
        "intent: ... word27 word28 word29 word30 word31 word32 word33 ..."
        " -> ... word27 word28 word29 new word31 word32 word33 ..."
    )
    ends = fact_text(Fact("intent", "x" * 60 + " end", "y" * 60 + " end"))
    assert ends == f"intent: {'x' * 60} end -> {'y' * 60} end"
    grown = fact_text(Fact("intent", " ".join(words), " ".join([*words, "more"])))
    assert grown == "intent: ... word57 word58 word59 -> ... word57 word58 word59 more"
