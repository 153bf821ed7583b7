from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.measuring.bundle import MANIFEST, read_bundle, write_bundle
from forkyard_llm.measuring.exporting import as_document, as_jsonl, as_llama_bench, as_markdown
from forkyard_llm.measuring.records import Recorded
from hypothesis import given, settings
from hypothesis import strategies as st


def test_a_bundle_comes_back(tmp_path: Path, recorded: Recorded) -> None:
    digest = write_bundle([recorded], tmp_path / "a.zip")
    assert write_bundle([recorded], tmp_path / "b.zip") == digest
    (found,), same = read_bundle(tmp_path / "a.zip")
    assert same == digest
    assert found.samples == recorded.samples
    assert found.info == recorded.info
    assert b"/some/folder" not in zipfile.ZipFile(tmp_path / "a.zip").read(f"runs/{recorded.info.id}.json")


def forged(path: Path, run: Any, name: str = "runs/x.json") -> Path:
    data = json.dumps(run).encode()
    manifest = {"schema": 1, "members": {name: hashlib.sha256(data).hexdigest()}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, json.dumps(manifest))
        archive.writestr(name, data)
    return path


def plain(tmp_path: Path, recorded: Recorded) -> dict[str, Any]:
    write_bundle([recorded], tmp_path / "plain.zip")
    with zipfile.ZipFile(tmp_path / "plain.zip") as archive:
        found: dict[str, Any] = json.loads(archive.read(f"runs/{recorded.info.id}.json"))
    return found


CHANGES: list[tuple[str, Any]] = [
    ("info.id", "../../etc"),
    ("info.created", float("inf")),
    ("info.machine", []),
    ("arms", {}),
    ("arms.0.name", 5),
    ("samples.0.speed", -1.0),
    ("samples.0.speed", float("nan")),
    ("samples.0.arm", "nobody"),
    ("samples.0.base", "x"),
    ("failed", {"nobody": "x"}),
    ("arms.1.name", "base"),
]


@pytest.mark.parametrize(("place", "value"), CHANGES)
def test_what_makes_no_sense_is_refused(tmp_path: Path, recorded: Recorded, place: str, value: Any) -> None:
    run = plain(tmp_path, recorded)
    *path, last = place.split(".")
    inner: Any = run
    for step in path:
        inner = inner[int(step) if step.isdigit() else step]
    inner[last] = value
    with pytest.raises(UsageError, match="no bundle of measurements"):
        read_bundle(forged(tmp_path / "x.zip", run))


def test_a_changed_member(tmp_path: Path, recorded: Recorded) -> None:
    path = forged(tmp_path / "x.zip", plain(tmp_path, recorded))
    with zipfile.ZipFile(path) as archive:
        manifest = archive.read(MANIFEST)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, manifest)
        archive.writestr("runs/x.json", b"{}")
    with pytest.raises(UsageError, match="checksum"):
        read_bundle(path)


def test_a_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, b" " * (257 << 20))
    with pytest.raises(UsageError, match="larger than"):
        read_bundle(tmp_path / "x.zip")


@settings(max_examples=200, deadline=None)
@given(draws=st.data())
def test_damage_is_an_error_and_nothing_else(draws: st.DataObject) -> None:
    raw = bytearray(whole())
    for _ in range(draws.draw(st.integers(1, 8))):
        raw[draws.draw(st.integers(0, len(raw) - 1))] = draws.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.zip"
        path.write_bytes(bytes(raw[: draws.draw(st.integers(0, len(raw)))]))
        try:
            read_bundle(path)
        except UsageError:
            pass


def whole() -> bytes:
    data = json.dumps({"info": {}, "arms": [], "failed": {}, "samples": []}).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        sums = {"runs/x.json": hashlib.sha256(data).hexdigest()}
        archive.writestr(MANIFEST, json.dumps({"schema": 1, "members": sums}))
        archive.writestr("runs/x.json", data)
    return stream.getvalue()


def test_tables_and_lines(recorded: Recorded) -> None:
    text = as_markdown(recorded)
    assert "| fast |" in text
    assert "305.00 (300.00 to 310.00) 1.52x" in text
    assert "(tie)" in text
    assert "bad failed: killed by signal 9" in text
    lines = [json.loads(line) for line in as_jsonl(recorded).splitlines()]
    assert len(lines) == len(recorded.samples)
    assert as_document(recorded)["arms"][1]["results"]["tg32"]["gain"]["verdict"] == "faster"
    rows = [json.loads(line) for line in as_llama_bench(recorded).splitlines()]
    assert {(row["n_prompt"], row["n_gen"]) for row in rows} == {(64, 0), (0, 32)}
    assert rows[0]["n_threads"] == 2
    assert rows[0]["samples_ts"] == [200.0] * 6
