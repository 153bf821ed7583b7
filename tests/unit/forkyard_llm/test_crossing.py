"""What an engine's process sends: values as they were, and nothing that one which was taken over could do harm by."""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import socket
import struct
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.crossing import decode, encode, frame, read_frame
from forkyard_llm.engines.adapters import Lora
from forkyard_llm.engines.numa_mirror import NumaNode, NumaReport
from forkyard_llm.engines.session import Perf
from forkyard_llm.errors import EngineError, ModelError, PayloadRejected, Rejection, UnsupportedOption
from forkyard_llm.state import LlamaState


def crossed(value: Any, **options: Any) -> Any:
    kept: list[Any] = []

    def hold(one: Any) -> int:
        kept.append(one)
        return len(kept) - 1

    ours, theirs = socket.socketpair()
    with ours, theirs:
        # More than a socket holds.
        sender = threading.Thread(target=lambda: [theirs.sendall(part) for part in encode(value, hold)])
        sender.start()
        given = read_frame(ours.makefile("rb"))
        sender.join()
    assert given is not None
    return decode(given, **options)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        pytest.param(10**6000, id="many digits"),
        1.5,
        math.inf,
        "text \ud800 \0 \N{WOMAN}",
        b"\0\xff",
        b"",
        [1, [2.0, "three"]],
        (1, (2, b"x")),
        {"a": {"b": [1]}},
        {1: "a", "1": "b", (2, 3): None},
        {"$": ["path", "x"]},
        frozenset({"a", "b"}),
        {1, 2},
        Path("a/b"),
        Perf(1.0, 2, 3.0, 4, 5.0),
        NumaReport("mirror", (NumaNode(0, 2, 3, 4),), ()),
        LlamaState.of((1, 2), b"\1" * (3 << 20), "origin"),
    ],
)
def test_values_come_as_they_were(value: Any) -> None:
    got = crossed(value)
    assert got == value
    assert type(got) is type(value)


def test_what_looks_like_a_plain_value_comes_as_one() -> None:
    class Text(str):
        pass

    assert crossed([Text("a"), range(3), OrderedDict(a=1), bytearray(b"x")]) == ["a", [0, 1, 2], {"a": 1}, b"x"]
    assert math.isnan(crossed(math.nan))


def test_a_row_of_logits() -> None:
    row = (ctypes.c_float * 3)(1.0, -2.0, math.inf)
    got = crossed([5, row])[1]
    assert list(got) == list(row)
    assert type(got)._type_ is ctypes.c_float


@pytest.mark.parametrize(
    "error",
    [
        ModelError("no", offset=3),
        EngineError("no", {"numa": {"node": None}}),
        PayloadRejected("no", [Rejection("a", "b")]),
        TypeError("unexpected keyword argument"),
        KeyError("key"),
        FileNotFoundError(2, "there is none"),
    ],
)
def test_errors_come_as_their_own_classes(error: Exception) -> None:
    got = crossed(error)
    assert type(got) is type(error)
    assert str(got) == str(error)
    if isinstance(error, (ModelError, EngineError, PayloadRejected)):
        assert got.as_json() == error.as_json()


def test_other_errors_come_as_errors_of_the_engine() -> None:
    assert str(crossed(ctypes.ArgumentError("no"))) == "ctypes.ArgumentError: no"
    assert isinstance(crossed(UnicodeDecodeError("utf-8", b"x", 0, 1, "no")), EngineError)


def test_what_is_good_for_nothing_elsewhere_is_kept() -> None:
    held: list[tuple[Any, int]] = []
    handle: Any = ctypes.pointer(ctypes.c_int())
    got = crossed(Lora("a.gguf", handle, handle), held=lambda made, number: held.append((made, number)))
    assert (got.path, got.handle) == ("a.gguf", None)
    assert held == [(got, 0)]
    with pytest.raises(UnsupportedOption, match="bring a c_int out of the engine's process"):
        encode([ctypes.c_int()], lambda _: 0)


ERROR = ["x"], {}


@pytest.mark.parametrize(
    "plain",
    [
        {"$": ["object", "subprocess", "Popen", {"args": ["touch", "x"]}, None]},
        {"$": ["object", "forkyard_llm.serve", "ServeOptions", {}, None]},  # nothing has imported it
        {"$": ["object", "forkyard_llm.engine_process", "EngineProcess", {}, None]},
        {"$": ["object", "forkyard_llm.engine_process", "subprocess", {}, None]},
        {"$": ["object", "forkyard_llm.crossing", "Path", {}, None]},
        {"$": ["object", "forkyard_llm.__init__", "Llama", {}, None]},
        {"$": ["error", "builtins", "SystemExit", *ERROR]},
        {"$": ["error", "builtins", "KeyboardInterrupt", *ERROR]},
        {"$": ["error", "builtins", "eval", *ERROR]},
        {"$": ["error", "builtins", "print", *ERROR]},
        {"$": ["error", "builtins", "type", *ERROR]},
        {"$": ["error", "os", "system", *ERROR]},
        {"$": ["error", "forkyard_llm.engine_process", "EngineProcess", *ERROR]},
        {"$": ["error", "builtins", "ValueError", [{"$": ["bytes", 0]}], {}]},
        {"$": ["pickle", "x"]},
        {"$": []},
        {"$": ["bytes", 1]},
        {"$": ["bytes", -1]},
        {"$": ["floats", 1 << 60]},
        {"$": ["int", "no"]},
        {"$": ["dict", [[[], 1]]]},
        {"$": ["tuple"]},
    ],
)
def test_nothing_else_is_made(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "forkyard_llm.serve", raising=False)
    with pytest.raises(Exception) as caught:
        decode((json.dumps(plain).encode(), b""))
    assert isinstance(caught.value, (KeyError, TypeError, ValueError, AttributeError, IndexError))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_no_value(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(Evil(tmp_path / "made"), protocol)
    with pytest.raises((ValueError, RecursionError)):
        decode((data, b""))
    with pytest.raises(ValueError):
        decode((b"1", data))
    assert not (tmp_path / "made").exists()
    pickle.loads(data)
    assert (tmp_path / "made").exists()


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises((RecursionError, ValueError)):
        decode((b"[" * 100_000 + b"]" * 100_000, b""))


def test_the_length_of_a_frame_takes_no_memory() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(struct.pack("<QQ", 1 << 62, 0) + b"[]")
        assert read_frame(ours.makefile("rb")) is None


def test_a_frame_in_small_pieces() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        whole = b"".join(frame(b"[1]", b"xyz"))

        def send() -> None:
            for index in range(len(whole)):
                theirs.sendall(whole[index : index + 1])

        sender = threading.Thread(target=send)
        sender.start()
        assert read_frame(ours.makefile("rb")) == (b"[1]", b"xyz")
        sender.join()
