from __future__ import annotations

import base64

from hypothesis import example, given
from hypothesis import strategies as st

from forkyard.guest.intake import Intake, Observation, cpu_list, mapped_bytes


def line(case: str, kind: str, data: bytes) -> str:
    return f"@forkyard {case} {kind} {base64.b64encode(data).decode()}\r\n"


def test_a_guest_from_start_to_end() -> None:
    intake = Intake()
    assert intake.line("qemu-system-x86_64: warning: something") is None
    assert intake.line(line("-", "kernel", b"6.1.0\n")) is None
    assert intake.line(line("one", "log", b"loaded\n")) is None
    assert not intake.observations["one"].finished
    assert intake.seen() == {}
    assert intake.line(line("one", "status", b"139 answers 12\n")) == "one"
    assert intake.line(line("-", "done", b"\n")) is None
    seen = intake.seen()["one"]
    assert (seen.status, seen.state, seen.seconds, seen.text("log")) == (139, "answers", 12, "loaded\n")
    assert (intake.kernel, intake.done) == ("6.1.0", True)
    assert intake.noise == ["qemu-system-x86_64: warning: something"]


def test_a_part_without_content() -> None:
    intake = Intake()
    intake.line("@forkyard one log ")
    assert intake.observations["one"].parts == {"log": b""}


def test_a_damaged_line_is_noise_and_not_a_part() -> None:
    intake = Intake()
    for text in (
        "@forkyard one log YQ",
        "@forkyard one log !!!!",
        "@forkyard one",
        "@forkyard a b c d",
        "@forkyardone",
    ):
        assert intake.line(text) is None
    assert intake.observations == {}
    assert len(intake.noise) == 5


def test_only_the_last_noise_is_kept() -> None:
    intake = Intake()
    for number in range(50):
        intake.line(f"noise {number}")
    assert intake.noise[-1] == "noise 49"
    assert len(intake.noise) == 20


@given(st.dictionaries(st.sampled_from(["log", "answer", "maps"]), st.binary(max_size=300)))
def test_parts_arrive_as_they_were_sent(parts: dict[str, bytes]) -> None:
    intake = Intake()
    for kind, data in parts.items():
        intake.line(line("case", kind, data))
    assert intake.observations.get("case", Observation()).parts == parts


@given(st.text(max_size=200))
@example("  \x80")
def test_no_line_is_a_fault(text: str) -> None:
    Intake().line(text)
    Intake().line("@forkyard " + text)


def test_lists_of_cpus() -> None:
    assert cpu_list("0-2,5\n") == (0, 1, 2, 5)
    assert cpu_list("\n") == ()


def test_nodes_as_the_kernel_says() -> None:
    seen = Observation({"nodes": b"0 cpus 0-1\n0 kib 1000\n2 cpus \n2 kib 500\n"})
    assert seen.nodes() == {0: (0, 1), 2: ()}


def test_bytes_on_nodes_count_every_mapping_in_its_page_size() -> None:
    maps = (
        "7f00 bind:0 anon=3 dirty=3 N0=3 kernelpagesize_kB=4\n"
        "7f01 default file=/model.gguf mapped=5 N0=2 N1=3 kernelpagesize_kB=4\n"
        "7f02 bind:1 anon=2 N1=2 kernelpagesize_kB=2048\n"
        "7f03 default\n"
    )
    assert mapped_bytes(maps) == {0: 5 * 4096, 1: 3 * 4096 + 2 * 2048 * 1024}


def test_an_answer_is_what_must_not_depend_on_numa() -> None:
    seen = Observation({"answer": b'{"content": "x", "tokens": [1], "timings": {"ms": 3}}'})
    assert seen.answer() == {"content": "x", "tokens": [1], "probabilities": None}
    for wrong in (b"", b"{", b"{}", b"[]", b"3"):
        assert Observation({"answer": wrong}).answer() is None
