from __future__ import annotations

import json

import pytest

from forkyard.guest.enginereport import Buffer, Copy, EngineReport, NodeUse, fullest, read_report

LINE = json.dumps(
    {
        "mode": "mirror",
        "fake": False,
        "nodes": [{"id": 0, "cpus": 2, "local": 123, "remote": 0}],
        "ranges": [
            {
                "kind": "weights",
                "bytes": 8192,
                "mirrored": True,
                "node": [{"id": 0, "alias": True, "pages": 3, "here": 3}],
                "differs": 0,
            }
        ],
    }
)


def test_a_line_is_read() -> None:
    assert read_report(LINE) == EngineReport(
        "mirror", (NodeUse(0, 2, 123, 0),), (Buffer("weights", 8192, True, (Copy(0, True, 3, 3),), 0),)
    )


def test_slices_are_read() -> None:
    line = LINE.replace('"differs"', '"slices_pages": 7, "slices_here": 6, "differs"')
    (buffer,) = read_report(line).buffers
    assert (buffer.slices_pages, buffer.slices_here) == (7, 6)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        LINE[:-3],
        LINE.replace('"mode": "mirror", ', ""),
        LINE.replace("123", "-1"),
        LINE.replace("123", "true"),
        LINE.replace("123", "1.5"),
        LINE.replace("weights", "other"),
        LINE.replace('"mirrored": true', '"mirrored": 1'),
        LINE.replace('"mirror"', "3"),
    ],
)
def test_what_is_no_such_line_is_said_to_be_none(line: str) -> None:
    with pytest.raises(ValueError, match="report cannot be read"):
        read_report(line)


def test_the_last_of_the_fullest_is_taken() -> None:
    full = read_report(LINE)
    later = EngineReport("mirror", (NodeUse(0, 2, 200, 0),), full.buffers)
    empty = EngineReport("mirror", (), ())
    assert fullest([full, later, empty]) is later
    assert fullest([]) is None
