from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.measuring import split
from forkyard_llm.measuring.child import RunFailed
from forkyard_llm.measuring.exporting import as_markdown
from forkyard_llm.measuring.loopback import lent_devices
from forkyard_llm.measuring.machine import MemoryNode
from forkyard_llm.measuring.reporting import Silent
from forkyard_llm.measuring.split import Wishes, bench_split, check
from forkyard_llm.measuring.split_table import as_text
from forkyard_llm.measuring.store import Store
from forkyard_llm.measuring.timing import Timing

from forkyard.benching.engine import unpacked

Make = Callable[..., Any]


@pytest.fixture
def wishes(model: Path) -> Wishes:
    return Wishes(
        model=model,
        modes=None,
        cache_types=("f16", "q8_0"),
        timing=Timing(prompt=512, generate=128, depths=(0, 8192)),
        rounds=1,
        minutes=None,
    )


@pytest.fixture
def run(tmp_path: Path, one_node: tuple[MemoryNode, ...]) -> Iterator[Callable[..., Any]]:
    """Measure payloads."""
    with contextlib.ExitStack() as stack:

        def measure(wishes: Wishes, *payloads: Any, reporter: Any = None, keep: Store | None = None) -> Any:
            engines = [stack.enter_context(unpacked(one.wheel, tmp_path / "scratch")) for one in payloads]
            return bench_split(engines, wishes, one_node, tmp_path / "run.log", reporter or Silent(), keep)

        yield measure


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def measured_calls(payload: Any) -> list[dict[str, Any]]:
    return [call for call in payload.calls if not call["trial"]]


def test_the_table_of_two_gpus_has_both_engines(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    ours = make_split_payload({"layer f16": [10.0], "tensor q8_0": [14.0], "tensor f16": [15.0]})
    theirs = make_split_payload({"graph f16": [13.0]}, engine="ik_llama.cpp", splits="none|layer|graph")
    found = run(dataclasses.replace(wishes, rounds=6, modes=("layer", "tensor", "graph")), ours, theirs)
    text = as_text(found)
    rows = table(text)
    assert rows[0] == ["engine", "split", "KV", "pp512 t/s", "tg128 t/s", "pp512 @ d8192 t/s", "tg128 @ d8192 t/s"]
    assert [row[:3] for row in rows[2:]] == [
        [engine, mode, word]
        for engine, modes in (("llama.cpp", ("layer", "tensor")), ("ik_llama.cpp", ("layer", "graph")))
        for mode in modes
        for word in ("f16", "q8_0")
    ]
    by_name = {tuple(row[:3]): row[3:] for row in rows[2:]}
    assert by_name["llama.cpp", "layer", "f16"][0] == "100.00 (100.00 to 100.00) 1"
    assert by_name["llama.cpp", "layer", "q8_0"][1] == "10.00 (10.00 to 10.00) 1.00x (tie)"
    assert by_name["llama.cpp", "tensor", "q8_0"][3] == "14.00 (14.00 to 14.00) 1.40x"
    assert by_name["ik_llama.cpp", "graph", "f16"] == [
        "130.00 (130.00 to 130.00) 1.30x",
        "13.00 (13.00 to 13.00) 1.30x",
        "not measurable",
        "13.00 (13.00 to 13.00) 1.30x",
    ]
    assert "pp512 @ d8192 could not be measured: the llama-bench of ik_llama.cpp times no prompt after another" in text
    assert "on 2 devices: CUDA0 (GPU (of ours)), CUDA1 (GPU (of ours))" in text
    assert "Factors are relative to llama.cpp, layer, f16" in text
    assert "no speeds of GPUs" not in text


def test_what_llama_bench_is_asked(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    ours = make_split_payload()
    theirs = make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph")
    asked = dataclasses.replace(wishes, extra=("-ts", "3/1"), modes=("layer", "tensor"))
    found = run(asked, ours, theirs)
    words = {(call["engine"], call["arm"]): call["words"][2:] for call in measured_calls(ours)}
    assert words["llama.cpp", "tensor q8_0"] == [
        *(
            "-dev",
            "CUDA0/CUDA1",
            "-ngl",
            "999",
            "-fa",
            "on",
            "-sm",
            "tensor",
            "-ctk",
            "q8_0",
            "-ctv",
            "q8_0",
            "-p",
            "512",
            "-n",
            "128",
        ),
        *("-d", "0,8192", "-r", "1", "-ts", "3/1", "-o", "json"),
    ]
    assert words["ik_llama.cpp", "layer f16"] == [
        *("-ngl", "999", "-fa", "1", "-sm", "layer", "-ctk", "f16", "-ctv", "f16", "-p", "512", "-n", "128"),
        *("-gp", "8192,128", "-r", "1", "-ts", "3/1", "-o", "json"),
    ]
    assert found.measured.commands["llama.cpp, tensor, q8_0"].startswith(
        "llama-bench -m model.gguf -dev CUDA0/CUDA1 -ngl "
    )


def test_every_round_begins_with_another_arm(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    payload = make_split_payload()
    run(dataclasses.replace(wishes, rounds=3, modes=("layer", "tensor")), payload)
    order = [call["arm"] for call in measured_calls(payload)]
    names = ["layer f16", "layer q8_0", "tensor f16", "tensor q8_0"]
    assert [order[start : start + 4] for start in (0, 4, 8)] == [names[n:] + names[:n] for n in range(3)]


def test_what_the_engine_refuses_is_a_row_with_its_reason(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    why = "device CUDA0 does not support split buffers"
    payload = make_split_payload(refused={"row f16": why, "row q8_0": why})
    found = run(wishes, payload)
    text = as_text(found)
    assert [row[3] for row in table(text) if row[1] == "row"] == ["refused", "refused"]
    assert f"llama.cpp, row, q8_0 was refused: exit status 1: llama_model_load: error loading model: {why}" in text
    refused = [row for row in found.as_json()["rows"] if row["refused"]]
    assert [(row["split_mode"], row["tests"]) for row in refused] == [("row", {}), ("row", {})]
    assert not [call for call in measured_calls(payload) if call["arm"].startswith("row")]


def test_a_run_is_kept_with_its_table(make_split_payload: Make, run: Any, wishes: Wishes, tmp_path: Path) -> None:
    payload = make_split_payload(refused={"row f16": "no", "row q8_0": "no"}, later={"tensor q8_0": 1})
    with contextlib.closing(Store(tmp_path / "store.sqlite")) as store:
        found = run(dataclasses.replace(wishes, rounds=2), payload, keep=store)
        ((info, finished, _),) = store.runs()
        recorded = store.read(info.id)
    assert (info.scenario, finished) == ("split", True)
    assert as_markdown(recorded) == as_text(found)
    assert {"llama.cpp, row, f16", "llama.cpp, row, q8_0", "llama.cpp, tensor, q8_0"} == set(recorded.failed)
    assert [len(devices) for devices in info.facts["devices"].values()] == [2]
    assert info.remarks == found.remarks
    assert len(recorded.speeds("llama.cpp, layer, f16", "tg128 @ d8192")) == 2
    (arm,) = [one for one in recorded.arms if one.name == "llama.cpp, tensor, f16"]
    assert (arm.values["split mode"], arm.values["cache"], arm.values["build_key"]) == ("tensor", "f16", "a" * 64)


def test_a_mode_that_the_engine_changes_is_not_measured_as_itself(
    make_split_payload: Make, run: Any, wishes: Wishes
) -> None:
    payload = make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph", changed=("graph",))
    text = as_text(run(wishes, payload))
    assert "ik_llama.cpp, graph, f16 was refused: the engine changes it to layer for this model" in text


def test_an_arm_that_fails_later_is_left_out_and_the_others_go_on(
    make_split_payload: Make, run: Any, wishes: Wishes
) -> None:
    payload = make_split_payload(later={"tensor q8_0": 1})
    found = run(dataclasses.replace(wishes, rounds=3, modes=("layer", "tensor")), payload)
    lines = {line.row.name: line for line in found.lines}
    assert "exit status 1" in (lines["llama.cpp, tensor, q8_0"].refused or "")
    assert lines["llama.cpp, tensor, q8_0"].tests == {}
    assert str(wishes.model) not in json.dumps(found.as_json())
    assert len(lines["llama.cpp, tensor, f16"].tests["tg128"].samples) == 3
    assert found.measured.rounds == 3


def test_without_the_baseline_there_are_no_factors(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    found = run(wishes, make_split_payload(later={"layer f16": 0}, splits="none|layer|tensor"))
    assert found.baseline is None
    assert all(not line.gains for line in found.lines)
    assert "Factors" not in as_text(found)


def test_when_every_arm_fails_it_is_an_error(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    later = {f"{mode} {word}": 0 for mode in ("layer", "tensor") for word in ("f16", "q8_0")}
    with pytest.raises(RunFailed, match="llama-bench failed with llama.cpp -sm"):
        run(wishes, make_split_payload(later=later, splits="none|layer|tensor"))


def test_one_way_that_works_is_nothing_to_compare(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    payload = make_split_payload(refused={"tensor f16": "no heads"}, splits="none|layer|tensor")
    with pytest.raises(UsageError, match="nothing to compare") as caught:
        run(dataclasses.replace(wishes, cache_types=("f16",)), payload)
    assert "no heads" in (caught.value.why or "")


@pytest.mark.parametrize(
    ("engine", "devices", "what", "why"),
    [
        ("llama.cpp", (("CUDA0", "GPU"),), "has one device", "it uses CUDA0 (GPU)"),
        ("llama.cpp", (), "has no device", "it computes on the CPU"),
        ("ik_llama.cpp", (("CUDA0", "GPU"),), "has one device", "it uses CUDA0 (GPU)"),
    ],
)
def test_splitting_needs_two_devices(
    make_split_payload: Make, run: Any, wishes: Wishes, engine: str, devices: Any, what: str, why: str
) -> None:
    payload = make_split_payload(engine=engine, devices=devices)
    with pytest.raises(UsageError, match=what) as caught:
        run(wishes, payload)
    assert caught.value.why == why
    assert "--rpc-devices 3" in (caught.value.next_step or "")
    assert not measured_calls(payload)


@pytest.mark.parametrize(
    ("engine", "splits", "mode"),
    [
        ("llama.cpp", "none|layer|row|tensor", "graph"),
        ("ik_llama.cpp", "none|layer|graph", "tensor"),
        ("ik_llama.cpp", "none|layer|graph", "row"),
    ],
)
def test_a_mode_that_no_engine_has(
    make_split_payload: Make, run: Any, wishes: Wishes, engine: str, splits: str, mode: str
) -> None:
    payload = make_split_payload(engine=engine, splits=splits)
    with pytest.raises(UsageError, match=f"no engine that is measured has {mode}") as caught:
        run(dataclasses.replace(wishes, modes=("layer", mode)), payload)
    assert f"{engine} has no --split-mode {mode}" in (caught.value.why or "")
    assert payload.calls == []


def test_a_kv_type_that_no_engine_knows(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    with pytest.raises(UsageError, match="no engine that is measured has q7_7"):
        run(dataclasses.replace(wishes, cache_types=("f16", "q7_7")), make_split_payload())


def test_a_kv_type_that_one_engine_knows(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    ours = make_split_payload(types=("f16", "tbq4"), splits="none|layer|tensor")
    theirs = make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph")
    found = run(dataclasses.replace(wishes, cache_types=("f16", "tbq4")), ours, theirs)
    assert [line.row.name for line in found.lines if line.row.cache_type == "tbq4"] == [
        "llama.cpp, layer, tbq4",
        "llama.cpp, tensor, tbq4",
    ]
    assert "ik_llama.cpp has no KV type tbq4" in as_text(found)


def test_nothing_that_the_engine_can_measure(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    payload = make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph")
    with pytest.raises(UsageError, match="no engine can measure") as caught:
        run(dataclasses.replace(wishes, timing=Timing(prompt=512, generate=0, depths=(8192,))), payload)
    assert "times no prompt after another" in (caught.value.why or "")


def test_two_builds_of_one_recipe_have_two_names(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    payloads = [make_split_payload(build_key=letter * 64, splits="none|layer|tensor") for letter in "bc"]
    found = run(wishes, *payloads)
    assert [one["label"] for one in found.as_json()["engines"]] == ["llama.cpp bbbbbbbb", "llama.cpp cccccccc"]
    assert found.baseline == "llama.cpp bbbbbbbb, layer, f16"


def test_devices_by_name(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    payload = make_split_payload()
    named = dataclasses.replace(wishes, devices=("CUDA1", "CUDA0"))
    run(named, payload)
    assert all(call["words"][2:4] == ["-dev", "CUDA1/CUDA0"] for call in payload.calls)
    theirs = make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph")
    with pytest.raises(UsageError, match="takes no names of devices") as caught:
        run(named, theirs)
    assert "CUDA_VISIBLE_DEVICES" in (caught.value.next_step or "")


def test_variables_that_choose_devices_reach_the_engine_and_the_answer(
    make_split_payload: Make, run: Any, wishes: Wishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setenv("GGML_CUDA_DEVICES", "2")
    monkeypatch.setenv("CUDA_HOME", "/somewhere")
    payload = make_split_payload()
    found = run(wishes, payload)
    given = {"CUDA_VISIBLE_DEVICES": "1,0", "GGML_CUDA_DEVICES": "2"}
    assert all(given.items() <= call["environment"].items() for call in payload.calls)
    assert found.as_json()["machine"]["environment"] == given
    assert "GGML_CUDA_DEVICES is set: several devices may be one GPU" in as_text(found)


def test_a_device_in_software_is_named(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    devices = tuple((f"Vulkan{number}", "llvmpipe (LLVM 15.0.6, 256 bits)") for number in range(2))
    text = as_text(run(wishes, make_split_payload(devices=devices)))
    assert "Vulkan0, Vulkan1 is a device in software" in text


def ended(pid: int) -> bool:
    for _ in range(3000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_pretended_devices_live_as_long_as_the_measurement(
    make_split_payload: Make, run: Any, wishes: Wishes, tmp_path: Path
) -> None:
    devices = tuple((f"RPC{number}", f"127.0.0.1:{number}") for number in range(3))
    payload = make_split_payload(server=True, devices=devices)
    found = run(dataclasses.replace(wishes, rpc_devices=3), payload)
    servers = [line.split() for line in (tmp_path / "servers.txt").read_text().splitlines()]
    assert len(servers) == 3
    ports = [words[words.index("-p") + 1] for words in servers]
    assert all(words[1:3] == ["-H", "127.0.0.1"] and words[5:] == ["-d", "CPU", "-t", "1"] for words in servers)
    expected = ["--rpc", ",".join(f"127.0.0.1:{port}" for port in ports), "-dev", "RPC0/RPC1/RPC2"]
    assert all(call["words"][2:6] == expected for call in payload.calls)
    assert all(ended(int(words[0])) for words in servers)
    assert "prove that the harness works, and are no speeds of GPUs" in as_text(found)
    assert found.as_json()["rpc_loopback"] is True


def test_pretended_devices_end_with_an_interruption(
    make_split_payload: Make, run: Any, wishes: Wishes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(split, "measure_benches", interrupted)
    devices = tuple((f"RPC{number}", f"127.0.0.1:{number}") for number in range(2))
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(wishes, rpc_devices=2), make_split_payload(server=True, devices=devices))
    pids = [int(line.split()[0]) for line in (tmp_path / "servers.txt").read_text().splitlines()]
    assert len(pids) == 2
    assert all(map(ended, pids))


def test_pretended_devices_end_with_a_killed_forkyard(tmp_path: Path) -> None:
    server = tmp_path / "server"
    server.write_text("#!/bin/sh\nexec sleep 600\n")
    server.chmod(0o755)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        with contextlib.suppress(BaseException), lent_devices(server, 1, 1, tmp_path / "log"):
            pass
        os._exit(0)
    pid = None
    for _ in range(3000):
        found = [path for path in Path("/proc").glob("[0-9]*") if _parent(path) == child and _name(path) == "sleep"]
        if found:
            pid = int(found[0].name)
            break
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert pid is not None
    assert ended(pid)


def _parent(process: Path) -> int:
    with contextlib.suppress(OSError):
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def _name(process: Path) -> str:
    with contextlib.suppress(OSError):
        return (process / "comm").read_text().strip()
    return ""


def test_a_server_that_does_not_start_is_tried_on_other_ports_and_named(tmp_path: Path) -> None:
    server = tmp_path / "ggml-rpc-server"
    server.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/tries\nexit 3\n")
    server.chmod(0o755)
    with (
        pytest.raises(RunFailed, match="ggml-rpc-server does not start"),
        lent_devices(server, 1, 1, tmp_path / "run.log"),
    ):
        pass
    assert len((tmp_path / "tries").read_text().splitlines()) == 3


def test_a_payload_without_an_rpc_server_lends_nothing(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    with pytest.raises(UsageError, match="llama.cpp cannot pretend devices") as caught:
        run(dataclasses.replace(wishes, rpc_devices=3), make_split_payload())
    assert caught.value.why == "its payload carries no RPC server"


def test_the_servers_of_ik_are_not_used_together(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    payload = make_split_payload(engine="ik_llama.cpp", splits="none|layer|graph", server=True)
    with pytest.raises(UsageError, match="ik_llama.cpp cannot pretend devices") as caught:
        run(dataclasses.replace(wishes, rpc_devices=3), payload)
    assert caught.value.why == "its RPC servers do not work beside each other"


@pytest.mark.parametrize(("linked", "said"), [(False, True), (True, False), (None, False)])
def test_an_engine_without_nccl_is_named(
    make_split_payload: Make, run: Any, wishes: Wishes, linked: bool | None, said: bool
) -> None:
    found = run(wishes, make_split_payload(splits="none|layer|tensor", nccl=linked))
    assert ("llama.cpp is built without NCCL" in as_text(found)) is said
    assert found.as_json()["engines"][0]["nccl"] is linked


def test_the_time_that_may_be_spent(make_split_payload: Make, run: Any, wishes: Wishes) -> None:
    class Notes(Silent):
        said: list[str] = []  # noqa: RUF012

        def note(self, text: str) -> None:
            self.said.append(text)

    payload = make_split_payload(splits="none|layer|tensor")
    found = run(dataclasses.replace(wishes, rounds=3, minutes=0.0), payload, reporter=Notes())
    assert found.measured.rounds == 1
    assert len(measured_calls(payload)) == 4
    assert "0 minutes are over: 1 of 3 rounds were run" in Notes.said
    assert found.as_json()["rounds"] == 1
    assert "medians of 1 rounds" in as_text(found)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"timing": Timing(0, 0, (0,))}, "neither"),
        ({"timing": Timing(512, 128, ())}, "neither"),
        ({"model": Path("nowhere.gguf")}, "no file"),
        ({"devices": ("CUDA0", "CUDA1"), "rpc_devices": 2}, "pretends others"),
        ({"devices": ("CUDA0",)}, "CUDA0 alone"),
    ],
)
def test_wishes_that_mean_nothing(wishes: Wishes, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        check(dataclasses.replace(wishes, **changes))


def test_the_answer_for_machines_is_json(make_split_payload: Make, run: Any, wishes: Wishes, tmp_path: Path) -> None:
    payload = make_split_payload({"tensor f16": [14.0]}, refused={"row f16": "no", "row q8_0": "no"})
    found = run(dataclasses.replace(wishes, rounds=6), payload)
    document = json.loads(json.dumps(found.as_json()))
    assert document["scenario"] == "split"
    assert document["baseline"] == "llama.cpp, layer, f16"
    row = next(one for one in document["rows"] if (one["split_mode"], one["cache_type"]) == ("tensor", "f16"))
    assert row["tests"]["tg128 @ d8192"]["samples"] == [14.0] * 6
    assert row["gains"]["tg128 @ d8192"]["verdict"] == "faster"
    assert document["engines"][0]["devices"] == [
        {"name": "CUDA0", "about": "GPU (of ours)"},
        {"name": "CUDA1", "about": "GPU (of ours)"},
    ]
    assert str(tmp_path) not in json.dumps(document)
