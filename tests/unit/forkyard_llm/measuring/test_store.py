from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.measuring.records import Recorded, RunInfo, Sample
from forkyard_llm.measuring.store import Store, StoreError

from .conftest import arm

WRITER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from forkyard_llm.measuring.records import Arm, RunInfo, Sample
from forkyard_llm.measuring.store import Store
store = Store(Path(sys.argv[1]))
run = sys.argv[2] * 32
store.begin(RunInfo(run, "threads", 1.0, "m", 1, {{}}), [Arm("a", (), ("t",), "")])
for number in range(int(sys.argv[3])):
    store.add(run, [Sample("a", number, "t", 1.0 + number, 0.0, 0.0), Sample("a", number, "u", 2.0, 0.0, 0.0)])
    print(number, flush=True)
"""


def writer(tmp_path: Path, letter: str, count: int) -> subprocess.Popen[str]:
    script = WRITER.format(paths=[entry for entry in sys.path if entry])
    words = [sys.executable, "-c", script, str(tmp_path / "x.sqlite"), letter, str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def put(store: Store, recorded: Recorded) -> None:
    store.begin(recorded.info, recorded.arms)
    store.add(recorded.info.id, recorded.samples)
    for name, why in recorded.failed.items():
        store.fail(recorded.info.id, name, why)
    store.finish(recorded.info.id)


def test_a_run_comes_back_as_it_was(tmp_path: Path, recorded: Recorded) -> None:
    put(Store(tmp_path / "x.sqlite"), recorded)
    found = Store(tmp_path / "x.sqlite").read("abab")
    assert found.info == recorded.info
    assert found.samples == recorded.samples
    assert found.failed == recorded.failed
    assert [one.name for one in found.arms] == [one.name for one in recorded.arms]
    assert found.arms[0].command == ("llama-bench", "-m", "model.gguf", "-t", "2")


def test_no_folder_of_this_machine_is_kept(tmp_path: Path, recorded: Recorded) -> None:
    store = Store(tmp_path / "x.sqlite")
    put(store, recorded)
    store.close()
    raw = (tmp_path / "x.sqlite").read_bytes()
    assert b"model.gguf" in raw
    assert b"/some/folder" not in raw
    assert b"/other" not in raw


def test_names_of_runs(tmp_path: Path, recorded: Recorded) -> None:
    store = Store(tmp_path / "x.sqlite")
    put(store, recorded)
    later = RunInfo(**{**vars(recorded.info), "id": "ac" * 16, "created": 2e9})
    store.begin(later, [arm("a")])
    assert store.find("last") == later.id
    assert store.find("ab") == recorded.info.id
    assert [(info.id, done) for info, done, _ in store.runs()] == [(later.id, False), (recorded.info.id, True)]
    for name in ("a", "", "zz"):
        with pytest.raises(UsageError, match="results list"):
            store.find(name)
    store.remove("ac")
    assert [info.id for info, _, _ in store.runs()] == [recorded.info.id]


def test_a_run_of_somebody_else_is_taken_whole_and_once(tmp_path: Path, recorded: Recorded) -> None:
    store = Store(tmp_path / "x.sqlite")
    assert store.take(recorded, "ab" * 32)
    assert not store.take(recorded, "cd" * 32)
    assert [(done, origin) for _, done, origin in store.runs()] == [(True, "ab" * 32)]
    assert store.read("last").samples == recorded.samples
    assert store.read("last").failed == recorded.failed
    broken = Recorded(RunInfo(**{**vars(recorded.info), "id": "ee" * 16}), [], recorded.samples, {})
    with pytest.raises(StoreError):
        store.take(broken, "")
    assert len(store.runs()) == 1


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1])
def test_a_kill_loses_nothing_that_was_said_to_be_kept(tmp_path: Path, after_s: float) -> None:
    process = writer(tmp_path, "a", 10000)
    assert process.stdout is not None
    seen = [process.stdout.readline()]
    time.sleep(after_s)
    process.kill()
    seen += process.stdout.readlines()
    process.wait()
    samples = Store(tmp_path / "x.sqlite").read("last").samples
    whole = [line for line in seen if line.endswith("\n")]
    assert len(samples) // 2 in (len(whole), len(whole) + 1)
    assert len(samples) % 2 == 0


def test_two_writers_at_once(tmp_path: Path) -> None:
    processes = [writer(tmp_path, letter, 50) for letter in "ab"]
    assert [process.wait(120) for process in processes if process.communicate()] == [0, 0]
    store = Store(tmp_path / "x.sqlite")
    assert [len(store.read(letter).samples) for letter in "ab"] == [100, 100]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, recorded: Recorded) -> None:
    put(Store(tmp_path / "x.sqlite"), recorded)
    child = os.fork()
    if child == 0:  # the limit is this child's alone
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (96 * 1024, 96 * 1024))
            store = Store(tmp_path / "x.sqlite")
            run = store.find("last")
            try:
                for number in range(100000):
                    store.add(run, [Sample("base", number, "tg32" * 50, 1.0, 0.0, 0.0)])
            except StoreError as error:
                status = 0 if "what was written before is still there" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store = Store(tmp_path / "x.sqlite")
    assert store.read("last").samples[: len(recorded.samples)] == recorded.samples
    store.add(store.find("last"), [Sample("base", 9, "tg32", 1.0, 0.0, 0.0)])


def test_a_damaged_file_is_never_deleted(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(StoreError, match="is damaged"):
        Store(path)
    assert path.read_bytes().startswith(b"no database")


def test_a_newer_store(tmp_path: Path) -> None:
    Store(tmp_path / "x.sqlite").close()
    base = sqlite3.connect(tmp_path / "x.sqlite")
    base.execute("PRAGMA user_version = 99")
    base.close()
    with pytest.raises(StoreError, match="newer forkyard-llm"):
        Store(tmp_path / "x.sqlite")
