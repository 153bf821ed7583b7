from __future__ import annotations

import re

import pytest

from forkyard import errors
from forkyard.cli import _EXIT_CODES
from forkyard.errors import EXIT_CONFLICTS, EXIT_FINDINGS, EXIT_INTERRUPTED, ForkyardError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ForkyardError) and kind is not ForkyardError
]


def test_each_kind_has_its_own_exit_code_and_name() -> None:
    assert len(KINDS) >= 10
    assert len({kind.exit_code for kind in KINDS}) == len(KINDS)
    assert len({kind.kind for kind in KINDS}) == len(KINDS)
    assert all(kind.exit_code not in (0, ForkyardError.exit_code, EXIT_INTERRUPTED) for kind in KINDS)
    assert all(kind.exit_code < 126 for kind in KINDS), "126 and above mean something else to a shell"


def test_the_help_lists_exactly_these_codes() -> None:
    listed = [int(number) for number in re.findall(r"(?:^|\s{2,})(\d+)  \S", _EXIT_CODES, re.MULTILINE)]
    assert sorted(listed) == sorted(
        {0, 1, EXIT_FINDINGS, EXIT_CONFLICTS, EXIT_INTERRUPTED, *(kind.exit_code for kind in KINDS)}
    )


def test_every_error_class_of_the_package_ends_with_a_listed_code() -> None:
    import forkyard.building
    import forkyard.gates

    assert forkyard.building
    assert forkyard.gates
    codes = {kind.exit_code for kind in KINDS}
    pending = list(ForkyardError.__subclasses__())
    while pending:
        kind = pending.pop()
        assert kind.exit_code in codes, kind
        pending += kind.__subclasses__()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_what_where_why_and_what_next(kind: type[ForkyardError]) -> None:
    error = kind("it broke", where="here:3", why="because", next_step="mend it")
    assert str(error) == "it broke\n  where: here:3\n  why:   because\n  next:  mend it"
    assert error.as_json() == {
        "error": kind.kind,
        "exit_code": kind.exit_code,
        "what": "it broke",
        "where": "here:3",
        "why": "because",
        "next": "mend it",
    }
    assert kind("it broke").describe() == "it broke"
