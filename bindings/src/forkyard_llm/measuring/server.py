"""A llama-server that is measured: started on a free port of this machine, asked, and ended."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..health import Address, State, ask
from ..serve import DEFAULT_HOST, free_port
from .child import RunFailed, background
from .dialect import Result, last_words
from .engine import SERVER
from .prompts import PROMPTS
from .records import Arm
from .running import arm_environment

__all__ = ["ALL", "GENERATED", "Server", "Timing", "run_batch_arm", "run_prompts_arm", "started"]

GENERATED, ALL = "generated", "all tokens"
"""Tests of an arm with parallel requests: tokens per second, of all requests together."""
START_S = 900.0
ANSWER_S = 3600.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Timing:
    """What a server says of one completion."""

    prompt_tokens: int
    prompt_ms: float
    generated_tokens: int
    generated_ms: float
    drafted: int
    """Tokens that were guessed."""
    accepted: int
    """Those of them that were right."""
    text: str

    @property
    def speed(self) -> float:
        """Generated tokens per second."""
        return 1000 * self.generated_tokens / self.generated_ms


class Server:
    """One that answers."""

    def __init__(self, port: int, log: Path) -> None:
        self._port, self._log = port, log

    def complete(self, prompt: str | Sequence[int], tokens: int, *, more: Mapping[str, Any] | None = None) -> Timing:
        """Generate exactly `tokens` tokens, greedily, with nothing of earlier prompts reused.

        Raises:
            RunFailed: it answered with an error, or not at all.
        """
        request = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": tokens,
            "temperature": 0,
            "top_k": 1,
            "seed": 1,
            "cache_prompt": False,
            "ignore_eos": True,
            **(more or {}),
        }
        answer = self._post("/completion", request)
        timings = answer.get("timings", {})
        try:
            return Timing(
                int(timings["prompt_n"]),
                float(timings["prompt_ms"]),
                int(timings["predicted_n"]),
                float(timings["predicted_ms"]),
                int(timings.get("draft_n", 0)),
                int(timings.get("draft_n_accepted", 0)),
                str(answer["content"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{SERVER} says no timings"
            raise RunFailed(msg, f"its answer: {json.dumps(answer)[:200]}", self._log) from error

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without any at its beginning that the model wants there."""
        return [int(one) for one in self._post("/tokenize", {"content": text, "add_special": False})["tokens"]]

    def _post(self, path: str, value: Mapping[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(DEFAULT_HOST, self._port, timeout=ANSWER_S)
        try:
            connection.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            found = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            msg = f"{SERVER} did not answer"
            raise RunFailed(msg, f"{type(error).__name__}: {error}", self._log) from error
        finally:
            connection.close()
        if answer.status != 200 or not isinstance(found, dict):
            msg = f"{SERVER} refused a request"
            raise RunFailed(msg, f"HTTP {answer.status}: {body[:300].decode('utf-8', 'replace')}", self._log)
        return found


@contextlib.contextmanager
def started(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """The server of a command without address, for the length of the block.

    Raises:
        RunFailed: it ended before it answered, or did not answer in time.
    """
    port = free_port(DEFAULT_HOST, 0)
    words = [*command, "--host", DEFAULT_HOST, "--port", str(port)]
    with background(words, log, environment, START_S + ANSWER_S) as (gone, lines):
        _wait(Address(DEFAULT_HOST, port), gone, lines, log)
        yield Server(port, log)


def _wait(address: Address, gone: threading.Event, lines: Sequence[str], log: Path) -> None:
    began = time.monotonic()
    while not gone.is_set():
        if ask(address).state is State.READY:
            return
        if time.monotonic() - began > START_S:
            msg = f"{SERVER} did not start"
            raise RunFailed(msg, f"no answer within {START_S:.0f} s: {last_words(lines)}", log)
        time.sleep(_POLL_S)
    msg = f"{SERVER} did not start"
    raise RunFailed(msg, last_words(lines), log)


def run_prompts_arm(arm: Arm, log: Path, tokens: int) -> list[Result]:
    """Run an arm whose tests are names of prompts, one after the other: generated tokens per second of each.

    Raises:
        RunFailed: the server does not start, or answers with an error.
    """
    with started(arm.command, log, arm_environment(arm)) as server:
        server.complete(PROMPTS["warm-up"], 16)
        return [Result(test, server.complete(PROMPTS[test], tokens).speed, None, "") for test in arm.tests]


def run_batch_arm(
    arm: Arm, log: Path, prompt: int, tokens: int, parallel: int, texts: Mapping[str, str] = PROMPTS
) -> list[Result]:
    """Run an arm with so many requests at once, each of `prompt` tokens that no other has, and `tokens` generated.

    Args:
        texts: whose tokens the prompts are made of.

    Raises:
        RunFailed: the server does not start, or answers with an error.
    """
    with started(arm.command, log, arm_environment(arm)) as server:
        words = server.tokens(" ".join(texts.values()))
        prompts = [
            [words[(17 * number + 7 * place) % len(words)] for place in range(prompt)] for number in range(parallel)
        ]
        server.complete(PROMPTS["warm-up"], 16)
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            done = list(pool.map(lambda text: server.complete(text, tokens), prompts))
        seconds = time.perf_counter() - began
    generated = sum(one.generated_tokens for one in done)
    whole = generated + sum(one.prompt_tokens for one in done)
    return [Result(GENERATED, generated / seconds, None, ""), Result(ALL, whole / seconds, None, "")]
