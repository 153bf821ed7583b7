from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

from forkyard_llm.engines.log import EngineLog

INFO, WARN, CONT = 2, 3, 5


class Api:
    def llama_log_set(self, callback: Any, _data: None) -> None:
        self.log = callback


def make() -> tuple[EngineLog, Api]:
    levels = {"GGML_LOG_LEVEL_WARN": WARN, "GGML_LOG_LEVEL_CONT": CONT}
    abi = SimpleNamespace(ENUMS={"ggml_log_level": levels}, ggml_log_callback=lambda function=None: function)
    api = Api()
    return EngineLog(cast("Any", abi), api), api


def test_all_warnings_of_a_load_are_collected_without_their_rulers():
    log, api = make()
    with log.collected() as lines:
        for number in range(20):
            api.log(WARN, b"warning %d\n" % number, None)
        api.log(WARN, b"\n=========\n", None)
        api.log(INFO, b"talk\n", None)
        api.log(CONT, b"more\n", None)
    api.log(WARN, b"later\n", None)
    assert lines == [f"warning {number}" for number in range(20)]
    assert log.complaints().endswith("; later")


def test_two_threads_loads_are_kept_apart():
    log, api = make()
    with log.collected() as lines:
        thread = threading.Thread(target=api.log, args=(WARN, b"the other's\n", None))
        thread.start()
        thread.join()
        api.log(WARN, b"mine\n", None)
    assert lines == ["mine"]
