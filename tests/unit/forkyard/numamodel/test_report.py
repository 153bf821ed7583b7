from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from forkyard.commands import numa_model
from forkyard.numamodel import report
from forkyard.numamodel.published import ROWS
from forkyard.numamodel.report import Compared, Reproduction, as_text, count, reproduce


@pytest.fixture(scope="module")
def found() -> Reproduction:
    return reproduce()


def test_at_least_eight_of_twelve_rows_are_within_fifteen_percent(found: Reproduction) -> None:
    assert len(found.rows) == 12
    assert count(found.rows) >= 8


def test_at_least_eight_are_when_a_model_is_predicted_from_the_others_alone(found: Reproduction) -> None:
    assert count(found.unseen) >= 8


def test_a_row_counts_only_with_both_figures(found: Reproduction) -> None:
    row = ROWS[0]
    assert Compared(row, row.isolate * 1.14, row.mirror * 0.86).reproduced
    assert not Compared(row, row.isolate * 1.16, row.mirror).reproduced
    assert not Compared(row, row.isolate, row.mirror * 0.84).reproduced


def test_an_unseen_model_does_not_see_itself() -> None:
    wrong = [dataclasses.replace(row, isolate=row.isolate * 2) if "27B" in row.model else row for row in ROWS]
    here = [one for one in reproduce().unseen if "27B" in one.row.model]
    there = [one for one in reproduce(wrong).unseen if "27B" in one.row.model]
    assert [(one.isolate, one.mirror) for one in here] == [(one.isolate, one.mirror) for one in there]


def test_other_figures_are_not_reproduced() -> None:
    # The check can fail: twice the mirrored speed is explained by no costs.
    wrong = [dataclasses.replace(row, mirror=row.mirror * 2) for row in ROWS]
    assert not reproduce(wrong).ok


def test_the_published_gains_are_those_of_the_table() -> None:
    assert [round(row.gain, 2) for row in ROWS] == [
        1.31,
        1.41,
        1.47,
        1.58,
        1.28,
        1.45,
        0.99,
        1.30,
        1.41,
        1.64,
        1.26,
        1.45,
    ]


def test_the_text_says_what_was_fitted_on_what(found: Reproduction) -> None:
    text = as_text(found)
    assert "fitted on isolate, 12 figures" in text
    assert "fitted on mirror tg128, 6 figures" in text
    assert "fitted on nothing: mirror pp512" in text
    assert text.count("gemma-4-E2B") == 4


def test_the_command_answers_for_machines() -> None:
    done = CliRunner().invoke(numa_model.numa_model, ["--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == 0
    assert document["ok"]
    assert len(document["rows"]) == len(document["unseen"]) == 12
    assert document["reproduced"] == sum(row["reproduced"] for row in document["rows"])


def test_too_few_rows_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "WANTED", 13)
    assert CliRunner().invoke(numa_model.numa_model, ["--quiet"]).exit_code == 12
