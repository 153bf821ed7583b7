"""Authors and messages that a mail would lose."""

from __future__ import annotations

import datetime
import email.utils
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkyard.adopting.mailing import EMPTY_TREE, Letter, make_letter
from forkyard.adopting.series import export_series
from forkyard.gitstore import Author, Store
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.history import CommitFacts
from forkyard.stacks.patchfile import parse_trailers

GOOD = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")


def facts(message: str, author: Author = GOOD) -> CommitFacts:
    return CommitFacts("c" * 40, EMPTY_TREE, (), author, message)


def exported(store: Store, letter: Letter) -> tuple[Author, str]:
    """The author and message a patch of this letter has for whoever applies it."""
    base = store.commit(EMPTY_TREE, None, GOOD, b"base\n")
    tree = store.write_tree([Entry("100644", "blob", store.write_blob(b"x\n"), "x")])
    for whole in (True, False):
        done = export_series(store, base, [(letter, tree)], whole_files=whole)
        author, message, _ = store.mail_info(done.patches[0].data)
        assert parse_trailers(message.decode(), "").upstream_status
    return author, message.decode().strip("\n")


def test_an_ordinary_message_only_gains_its_trailer(store: Store) -> None:
    letter = make_letter(store, facts("part : do\n\nWhy.\n\nSigned-off-by: A <a@b.c>\n"))
    assert letter.notes == ()
    assert letter.message == "part : do\n\nWhy.\n\nSigned-off-by: A <a@b.c>\nUpstream-Status: Pending\n"
    assert letter.author == GOOD


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("diff --git a/x b/x", " diff --git a/x b/x"),
        ("Index: x", " Index: x"),
        ("---", " ---"),
        ("--- a/x", " --- a/x"),
        ("From 0123456789 Mon Sep 17 00:00:00 2001", " From 0123456789 Mon Sep 17 00:00:00 2001"),
        ("----- a rule -----", "----- a rule -----"),
        ("--option", "--option"),
        ("@@ -1 +1 @@", "@@ -1 +1 @@"),
    ],
)
def test_lines_that_would_cut_the_message_are_indented(store: Store, line: str, kept: str) -> None:
    letter = make_letter(store, facts(f"part : do\n\nbefore\n{line}\nafter\n"))
    assert bool(letter.notes) == (line != kept)
    _, message = exported(store, letter)
    assert f"before\n{kept}\nafter" in message


def test_a_diff_in_a_message_survives(store: Store) -> None:
    diff = "diff --git a/x b/x\nindex 1..2 100644\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    _, message = exported(store, make_letter(store, facts(f"part : do\n\n{diff}")))
    assert [line.strip() for line in diff.splitlines()] == [line.strip() for line in message.split("\n")[2:9]]


@pytest.mark.parametrize(
    "first", ["From: somebody <s@example.org>", "Subject: another", "Date: yesterday", "[PATCH] x"]
)
def test_a_body_that_begins_like_a_mail_keeps_author_and_subject(store: Store, first: str) -> None:
    author, message = exported(store, make_letter(store, facts(f"part : do\n\n{first}\n\nmore\n")))
    assert (author.name, author.email) == (GOOD.name, GOOD.email)
    assert message.startswith("part : do\n\n")
    assert first in message


def test_no_message_no_author_no_date(store: Store) -> None:
    letter = make_letter(store, facts("\n\n", Author("", "", "")), instead="Change of a.c")
    assert letter.message.startswith("Change of a.c\n")
    assert letter.author == Author("unknown", "unknown@users.noreply.invalid", "1970-01-01T00:00:00+00:00")
    assert len(letter.notes) == 4
    exported(store, letter)


@pytest.mark.parametrize(
    "date", ["2150-01-01T00:00:00+00:00", "2026-01-01T00:00:00+99:99", "1960-01-01T00:00:00+00:00", "x"]
)
def test_a_date_git_does_not_read_is_told(store: Store, date: str) -> None:
    letter = make_letter(store, facts("part : do\n", Author(GOOD.name, GOOD.email, date)))
    assert letter.notes == (f"its date {date!r} cannot be written in a mail",)
    exported(store, letter)


@pytest.mark.parametrize(
    "date", ["1970-01-02T00:00:00+00:00", "2099-12-30T00:00:00-12:00", "2026-02-28T23:59:59+14:00"]
)
def test_other_dates_are_kept(store: Store, date: str) -> None:
    letter = make_letter(store, facts("part : do\n", Author(GOOD.name, GOOD.email, date)))
    assert letter.notes == ()
    author, _ = exported(store, letter)
    again = email.utils.parsedate_to_datetime(author.date)
    assert again == datetime.datetime.fromisoformat(date)


def test_bytes_that_are_no_utf8_are_read_as_latin1(store: Store) -> None:
    raw = "J\udcf6 V\udcf6rk"
    letter = make_letter(store, facts("gr\udcfc\udcdfe\n", Author(raw, "jo@example.org", GOOD.date)))
    assert letter.author.name == "Jö Vörk"
    assert letter.message.startswith("grüße\n")
    author, message = exported(store, letter)
    assert (author.name, message.split("\n")[0]) == ("Jö Vörk", "grüße")


@pytest.mark.parametrize(
    "name", ["Li", "x@example.org", "N" * 70, "Doe, John", 'The "Big" One', "(paren)", "<angle>", "."]
)
def test_names_git_does_not_believe_are_told(store: Store, name: str) -> None:
    letter = make_letter(store, facts("part : do\n", Author(name, "who@example.org", GOOD.date)))
    author, _ = exported(store, letter)
    assert (author.name, author.email) == (letter.author.name, letter.author.email)
    assert letter.author.email == "who@example.org"
    assert (letter.author.name == name) == (letter.notes == ())


@pytest.mark.parametrize("email", ['q"q', "q(q", "q)q", "q\\q"])
def test_quotes_and_brackets_of_an_address_are_left_out(store: Store, email: str) -> None:
    """git 2.39 reads past the end of its buffer where one is not closed, and finds whatever lies there."""
    letter = make_letter(store, facts("part : do\n", Author("Ann Other", email, GOOD.date)))
    assert letter.author.email == "qq"
    assert letter.notes == ("its author's name or address was put in order",)


def test_foreign_trailers_do_not_lie(store: Store) -> None:
    text = "part : do\n\nUpstream-Status: no idea\n\nmiddle\n\nUpstream-Status: Pending\nUpstream-Status: Pending\nAdds-Files: ../x\n"
    letter = make_letter(store, facts(text))
    _, message = exported(store, letter)
    assert "../x" not in message
    assert parse_trailers(message, "").upstream_status == "Pending"
    kept = make_letter(store, facts("part : do\n\nUpstream-Status: Denied https://example.org/1\nAdds-Files: gone.c\n"))
    assert kept.message == "part : do\n\nUpstream-Status: Denied https://example.org/1\n"
    assert make_letter(store, facts("Adds-Files: x\n")).message == "Add files\n\nUpstream-Status: Pending\n"


def test_status_and_trailers(store: Store) -> None:
    letter = make_letter(store, facts("part : do\n"), status=f"Accepted {'a' * 40}", trailers=["Adopted-From: b"])
    assert letter.message == f"part : do\n\nUpstream-Status: Accepted {'a' * 40}\nAdopted-From: b\n"


WORDS = st.sampled_from(
    ["", " ", "part : do", "---", "--- a/x", "diff --git a b", "Index: x", "From: me", "Subject: x", "[PATCH 1/2] x",
     "Upstream-Status: Pending", "Upstream-Status: x", "Adds-Files: x", "Retire-When: x", "\ttab", "end  ", "a\rb", "ü\u2028x",
     "\x0b", "\x1f", "#", "From x@y Mon Sep 17 00:00:00 2001", ">From x", "-- ", "=?UTF-8?q?x?=", "Content-Type: x",
     "Signed-off-by: x <y@z>", "x" * 200, "a\x85b", "...", "\ufeff", "\x01"]
)  # fmt: skip
NAMES = st.sampled_from(
    ["", "X", "Ann Other", "ü", "a, b", 'q"q', "x@y.z", "(c)", "a\tb", "=?x?=", "\\", "Ö\u2028", "é" * 31]
)


@settings(
    max_examples=int(os.environ.get("FORKYARD_EXAMPLES", "20")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(WORDS, max_size=7), NAMES, NAMES)
def test_whatever_comes_in_comes_out_of_the_patch(store: Store, words: list[str], name: str, email: str) -> None:
    letter = make_letter(store, facts("\n".join(words), Author(name, email, GOOD.date)))
    author, message = exported(store, letter)
    assert (author.name, author.email) == (letter.author.name, letter.author.email)
    assert message == letter.message.strip("\n")
