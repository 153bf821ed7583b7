"""How fast Python's bindings of llama.cpp read a prompt and generate, one beside the other in one run.

    python docs/studies/bindings_speed.py MODEL.gguf --rounds 5 --threads 2 \
        llama.cpp=PYTHON ik_llama.cpp=PYTHON llama-cpp-python=PYTHON xllamacpp=PYTHON ...

PYTHON is the interpreter of a virtual environment that has the package. Each round starts one process for each of them,
in another order every time; a process loads the model, warms up, reads a prompt of about 500 tokens and generates 128
tokens greedily, through the package's own interface for that. The table has the medians, with the lowest and the
highest round. Nothing else should compute meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

TOKENS = 128
WORDS = 500
"""Of the prompt; each is a token of SmolLM2, which begins a text with no other."""
CONTEXT = 1024
MARK = '{"prompt"'
COUNTING = "1, 2, 3, 4, 5, 6, 7, 8,"
Complete = Callable[[str, int], Any]


def _forkyard(engine: str, model: str, threads: int) -> Complete:
    from forkyard_llm import Llama

    llm = Llama(model, engine=engine, n_ctx=CONTEXT, n_threads=threads)
    return lambda prompt, count: llm(prompt, max_tokens=count, temperature=0)


def _llama_cpp_python(model: str, threads: int) -> Complete:
    from llama_cpp import Llama

    llm = Llama(model, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)
    return lambda prompt, count: llm(prompt, max_tokens=count, temperature=0)


def _ik_llama_cpp_python(model: str, threads: int) -> Complete:
    from ik_llama_cpp import IkLlama

    llm = IkLlama(model, n_ctx=CONTEXT, n_threads=threads, verbose=False)
    return lambda prompt, count: llm.generate(llm.tokenize(prompt), max_tokens=count, temperature=0.0)


def _xllamacpp(model: str, threads: int) -> Complete:
    import xllamacpp as package

    params = package.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = model, CONTEXT, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = package.Server(params)
    return lambda prompt, count: server.handle_completions(
        {"prompt": prompt, "max_tokens": count, "temperature": 0, "cache_prompt": False}
    )


ARMS: dict[str, Callable[[str, int], Complete]] = {
    "llama.cpp": lambda *given: _forkyard("llama.cpp", *given),
    "ik_llama.cpp": lambda *given: _forkyard("ik_llama.cpp", *given),
    "llama-cpp-python": _llama_cpp_python,
    "ik-llama-cpp-python": _ik_llama_cpp_python,
    "xllamacpp": _xllamacpp,
}


def child(name: str, model: str, threads: int) -> None:
    """One round of one package: seconds for the prompt, and for the tokens after it."""
    complete = ARMS[name](model, threads)
    complete(COUNTING, 8)

    def seconds(prompt: str, count: int) -> float:
        begun = time.perf_counter()
        complete(prompt, count)
        return time.perf_counter() - begun

    words = random.Random(1).choices(("the", "cat", "sat", "on", "a", "red", "mat", "and", "ran", "home"), k=WORDS)  # noqa: S311
    reading = seconds(" ".join(words), 1)
    # With and without the tokens whose time is wanted.
    short = seconds(COUNTING, 1)
    print(json.dumps({"prompt": reading, "generation": seconds(COUNTING, TOKENS + 1) - short}))


def main() -> None:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("arms", nargs="+", metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    arms = dict(arm.split("=", 1) for arm in given.arms)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(given.rounds):
        order = list(arms)
        random.Random(number).shuffle(order)  # noqa: S311
        for name in order:
            words = [arms[name], __file__, given.model, "--threads", str(given.threads), f"child:{name}=x"]
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            (found,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith(MARK))
            rates[name].append((WORDS / found["prompt"], TOKENS / found["generation"]))
    print("| binding | prompt, tokens/s | generation, tokens/s |\n| --- | --- | --- |")
    for name, rounds in sorted(rates.items(), key=lambda one: -statistics.median(rate for _, rate in one[1])):
        cells = (
            f"{statistics.median(rates):.0f} ({min(rates):.0f} .. {max(rates):.0f})"
            for rates in zip(*rounds, strict=True)
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if "child:" in sys.argv[-1]:
        child(sys.argv[-1].removeprefix("child:").removesuffix("=x"), sys.argv[1], int(sys.argv[3]))
    else:
        main()
