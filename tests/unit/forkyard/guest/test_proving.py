from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from forkyard.console import Silent
from forkyard.errors import SourceError, UsageError
from forkyard.guest import proving
from forkyard.guest.answer import as_json, as_text, table, write_reports
from forkyard.guest.cases import CASES
from forkyard.guest.image import Parts
from forkyard.guest.intake import Intake, Observation
from forkyard.guest.machine import Boot
from forkyard.guest.proving import Proof, chosen_cases, prove, unpack_payload

REFUSAL = b"numa-mirror: node 1 lacks 1234 bytes for a copy\n"


def wheel(path: Path, names: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in names.items():
            archive.writestr(name, text)
    return path


def test_cases_by_their_own_name_and_their_topologys() -> None:
    assert chosen_cases([]) == list(CASES)
    assert [case.name for case in chosen_cases(["small-node"])] == ["too-small", "too-small-best-effort"]
    assert [case.name for case in chosen_cases(["split", "mirror"])] == ["mirror", "split"]
    with pytest.raises(UsageError, match="no case or topology 'nonsense'"):
        chosen_cases(["mirror", "nonsense"])


def test_a_payload_is_unpacked(tmp_path: Path) -> None:
    names = {"pkg/bin/llama-server": "", "pkg/lib/libx.so": "", "pkg/manifest.json": '{"cpu_features": ["avx2"]}'}
    found = unpack_payload(wheel(tmp_path / "w.whl", names), tmp_path / "out")
    assert (found / "bin" / "llama-server").is_file()


def test_what_is_no_payload_for_a_guest(tmp_path: Path) -> None:
    (tmp_path / "no.whl").write_text("no zip")
    with pytest.raises(SourceError, match="cannot be read"):
        unpack_payload(tmp_path / "no.whl", tmp_path / "a")
    with pytest.raises(SourceError, match="no payload wheel"):
        unpack_payload(wheel(tmp_path / "pure.whl", {"pkg/__init__.py": ""}), tmp_path / "b")
    names = {"pkg/bin/llama-server": "", "pkg/manifest.json": "{"}
    with pytest.raises(SourceError, match="manifest cannot be read"):
        unpack_payload(wheel(tmp_path / "bad.whl", names), tmp_path / "c")
    names["pkg/manifest.json"] = json.dumps({"cpu_features": ["avx2", "avx512f"]})
    with pytest.raises(UsageError, match=r"cannot run in a guest[\s\S]*avx512f[\s\S]*avx2"):
        unpack_payload(wheel(tmp_path / "new.whl", names), tmp_path / "d")


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proof:
    """The small node, with a guest that was given no time for its second case."""
    monkeypatch.setattr(proving, "contents", lambda parts, script: [])
    (tmp_path / "system/boot").mkdir(parents=True)
    (tmp_path / "system/boot/vmlinuz-6.1").touch()
    images: list[bool] = []

    def boot(topology, kernel, image, folder, timeout_s, on_run) -> Boot:
        images.append(image.is_file())
        nodes = b"0 cpus 0\n1 cpus 1\n"
        parts = {"nodes": nodes, "log": REFUSAL, "status": b"1 refused 3\n"}
        intake = Intake("6.1.0-9", False, {"too-small": Observation(parts)})
        on_run("too-small")
        return Boot(intake, "Kernel panic\n", "the guest ended before its script did")

    monkeypatch.setattr(proving, "boot", boot)
    parts = Parts(tmp_path / "system", tmp_path, ("llama-server",), tmp_path / "m")
    guests = prove("llama.cpp", chosen_cases(["small-node"]), parts, tmp_path, Silent())
    assert images == [True]
    assert not (tmp_path / "image").exists()
    return Proof("llama.cpp", "x.whl", "00", tuple(guests))


def test_a_guest_is_judged_case_by_case(proof: Proof) -> None:
    (guest,) = proof.guests
    assert [one.verdict.findings for one in guest.cases] == [(), ("it was not run to its end",)]
    assert not proof.ok


def test_the_answer(proof: Proof, tmp_path: Path) -> None:
    document = json.loads(json.dumps(as_json([proof], {"qemu": "7.2"})))
    assert (document["schema"], document["ok"], document["qemu"]) == (1, False, "7.2")
    first, second = document["engines"][0]["guests"][0]["cases"]
    assert (first["case"], first["outcome"], first["findings"], first["status"]) == ("too-small", "refused", [], 1)
    assert first["command"].endswith("--numa mirror")
    assert (second["outcome"], second["status"]) == (None, None)
    text = as_text([proof])
    assert "refused  too-small" in text
    assert "BAD      too-small-best-effort" in text
    assert "Kernel panic" in text
    assert text.endswith("1 of 2 cases hold")
    write_reports(document, [proof], tmp_path / "report")
    assert json.loads((tmp_path / "report/report.json").read_text()) == document
    assert (tmp_path / "report/llama.cpp/small-node/too-small/log").read_bytes() == REFUSAL


def test_the_table_has_a_line_for_each_case() -> None:
    assert len(table(CASES).splitlines()) == len(CASES)
