from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forkyard.linting import formatting, remembering
from forkyard.linting.remembering import Memory


def test_an_answer_is_kept(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "deep" / "x.json")
    assert memory.get("a") is None
    memory.put("a", [(3, ["int x;", "é"])])
    memory.save()
    assert Memory(tmp_path / "deep" / "x.json").get("a") == [(3, ["int x;", "é"])]


def test_the_newest_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "MOST", 2)
    for key in "abc":
        memory = Memory(tmp_path / "x.json")
        memory.get("a")
        memory.put(key, [])
        memory.save()
    memory = Memory(tmp_path / "x.json")
    assert [memory.get(key) for key in "abc"] == [[], None, []]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b'{"a": 1}', b'{"a": [[1]]}', b'{"a": [["x", []]]}', b"[" * 99999]
)
def test_a_damaged_file_is_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    memory = Memory(tmp_path / "x.json")
    assert memory.get("a") is None
    memory.put("a", [])
    memory.save()


def test_a_file_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file" / "x.json")
    memory.put("a", [])
    memory.save()


def test_clang_format_is_asked_once(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.stack(lab.edit("src/a.cpp", b"return 1", b"return  1+1"))
    asked: list[str] = []
    real = formatting._ask

    def counted(style: Any, path: str, *rest: Any) -> Any:
        asked.append(path)
        return real(style, path, *rest)

    monkeypatch.setattr(formatting, "_ask", counted)
    first, second = lab.lint(), lab.lint()
    assert first.findings == second.findings != ()
    assert asked == ["src/a.cpp"]
    lab.files[".clang-format"] += b"# another\n"
    lab.pin()
    lab.lint()
    assert asked == ["src/a.cpp"] * 2
