from __future__ import annotations

from typing import Any

ADDS = b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nAdds-Files: our.c -> src/our.c\n"


def test_lines_in_upstreams_files_and_in_ours(lab: Any) -> None:
    ours = {"src/our.c": b"int x;\nint y;\n"}
    on = {**ours, "notes.txt": b"one\ntwo\n"}
    first = lab.patch({"notes.txt": on["notes.txt"]}, message=ADDS)
    second = lab.patch({"src/our.c": b"int x;\nint y;\nint z;\n", "src/a.h": b"int two();\n"}, on=on)
    third = lab.patch(
        {"new.c": b"int n;\n" * 5}, on={**on, "src/our.c": b"int x;\nint y;\nint z;\n", "src/a.h": b"int two();\n"}
    )
    lab.stack(first, second, third, files={"our.c": ours["src/our.c"]})
    (size,) = lab.lint().sizes
    assert (size.patches, size.upstream_files, size.added, size.removed) == (3, 2, 2, 2)
    assert (size.whole_files, size.whole_lines) == (2, 8)
    assert size.ratio == 0.8
    assert size.as_json()["ratio"] == 0.8


def test_a_stack_of_hooks_alone(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"memos"))
    (size,) = lab.lint().sizes
    assert (size.upstream_files, size.added, size.removed, size.whole_files, size.ratio) == (1, 1, 1, 0, 0.0)


def test_a_stack_of_nothing(lab: Any) -> None:
    lab.stack()
    (size,) = lab.lint().sizes
    assert (size.patches, size.ratio) == (0, None)
