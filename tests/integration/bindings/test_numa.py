"""`Llama(numa=...)` on the real engines, each case in a process of its own, with pretended nodes.

A real machine with several nodes is not needed: what is tested here is that the bindings set the strategy, say what
was copied and read, and tell why a copy could not be made.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ENGINES = ("llama.cpp", "ik_llama.cpp")

# Generates twice and tells what the counters and the report say; argv: model, engine, options of Llama.
GENERATE = """
import dataclasses, json, sys
from forkyard_llm import Llama
model, engine, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with Llama(model, engine=engine, n_threads=2, n_ctx=256, **options) as llm:
    def text():
        return llm("The capital of France is", max_tokens=8, temperature=0)["choices"][0]["text"]
    first = text()
    counted = llm.numa_counters(reset=True)
    zero = llm.numa_counters()
    second = text()
    said = {
        "texts": [first, second],
        "numa": llm.numa,
        "capable": "numa-mirror" in llm.capabilities,
        "counted": [dataclasses.asdict(node) for node in counted],
        "zero": [node.local_bytes + node.remote_bytes for node in zero],
        "again": [node.local_bytes + node.remote_bytes for node in llm.numa_counters()],
        "report": dataclasses.asdict(llm.numa_report()),
    }
print(json.dumps(said))
"""

# Loads with little address space to spare; argv: as before, and how many MiB there are beside what is mapped already.
NO_ROOM = """
import json, re, resource, sys
from forkyard_llm import Llama
from forkyard_llm.errors import ForkyardLlmError
model, engine, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with Llama(model, engine=engine, n_threads=2, n_ctx=64, numa="mirror", numa_mirror="none"):
    pass
status = open("/proc/self/status").read()
mapped = int(re.search(r"VmSize:\\s+(\\d+)", status).group(1)) << 10
resource.setrlimit(resource.RLIMIT_AS, (mapped + (int(sys.argv[4]) << 20), -1))
try:
    Llama(model, engine=engine, n_threads=2, **options)
    said = None
except ForkyardLlmError as error:
    said = [type(error).__name__, str(error)]
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(json.dumps(said))
"""

# Loads as in a container; argv: as before, nodes and CPUs, answers of system calls, an empty folder's name.
CONTAINED = """
import json, logging, pathlib, sys
import container
model, engine, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
nodes, answers = json.loads(sys.argv[4]), json.loads(sys.argv[5])
try:
    container.show_nodes(pathlib.Path(sys.argv[6]), {int(node): cpus for node, cpus in nodes.items()})
    container.refuse(answers)
except OSError as error:
    print(json.dumps({"skip": str(error)}))
    sys.exit()
from forkyard_llm import Llama
from forkyard_llm.errors import ForkyardLlmError
warnings = []
class Keep(logging.Handler):
    def emit(self, record):
        warnings.append(record.getMessage())
logging.getLogger("forkyard_llm").addHandler(Keep())
said = {"error": None}
try:
    with Llama(model, engine=engine, n_threads=2, n_ctx=64, use_mmap=False, **options) as llm:
        said["text"] = llm("The capital of France is", max_tokens=1, temperature=0)["choices"][0]["text"]
except ForkyardLlmError as error:
    said = error.as_json()
print(json.dumps({**said, "warnings": warnings}))
"""
# No machine has so many nodes that it has this one.
NO_NODE = 63
NEEDS = "a container needs CAP_SYS_NICE and a seccomp profile that allows mbind and move_pages"
ALL_REFUSED = dict.fromkeys(("mbind", "set_mempolicy", "get_mempolicy", "move_pages"), errno.EPERM)

Child = Callable[..., Any]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    return str(request.param)


@pytest.fixture
def child(engine: str, engine_payload: Callable[[str], Path], smollm2: Path, tmp_path: Path) -> Child:
    """Run a script on the engine's payload with ``nodes`` pretended ones; its JSON."""
    root = engine_payload(engine)

    def run(script: str, options: dict[str, Any], *more: str, nodes: int = 2) -> Any:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GGML_NUMA")},
            "FORKYARD_LLM_PAYLOAD": str(root),
            "FORKYARD_LLM_CACHE": str(tmp_path / "cache"),
            **({"GGML_NUMA_FAKE_NODES": str(nodes)} if nodes else {}),
            # A thread that gets an arena of its own reserves 64 MiB of the room that some tests count.
            "MALLOC_ARENA_MAX": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        }
        command = [sys.executable, "-c", script, str(smollm2), engine, json.dumps(options), *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def by_kind(said: Any, kind: str) -> list[Any]:
    return [item for item in said["report"]["ranges"] if item["kind"] == kind]


def test_a_mirror_reads_locally_and_changes_no_text(child: Child):
    off = child(GENERATE, {})
    said = child(GENERATE, {"numa": "mirror"}, nodes=3)
    assert off["capable"] is said["capable"] is True
    assert (off["numa"], off["counted"], off["report"]["ranges"]) == (None, [], [])
    assert said["texts"] == off["texts"]
    assert said["texts"][0].startswith(" Paris")
    assert (said["numa"], said["report"]["mode"], said["report"]["fake"]) == ("mirror", "mirror", True)
    assert len(said["counted"]) == 3
    # Two threads: the third node has none.
    assert [node["local_bytes"] > 0 for node in said["counted"]].count(True) == 2
    assert [node["remote_bytes"] for node in said["counted"]] == [0, 0, 0]
    assert said["zero"] == [0, 0, 0]
    assert sum(said["again"]) == sum(node["local_bytes"] for node in said["counted"])
    for kind in ("weights", "kv"):
        for item in by_kind(said, kind):
            assert item["mirrored"]
            assert item["differs"] == 0
            assert len(item["copies"]) == 3
            assert all(copy["pages_here"] == copy["pages"] > 0 for copy in item["copies"])
        assert by_kind(said, kind), kind


@pytest.mark.parametrize(
    ("words", "weights", "kv"), [("weights", True, False), ("kv", False, True), ("none,best-effort", False, False)]
)
def test_words_say_what_is_copied(child: Child, words: str, weights: bool, kv: bool):
    said = child(GENERATE, {"numa": "mirror", "numa_mirror": words})
    assert {item["mirrored"] for item in by_kind(said, "weights")} == {weights}
    assert {item["mirrored"] for item in by_kind(said, "kv")} == {kv}
    assert sum(node["remote_bytes"] for node in said["counted"]) > 0


def test_split_slices_the_weights_and_copies_nothing(child: Child):
    said = child(GENERATE, {"numa": "split", "use_mmap": False})
    assert (said["numa"], said["report"]["mode"]) == ("split", "split")
    assert said["texts"] == child(GENERATE, {})["texts"]
    assert not any(item["mirrored"] for item in said["report"]["ranges"])
    assert all(item["slice_pages"] > 0 for item in by_kind(said, "weights"))
    assert {item["slice_pages"] for item in by_kind(said, "kv")} == {0}


@pytest.mark.parametrize(
    ("options", "room", "what"),
    [
        # The file is mapped (94 MiB), the copy does not fit beside it.
        ({"numa_mirror": "weights", "n_ctx": 64}, 150, "weights"),
        # The file, the cache of 4096 tokens (90 MiB), and no room for the cache's copy.
        ({"numa_mirror": "kv", "n_ctx": 4096}, 250, "kv"),
    ],
)
def test_a_copy_that_does_not_fit_names_node_and_bytes(child: Child, options: dict[str, Any], room: int, what: str):
    kind, message = child(NO_ROOM, {"numa": "mirror", **options}, str(room))
    assert kind == "EngineError"
    assert "numa-mirror: node 0 lacks " in message
    assert f"bytes of {what} (" in message
    assert "numa_mirror='best-effort'" in message


@pytest.fixture
def contained(child: Child, tmp_path: Path) -> Callable[..., Any]:
    """Load a model in a process that sees two nodes and whose system calls are answered as one says."""
    if platform.machine() != "x86_64":
        pytest.skip("the filter has the numbers of x86-64")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("two nodes need two CPUs")

    def run(options: dict[str, Any], answers: dict[str, int]) -> Any:
        nodes = json.dumps({0: cpus[:1], NO_NODE: cpus[1:]})
        said = child(CONTAINED, options, nodes, json.dumps(answers), str(tmp_path / "nodes"), nodes=0)
        if "skip" in said:
            pytest.skip(f"no container can be imitated here: {said['skip']}")
        return said

    return run


@pytest.mark.parametrize(
    ("options", "answers", "node", "reason"),
    [
        ({"numa": "mirror"}, ALL_REFUSED, 0, "of weights (mbind: Operation not permitted; "),
        ({"numa": "mirror", "numa_mirror": "kv"}, ALL_REFUSED, 0, "of kv (mbind: Operation not permitted; "),
        ({"numa": "split"}, ALL_REFUSED, None, "of weights are not on their node (mbind: Operation not permitted; "),
        # Docker with CAP_SYS_NICE; the copies are made, and nobody can say where they are.
        (
            {"numa": "mirror"},
            {"mbind": 0, "move_pages": errno.EPERM},
            0,
            "of weights (move_pages: Operation not permitted; ",
        ),
        ({"numa": "split"}, {"mbind": 0, "move_pages": errno.EPERM}, None, "(move_pages: Operation not permitted; "),
        # Profiles that know a call not at all, and kernels that are none.
        ({"numa": "mirror"}, {"mbind": errno.ENOSYS}, 0, "(mbind: Function not implemented; "),
    ],
)
def test_a_container_s_refusal_is_told_whole(
    contained: Callable[..., Any], options: dict[str, Any], answers: dict[str, int], node: int | None, reason: str
):
    error = contained(options, answers)["error"]
    assert error["type"] == "EngineError"
    assert f"{reason}{NEEDS}); allow it, or go on without (numa_mirror='best-effort')" in error["message"]
    assert "free memory" not in error["message"]
    assert (error["numa"]["cause"], error["numa"]["node"]) == ("refused", node)
    assert error["numa"]["lacks_bytes"] > 0


def test_memory_that_a_cpuset_forbids_is_no_refusal(contained: Callable[..., Any]):
    error = contained({"numa": "mirror"}, {})["error"]
    assert f"node {NO_NODE} lacks " in error["message"]
    assert "(the process may not use its memory (cpuset)); allow it, or go on without" in error["message"]
    assert (error["numa"]["cause"], error["numa"]["node"]) == ("no_access", NO_NODE)


def test_best_effort_warns_in_python_s_log_and_works(contained: Callable[..., Any]):
    said = contained({"numa": "mirror", "numa_mirror": "best-effort"}, ALL_REFUSED)
    assert said["error"] is None
    assert said["text"] == " Paris"
    assert [" of weights (" in warning for warning in said["warnings"]] == [True, False]
    assert [" of kv (" in warning for warning in said["warnings"]] == [False, True]
    for warning in said["warnings"]:
        assert f"{NEEDS}); going on without, as numa_mirror='best-effort' asks for" in warning
