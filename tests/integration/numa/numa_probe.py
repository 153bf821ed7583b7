"""Run operations on one payload and write a line of JSON per case; a child process, as NUMA is chosen once for each.

Usage: numa_probe.py REQUEST ANSWERS. The request is a file with
{"payload": FOLDER, "libraries": {NAME: PATH, ...}, "strategy": 0|4|5, "what": BITS or null, "device": "HOST:PORT",
"parse": [WORDS], "cases": [CASE, ...]}

A case is {"name", "model", "mmap", "model_params", "adapter", "contexts": [CONTEXT, ...], "ops": [OP, ...]}; a context is
{"n_ctx", "n_ubatch", "seqs", "threads", "k", "v", "flash", "pool", "peek", "params"}. With "parallel" each context gets
a thread that runs its operations. A model stays loaded as long as the next case wants the same one, unless a case says
"fresh". All contexts of a case are new. The last line, without a name, is about the time after all is unloaded.

An operation is a list: its word, the number of its context, arguments:
  decode [[SEQ, TOKENS], ...]   behind what each sequence has; yields the hash of all logits
  shift SEQ N                   forget the first N tokens and move the others down
  cut SEQ N                     forget the last N tokens
  drop SEQ | keep SEQ | copy SEQ SEQ | clear BOOL
  save SLOT | restore SLOT | save_seq SEQ SLOT | restore_seq SLOT SEQ
  adapter SCALE
  poke                          change a byte of the weight that a context with "peek" watches, at its primary
Yields are compared between engines; what the mirror says of itself goes to "report", taken while the contexts live,
and "huge" is what was asked of the kernel then.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import probe_engines

PEEKED = b"blk.0.ffn_up.weight"


class Peek:
    """Callbacks that find a weight's address before a graph runs, and read from it while the graph runs.

    The address is the one that everybody knows, the primary's. A mirrored engine that guards its primaries must not
    let this pass.
    """

    def __init__(self, abi: Any) -> None:
        self.address = 0
        self.reads = 0
        fields = dict(abi.llama_context_params._fields_)
        self.callbacks = {
            "cb_eval": fields["cb_eval"](self._look),
            "abort_callback": fields["abort_callback"](self._read),
        }

    def _look(self, tensor: Any, ask: bool, _: Any) -> bool:
        source = tensor.contents.src[0]
        if source and source.contents.name == PEEKED:
            self.address = source.contents.data
        return not ask

    def _read(self, _: Any) -> bool:
        if self.address:
            ctypes.c_uint8.from_address(self.address).value  # noqa: B018
            self.reads += 1
        return False


class Context:
    """A context and what it takes to say operations without positions: the length of each sequence."""

    def __init__(self, engine: Any, model: Any, spec: Mapping[str, Any], adapter: Any) -> None:
        self._engine = engine
        self._lora = adapter
        self._peek = Peek(engine.abi) if spec.get("peek") else None
        self._handle = engine.context(model, spec, self._peek.callbacks if self._peek else {})
        self._pool = engine.attach_pool(self._handle, spec.get("threads", 1)) if spec.get("pool") else None
        self._n_vocab = engine.n_vocab(model)
        self._lengths: dict[int, int] = {}
        self._slots: dict[int, tuple[bytes, dict[int, int]]] = {}

    def run(self, word: str, *arguments: Any) -> str:
        """Do one operation; what it yields says all that another engine must agree with."""
        result = getattr(self, f"_{word}")(*arguments)
        return word if result is None else f"{word} {result}"

    def close(self) -> dict[str, Any]:
        self._engine.free(self._handle)
        if self._pool:
            self._engine.free_pool(self._pool)
        return {"reads": self._peek.reads} if self._peek else {}

    def _decode(self, parts: Sequence[tuple[int, Sequence[int]]]) -> str:
        placed = [(seq, self._lengths.get(seq, 0), tokens) for seq, tokens in parts]
        result: str = self._engine.decode(self._handle, placed, self._n_vocab)
        if not result.startswith("error"):
            self._lengths.update({seq: position + len(tokens) for seq, position, tokens in placed})
        return result

    def _shift(self, seq: int, count: int) -> str | None:
        if not self._engine.remove(self._handle, seq, 0, count):
            return "refused"
        self._engine.move(self._handle, seq, count, -count)
        self._lengths[seq] -= count
        return None

    def _cut(self, seq: int, count: int) -> str | None:
        start = self._lengths[seq] - count
        if not self._engine.remove(self._handle, seq, start, -1):
            return "refused"
        self._lengths[seq] = start
        return None

    def _drop(self, seq: int) -> str | None:
        if not self._engine.remove(self._handle, seq, -1, -1):
            return "refused"
        self._lengths.pop(seq, None)
        return None

    def _keep(self, seq: int) -> None:
        self._engine.keep(self._handle, seq)
        # llama.cpp keeps sequences that have a part of the cache to themselves, whatever is said of another.
        for other in set(self._lengths) - {seq}:
            self._engine.remove(self._handle, other, -1, -1)
        self._lengths = {seq: self._lengths.get(seq, 0)}

    def _copy(self, source: int, target: int) -> None:
        self._engine.remove(self._handle, target, -1, -1)
        self._engine.copy(self._handle, source, target)
        self._lengths[target] = self._lengths.get(source, 0)

    def _clear(self, data: bool) -> None:
        self._engine.clear(self._handle, data)
        self._lengths.clear()

    def _save(self, slot: int) -> str | None:
        state = self._engine.save(self._handle, None)
        self._slots[slot] = (state, dict(self._lengths))
        return hashlib.sha256(state).hexdigest() if self._engine.state_is_reproducible else None

    def _restore(self, slot: int) -> str | None:
        state, lengths = self._slots[slot]
        if not self._engine.restore(self._handle, state, None):
            return "refused"
        self._lengths = dict(lengths)
        return None

    def _save_seq(self, seq: int, slot: int) -> str:
        state = self._engine.save(self._handle, seq)
        self._slots[slot] = (state, {seq: self._lengths.get(seq, 0)})
        return f"{len(state)} {hashlib.sha256(state).hexdigest()}"

    def _restore_seq(self, slot: int, seq: int) -> str | None:
        state, lengths = self._slots[slot]
        (length,) = lengths.values()
        self._engine.remove(self._handle, seq, -1, -1)
        self._lengths.pop(seq, None)
        if not self._engine.restore(self._handle, state, seq):
            return "refused"
        self._lengths[seq] = length
        return None

    def _poke(self) -> None:
        assert self._peek is not None
        # Behind the scale of a block: a value becomes another one, and none becomes infinite.
        ctypes.c_uint8.from_address(self._peek.address + 8).value ^= 0x40

    def _adapter(self, scale: float) -> None:
        self._engine.use_adapter(self._handle, self._lora, scale)


class Models:
    """The model loaded last, which the next case may want again."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._key = ""
        self._model: Any = None
        self._adapter: Any = None

    def get(self, case: Mapping[str, Any]) -> tuple[Any, Any]:
        """Model and adapter (or None) of a case."""
        key = json.dumps([case.get(name) for name in ("model", "mmap", "model_params", "adapter")])
        if key != self._key or case.get("fresh"):
            self.close()
            self._model = self._engine.load(case["model"], case)
            self._adapter = self._engine.adapter(self._model, case["adapter"]) if case.get("adapter") else None
            self._key = key
        return self._model, self._adapter

    def close(self) -> None:
        if self._model:
            # Takes its adapters with it.
            self._engine.free_model(self._model)
        self._model, self._key = None, ""


def run_case(engine: Any, models: Models, case: Mapping[str, Any]) -> dict[str, Any]:
    """What a case yields, in the order of its operations, and the report."""
    try:
        model, adapter = models.get(case)
        contexts = [Context(engine, model, spec, adapter) for spec in case["contexts"]]
    except probe_engines.Refused as refusal:
        return {"name": case["name"], "refused": str(refusal)}
    if engine.mirror.there:
        engine.mirror.reset_counters()
    results: list[str | None] = [None] * len(case["ops"])

    def run(wanted: int | None) -> None:
        for number, (word, index, *arguments) in enumerate(case["ops"]):
            if wanted in (None, index):
                results[number] = contexts[index].run(word, *arguments)

    if case.get("parallel"):
        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(contexts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        run(None)
    report = engine.mirror.report()
    huge = bytes_of_huge_pages()
    seen = [context.close() for context in contexts]
    return {"name": case["name"], "results": results, "report": report, "huge": huge, "seen": seen}


def bytes_of_huge_pages() -> int:
    """Bytes of this process for which huge pages were asked for, whether there are any or not."""
    asked, size = 0, 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        word, *values = line.split()
        if word == "Size:":
            size = int(values[0]) * 1024
        elif word == "VmFlags:" and "hg" in values:
            asked += size
    return asked


def main(argv: Sequence[str]) -> None:
    request = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    engine = probe_engines.engine(Path(request["payload"]), request["libraries"])
    engine.start(request["strategy"], request.get("what"))
    if request.get("device"):
        engine.use_device(request["device"])
    models = Models(engine)
    # Not standard output: engines print there, too.
    with Path(argv[1]).open("w", encoding="utf-8") as answers:
        for case in request["cases"]:
            print(json.dumps(run_case(engine, models, case)), file=answers, flush=True)
        models.close()
        parsed = [engine.mirror.parse(words) for words in request.get("parse", ())]
        print(json.dumps({"name": None, "report": engine.mirror.report(), "parsed": parsed}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1:])
