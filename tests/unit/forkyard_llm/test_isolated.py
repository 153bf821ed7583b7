"""`Llama(isolate=True)` without an engine: what it offers, and processes that end, lie or answer nonsense."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import engine_process, isolated, isolated_child
from forkyard_llm.engine_process import EngineProcess
from forkyard_llm.errors import EngineDied, EngineError, UnsupportedOption, UsageError
from forkyard_llm.isolated import IsolatedLlama
from forkyard_llm.llama import Llama

PUBLIC = [name for name in dir(Llama) if not name.startswith("_")]
OWN = {"close", "closed", "payload"}
# Answers the call that loads the model; the rest of the script has `say`, `hear`, `raw` (the socket) and `number`.
BEGINNING = """
import json, os, pickle, socket, struct, sys
sys.path[:] = json.loads(sys.argv[1])
from forkyard_llm.crossing import encode, read_frame
raw = socket.socket(fileno=int(sys.argv[-3]))
stream = raw.makefile("rb")
def hear():
    frame = read_frame(stream)
    if frame is None:
        os._exit(0)
    return pickle.loads(frame[0])
def say(*message):
    for part in encode(list(message), lambda _: 7):
        raw.sendall(part)
say(hear()[1], "value", None)
number = hear()[1]
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from a script to the process that does what the script says after the model is loaded."""
    made: list[EngineProcess] = []

    def start(script: str, beginning: str = BEGINNING) -> EngineProcess:
        def command(_module: str, *words: str) -> list[str]:
            return [sys.executable, "-c", beginning + script, json.dumps(sys.path), *words]

        monkeypatch.setattr(engine_process, "child_command", command)
        made.append(EngineProcess({"verbose": False}, "model.gguf"))
        return made[-1]

    yield start
    for one in made:
        one.close()
        assert one._child._process.returncode is not None


def call(process: EngineProcess, *arguments: Any, **named: Any) -> Any:
    return process.call("method", (arguments, named), None)


@pytest.mark.parametrize("name", [*PUBLIC, "__call__"])
def test_every_public_name_is_isolated(name: str) -> None:
    plain, member = inspect.getattr_static(Llama, name), inspect.getattr_static(IsolatedLlama, name)
    assert inspect.getdoc(member)
    if name in OWN:
        assert member is not plain
    elif isinstance(plain, property):
        assert plain.fset is None, "there is no way to set a property of an isolated Llama"
        assert isinstance(member, property)
    elif inspect.iscoroutinefunction(plain):
        assert member is plain, "an asynchronous method must be made of public ones"
    elif inspect.isfunction(plain):
        assert inspect.signature(member) == inspect.signature(plain)
    else:
        assert member is plain
        assert isinstance(plain, (classmethod, staticmethod))


def test_methods_that_use_the_engine_are_forwarded() -> None:
    forwarded = {name for name in (*PUBLIC, "__call__") if name in vars(IsolatedLlama)}
    assert {"__call__", "create_completion", "generate", "tokenize", "engine", "n_ctx", "eval"} <= forwarded
    assert not {"acreate_completion", "from_pretrained", "create_chat_completion_openai_v1"} & forwarded


def test_a_new_method_is_forwarded_if_it_uses_what_is_not_public() -> None:
    def made_of_public_ones(self: Llama) -> int:
        return len(self.tokenize("a"))

    def of_the_engine(self: Llama) -> Any:
        return (lambda: self._generation)()

    assert not isolated._needs_the_engine(made_of_public_ones)
    assert isolated._needs_the_engine(of_the_engine)
    assert isolated._needs_the_engine(property(of_the_engine))


def test_isolate_is_a_flag() -> None:
    with pytest.raises(UsageError, match="isolate must be True or False"):
        Llama("model.gguf", isolate="yes")  # type: ignore[arg-type]


def test_a_stream_and_a_value(process: Any) -> None:
    script = """
say(number, "stream", None)
assert hear() == ("room", number, 8)
for item in range(3):
    say(number, "item", item)
say(number, "end", None)
say(hear()[1], "value", (1, 2))
hear()
"""
    child = process(script)
    assert list(call(child)) == [0, 1, 2]
    assert call(child) == (1, 2)


@pytest.mark.parametrize(
    ("script", "signal", "status", "words"),
    [
        ("sys.exit('one\\n\\ntwo')", None, 1, ("one", "two")),
        ("os._exit(3)", None, 3, ()),
        ("os._exit(0)", None, 0, ()),
        ("os.abort()", "SIGABRT", None, ()),
        ("os.kill(os.getpid(), 9)", "SIGKILL", None, ()),
        (
            "sys.stderr.write('noise\\nx.c:3: GGML_ASSERT(a) failed\\n' + 'trace\\n' * 50); os.abort()",
            "SIGABRT",
            None,
            ("x.c:3: GGML_ASSERT(a) failed", *["trace"] * 7),
        ),
        ("print('on the other stream', flush=True); os.abort()", "SIGABRT", None, ("on the other stream",)),
    ],
)
def test_death(process: Any, script: str, signal: str | None, status: int | None, words: tuple[str, ...]) -> None:
    child = process(script)
    with pytest.raises(EngineDied) as caught:
        call(child)
    error = caught.value
    assert (error.signal, error.exit_status, error.last_words) == (signal, status, words)
    assert error.details() == {"signal": signal, "exit_status": status, "last_words": list(words)}
    assert "the next call starts a new one with the same arguments" in str(error)
    assert all(line in str(error) for line in (*words, signal or f"exit code {status}"))
    with pytest.raises(EngineDied):
        call(child)


def test_death_while_loading(process: Any) -> None:
    with pytest.raises(EngineDied, match="crashed with SIGABRT while it loaded the model; its last words:\n  . x"):
        process("", "import os; print('x', flush=True); os.abort()")


def test_death_between_calls_is_told_once(process: Any, tmp_path: Path) -> None:
    script = f"""
say(number, "value", os.getpid())
if not os.path.exists({str(tmp_path / "first")!r}):
    os.mkdir({str(tmp_path / "first")!r})
    os.abort()
hear()
"""
    child = process(script)
    first = call(child)
    child._child._reader.join()
    with pytest.raises(EngineDied, match="SIGABRT"):
        call(child)
    assert call(child) != first


@pytest.mark.parametrize(
    "script",
    [
        "raw.sendall(struct.pack('<QQ', 3, 0) + b'abc')",
        "raw.sendall(struct.pack('<QQ', 2, 0) + b'[]')",
        "raw.sendall(struct.pack('<QQ', 200000, 0) + b'[' * 200000)",
        "say(number, 'nothing', None)",
        "say(number, 'error', 'text')",
        "say(number, 'function', [5, []])",
        "say(number, 'function', 'x')",
        "say([], 'value', 1)",
        "say(0, 'log', [1, 2, 3])",
        "say(0, 'log', ['forkyard_llm', 'high', 'x'])",
    ],
)
def test_nonsense_ends_it(process: Any, script: str) -> None:
    child = process(f"{script}\nimport time; time.sleep(600)")
    with pytest.raises(EngineDied, match="sent what is no message"):
        call(child)


def test_half_a_message_is_an_end(process: Any) -> None:
    with pytest.raises(EngineDied, match="exit code 4"):
        call(process("raw.sendall(b'x' * 100); os._exit(4)"))


def test_a_hostile_pickle_is_not_read(process: Any, tmp_path: Path) -> None:
    target = tmp_path / "made"
    script = f"""
class Evil:
    def __reduce__(self):
        return os.mkdir, ({str(target)!r},)
data = pickle.dumps([number, "value", Evil()])
raw.sendall(struct.pack("<QQ", len(data), 0) + data)
hear()
"""
    with pytest.raises(EngineDied, match="no message"):
        call(process(script))
    assert not target.exists()


def test_functions_are_called_here(process: Any) -> None:
    script = """
import ctypes
say(number, "function", [0, [1, 2]])
kind, _, data = hear()
assert kind == "answer"
first = pickle.loads(data)
say(number, "function", [1, [(ctypes.c_float * 2)(1, 2)]])
second = pickle.loads(hear()[2])
say(number, "value", [first, second[0], second[2]])
hear()
"""

    def change(row: Any) -> None:
        row[1] = 8.0

    child = process(script)
    (first, succeeded, (raw,)) = call(child, "text", progress=lambda a, b: a + b, processors=[change])
    assert first == (True, 3, [])
    assert succeeded
    assert raw == bytes.fromhex("0000803f00000041")


def test_what_a_function_raises_is_raised(process: Any) -> None:
    class Mine(BaseException):
        pass

    script = """
say(number, "function", [0, []])
assert pickle.loads(hear()[2]) == (False, None, [])
say(number, "error", EngineErrorHere("it failed"))
hear()
""".replace("EngineErrorHere", "__import__('forkyard_llm').EngineError")

    def fail() -> None:
        raise Mine

    with pytest.raises(Mine):
        call(process(script), progress=fail)


def test_a_function_cannot_use_the_model_that_called_it(process: Any) -> None:
    script = """
say(number, "function", [0, []])
say(number, "value", pickle.loads(hear()[2])[1])
hear()
"""

    def use() -> str:
        try:
            call(child)
        except EngineError as error:
            return str(error)
        return ""

    child = process(script)
    assert "must not use the Llama that called it" in call(child, progress=use)


def test_log_records_come_to_the_log_of_this_package(process: Any, caplog: pytest.LogCaptureFixture) -> None:
    script = """
say(0, "log", ["forkyard_llm.selection", 30, "100 %s"])
say(0, "log", ["root", 30, "mine"])
say(number, "value", None)
hear()
"""
    call(process(script))
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("forkyard_llm.selection", "WARNING", "100 %s"), ("forkyard_llm", "WARNING", "mine")]


def test_what_pickle_does_not_take(process: Any) -> None:
    child = process("hear()")
    with pytest.raises(UnsupportedOption, match="isolate=True takes what pickle takes"):
        call(child, {"inside": lambda: None})


def test_kept_objects_go_back_by_number_and_only_where_they_are_from(process: Any) -> None:
    script = """
import ctypes
from forkyard_llm.engines.adapters import Lora
import forkyard_llm.isolated_child as there
there._kept[:] = [None] * 7 + ["this one"]
say(number, "value", Lora("a.gguf", ctypes.pointer(ctypes.c_int()), None))
_, number, _, data = hear()
say(number, "value", str(pickle.loads(data)))
hear()
os.abort()
"""
    child = process(script)
    kept = call(child)
    assert repr(kept) == "Lora(path='a.gguf', handle=None, model=None)"
    assert call(child, {kept: 0.5}) == "([{'this one': 0.5}], {})"
    with pytest.raises(EngineDied):
        call(child)
    with pytest.raises(EngineError, match="load it again"):
        call(child, adapters={kept: 0.5})


def test_closing_is_no_death(process: Any) -> None:
    child = process("say(number, 'stream', None)\nhear(); hear()")
    items = call(child)
    child.close()
    with pytest.raises(EngineError, match="closed") as caught:
        next(items)
    assert not isinstance(caught.value, EngineDied)
    with pytest.raises(EngineError, match="closed"):
        call(child)
    child.close()


def test_a_stream_that_is_dropped_before_it_begins_is_cancelled(process: Any) -> None:
    script = """
say(number, "stream", None)
heard = hear()
assert heard == ("cancel", number), heard
say(hear()[1], "value", "cancelled")
hear()
"""
    child = process(script)
    items = call(child)
    del items
    assert call(child) == "cancelled"


def test_the_parent_s_descriptors_stay_its_own(process: Any) -> None:
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    try:
        script = "say(number, 'value', sorted(map(int, os.listdir('/proc/self/fd'))))\nhear()"
        found = call(process(script))
    finally:
        os.close(ours)
        os.close(theirs)
    # Standard streams, the socket and the folder that is listed.
    assert len(found) == 5


def test_the_names_of_functions_in_pickles_are_those_of_the_child() -> None:
    assert pickle.loads(pickle.dumps(isolated_child.kept)) is isolated_child.kept
