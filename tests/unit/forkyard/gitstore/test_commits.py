"""Commits written without git have the ids that git gives them."""

from __future__ import annotations

import pytest

from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore import store as store_module
from forkyard.gitstore.commits import write_commit


@pytest.mark.parametrize(
    ("name", "email", "date", "message", "ours"),
    [
        ("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00", b"x\n\nWhy.\n", True),
        ("J\u00f6 V\u00f6rk", "j@x", "2026-01-02T03:04:05Z", "\u00fc".encode(), True),
        ("A B", "", "2026-01-02T03:04:05-03:30", b"x", False),
        ("Forkyard", "f@x", "2000-01-01T00:00:00+00:00", b"", True),
        ('A "Q" B', "a b@x", "2038-02-03T03:04:05+14:00", b"\r\n\tx\n\n\n", True),
        # What git words in a way of its own.
        (".A.", "a@x", "2026-01-02T03:04:05+00:00", b"x", False),
        (" A", "a@x", "2026-01-02T03:04:05+00:00", b"x", False),
        ("A<B", "a@x", "2026-01-02T03:04:05+00:00", b"x", False),
        ("caf\udce9", "a@x", "2026-01-02T03:04:05+00:00", b"x", False),
        ("A", "a@x", "2026-01-02T03:04:05+00:00", b"\xff", False),
        ("A", "a@x", "2026-01-02T03:04:05+00:00", "\ufdd0".encode(), False),
        ("A", "a@x", "2026-01-02T03:04:05-00:00", b"x", False),
        ("A", "a@x", "2026-02-30T03:04:05+00:00", b"x", False),
        ("A", "a@x", "1970-01-01T00:00:07+00:00", b"x", False),
        ("A", "a@x", "Fri, 2 Jan 2026 03:04:05 +0200", b"x", False),
        ("A", "a@x", "2026-01-02T03:04:05+00:00", b"a\0b", False),
    ],
)
def test_the_same_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, email: str, date: str, message: bytes, ours: bool
) -> None:
    author, tree = Author(name, email, date), store.write_tree([])
    written = write_commit(store.path / "objects", tree, None, author, message)
    assert (written is not None) == ours
    monkeypatch.setattr(store_module, "write_commit", lambda *_: None)
    try:
        made = store.commit(tree, None, author, message)
    except GitFailure:
        assert not ours
        return
    if ours:
        assert written == made
        child = write_commit(store.path / "objects", tree, made, author, message)
        assert child == store.commit(tree, made, author, message)
