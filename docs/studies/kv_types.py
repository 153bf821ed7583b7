"""Measure what a format of the KV cache costs a real model, before the format exists.

The engine runs the model with an f16 cache. Each time it has written rows of K or V into the cache, this program
takes them, rotates them as the engine rotates for its own quantized types, sends them through a coder of kv_coders.py,
rotates them back and writes what a reader of that format would see into the cache. All else is the engine's own work.
The result is the Kullback-Leibler divergence (KLD) of the next token's distribution from that of the same engine
with its f16 cache untouched. kv-types.md says what came out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from forkyard_llm import loading, models, select
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import kv_coders
from kv_coders import Coder, Floats, Ints

_F32, _F16, _I64 = 0, 1, 27  # ggml's numbers of these types


@dataclass(frozen=True)
class Setting:
    """What is stored how: a coder for K and one for V, and what stays exact."""

    k: str
    v: str
    tail: int = 0
    sinks: int = 0
    gain_k: float = 1.0
    gain_v: float = 1.0
    engine: bool = False  # let the engine's own type do it, without emulation
    rotated: bool = True
    centred: bool = False  # K less a constant vector of its layer and head, which no softmax notices

    @property
    def name(self) -> str:
        """One word for file names and tables."""
        extra = [f"tail{self.tail}"] * (self.tail > 0) + [f"sinks{self.sinks}"] * (self.sinks > 0)
        extra += [f"gk{self.gain_k:g}"] * (self.gain_k != 1) + [f"gv{self.gain_v:g}"] * (self.gain_v != 1)
        extra += ["engine"] * self.engine + ["plain"] * (not self.rotated) + ["centred"] * self.centred
        return "+".join([self.k if self.k == self.v else f"{self.k}/{self.v}", *extra])

    @classmethod
    def parse(cls, name: str) -> Setting:
        """The setting of a `name`."""
        types, *extra = name.split("+")
        k, _, v = types.partition("/")
        fields: dict[str, Any] = {"k": k, "v": v or k}
        for word in extra:
            if word in ("engine", "plain", "centred"):
                fields |= {"rotated": False} if word == "plain" else {word: True}
                continue
            key = word.rstrip("0123456789.")
            number = word[len(key) :]
            names = {"tail": "tail", "sinks": "sinks", "gk": "gain_k", "gv": "gain_v"}
            fields[names[key]] = float(number) if key.startswith("g") else int(number)
        return cls(**fields)


@dataclass
class Hook:
    """Changes rows of the cache after the engine wrote them; inactive while `setting` is None."""

    head: dict[str, int]
    """Head size of K and of V."""
    setting: Setting | None = None
    coders: dict[str, Coder] = field(default_factory=dict)
    taken: dict[str, list[Floats]] | None = None
    """Where rotated rows are collected, if they are."""
    centres: dict[str, Floats] = field(default_factory=dict)
    """The vectors (heads, head size) of K's layers ("k0" ...) that centred settings subtract, rotated."""
    errors: list[BaseException] = field(default_factory=list)

    def use(self, setting: Setting | None) -> None:
        """Emulate `setting` from now on."""
        self.setting = setting
        if setting is not None:
            self.coders = {"k": kv_coders.make(setting.k), "v": kv_coders.make(setting.v)}

    def wants(self, node: Any) -> bool:
        """Whether the engine should stop after this node."""
        return (self.setting is not None or self.taken is not None) and self._which(node) is not None

    @staticmethod
    def _which(node: Any) -> str | None:
        name = node.name or (node.view_src.contents.name if node.view_src else b"")
        return {b"cache_k": "k", b"cache_v": "v"}.get(name[:7])

    def after(self, node: Any) -> None:
        """Replace what the engine just wrote by `node`."""
        which = self._which(node)
        assert which is not None
        source, index = node.src[0].contents, node.src[1].contents
        assert (node.type, source.type, index.type) == (_F16, _F32, _I64), "not the rows this program knows"
        width, tokens = source.ne[0], source.ne[1]
        assert source.nb[1] == 4 * width, "rows that are not contiguous"
        rows = _array(source.data, ctypes.c_float, (tokens, width)).reshape(tokens, -1, self.head[which])
        places = _array(index.data, ctypes.c_int64, (tokens,))
        cache = _array(node.data, ctypes.c_uint16, (node.ne[1], width)).view(np.float16)
        size = self.head["k"] & -self.head["k"] if which == "k" else 64
        layer = which + node.view_src.contents.name.decode().rsplit("_l", 1)[-1]
        if self.taken is not None:
            self.taken.setdefault(layer, []).append(kv_coders.rotate(rows, size))
        if self.setting is None:
            return
        setting, coder = self.setting, self.coders[which]
        if setting.tail:
            places = due(int(places[0]), tokens, setting.tail, setting.sinks)
            rows = cache[places].astype(np.float32).reshape(-1, *rows.shape[1:])
        else:
            rows, places = rows[places >= setting.sinks], places[places >= setting.sinks]
        if not len(places):
            return
        gain = setting.gain_k if which == "k" else setting.gain_v
        turned = kv_coders.rotate(rows, size) if setting.rotated else rows
        assert setting.rotated or not setting.centred, "centres are rotated rows"
        centre = self.centres[layer] if setting.centred and which == "k" else np.float32(0)
        read = coder(turned - centre) * np.float32(gain) + centre
        cache[places] = (kv_coders.rotate(read, size) if setting.rotated else read).reshape(len(places), width)


def due(batch_start: int, batch: int, tail: int, sinks: int) -> Ints:
    """Places that leave an exact tail when a batch is decoded: its tokens still see at least `tail` exact ones."""
    first = batch_start - tail
    return np.arange(max(first - batch, sinks, 0), max(first, 0))


def _array(address: int, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((kind * count).from_address(address)).reshape(shape)


class Model:
    """A model in the engine, with contexts whose caches a hook may change."""

    def __init__(self, path: Path, threads: int) -> None:
        self._engine = loading.load(select("llama.cpp"))
        self._api, self._abi, self._threads = self._engine.api, self._engine.abi, threads
        self._engine.start()
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise SystemExit(f"the engine cannot load {path}")
        self.vocab = int(self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model)))
        self.hook = Hook({"k": self._number("attention.key_length"), "v": self._number("attention.value_length")})
        self._contexts: dict[tuple[int, int, str, str], Any] = {}
        self._callback = self._abi.ggml_backend_sched_eval_callback(self._called)

    def _number(self, key: str) -> int:
        def text(name: str) -> str:
            buffer = ctypes.create_string_buffer(64)
            found = self._api.llama_model_meta_val_str(self._model, name.encode(), buffer, 64)
            return buffer.value.decode() if found >= 0 else ""

        arch = text("general.architecture")
        value = text(f"{arch}.{key}")
        return (
            int(value) if value else int(text(f"{arch}.embedding_length")) // int(text(f"{arch}.attention.head_count"))
        )

    def _called(self, node: Any, ask: bool, _: Any) -> bool:
        try:
            tensor = node.contents
            if tensor.op != self._abi.GGML_OP_SET_ROWS:
                return not ask
            if ask:
                return self.hook.wants(tensor)
            self.hook.after(tensor)
        except BaseException as error:  # noqa: BLE001 - it must not cross the engine; raised after the batch
            self.hook.errors.append(error)
            return False
        return True

    def tokens(self, text: str) -> list[int]:
        """The whole text as tokens, without a beginning-of-sequence token."""
        data = text.encode()
        out = (ctypes.c_int32 * (len(data) + 2))()
        vocab = self._api.llama_model_get_vocab(self._model)
        return list(out[: self._api.llama_tokenize(vocab, data, len(data), out, len(out), False, False)])

    @property
    def bos(self) -> int | None:
        """The token every window begins with, if the model wants one."""
        vocab = self._api.llama_model_get_vocab(self._model)
        return int(self._api.llama_vocab_bos(vocab)) if self._api.llama_vocab_get_add_bos(vocab) else None

    def _context(self, size: int, batch: int, k: str, v: str) -> Any:
        key = (size, batch, k, v)
        if key not in self._contexts:
            kinds = self._abi.ENUMS["ggml_type"]
            params = self._api.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = size, batch, batch, 1
            params.n_threads = params.n_threads_batch = self._threads
            params.flash_attn_type = 1
            params.swa_full = True  # so that a row's place is its position in every layer
            params.type_k, params.type_v = kinds[f"GGML_TYPE_{k.upper()}"], kinds[f"GGML_TYPE_{v.upper()}"]
            params.cb_eval = self._callback
            context = self._api.llama_init_from_model(self._model, params)
            if not context:
                raise SystemExit(f"the engine refuses a context of {size} tokens with K {k} and V {v}")
            self._contexts[key] = context
        return self._contexts[key]

    def logits(self, tokens: Sequence[int], setting: Setting | None, scored: int, batch: int) -> Floats:
        """Logits (scored, vocabulary) of the last `scored` tokens of a window, under `setting` (None: plain f16)."""
        own = setting is not None and setting.engine
        kinds = (setting.k, setting.v) if setting is not None and own else ("f16", "f16")
        context = self._context(len(tokens), batch, *kinds)
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)
        self.hook.use(None if own else setting)
        out = np.empty((scored, self.vocab), np.float32)
        done = 0
        given = self._api.llama_batch_init(batch, 0, 1)
        for at in range(0, len(tokens), batch):
            part = tokens[at : at + batch]
            given.n_tokens = len(part)
            for i, token in enumerate(part):
                given.token[i], given.pos[i], given.n_seq_id[i], given.seq_id[i][0] = token, at + i, 1, 0
                given.logits[i] = at + i >= len(tokens) - scored
            status = self._api.llama_decode(context, given)
            if self.hook.errors:
                raise self.hook.errors[0]
            assert status == 0, f"llama_decode answers {status}"
            count = min(len(part), max(0, at + len(part) - (len(tokens) - scored)))
            if count:
                source = ctypes.cast(self._api.llama_get_logits(context), ctypes.c_void_p).value
                out[done : done + count] = _array(source or 0, ctypes.c_float, (count, self.vocab))
                done += count
        self._api.llama_batch_free(given)
        return out


def text() -> str:
    """Half a million characters of English that every Python has."""
    from pydoc_data import topics

    return "\n".join(topics.topics.values())


def _log_softmax(logits: Floats) -> Floats:
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits


def divergence(base: Floats, other: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """KLD in nats of each row of log probabilities `other` from `base`, and whether both prefer the same token."""
    kld = np.empty(len(base), np.float32)
    for i, (p, q) in enumerate(zip(base, other, strict=True)):
        kld[i] = np.exp(p) @ (p - q)
    return kld, base.argmax(1) == other.argmax(1)


class Results:
    """What was measured, a JSON file for each setting in the folder of a model and a context; runs add windows."""

    def __init__(self, folder: Path, model: str, context: int, batch: int) -> None:
        suffix = f"-{batch}" if batch != context else ""
        self.folder = folder / f"{model}-{context}{suffix}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file of a setting."""
        return self.folder / (name.replace("/", "__") + ".json")

    def load(self, name: str) -> dict[str, Any]:
        """Everything measured of a setting: {"windows": {number: {"kld": [...], "same": [...]}}}."""
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else {"windows": {}}

    def add(self, name: str, window: int, kld: Floats, same: NDArray[np.bool_]) -> None:
        """Keep one window; the file appears by renaming."""
        data = self.load(name)
        data["windows"][str(window)] = {"kld": [float(f"{x:.4g}") for x in kld], "same": int(same.sum())}
        fresh = self.path(name).with_suffix(".new")
        fresh.write_text(json.dumps(data))
        fresh.rename(self.path(name))


def measure(
    model: Model, results: Results, context: int, batch: int, windows: int, settings: Sequence[Setting]
) -> None:
    """Measure every setting on every window that has no result yet."""
    tokens = model.tokens(text())
    windows = min(windows, len(tokens) // context)
    for window in range(windows):
        missing = [s for s in settings if str(window) not in results.load(s.name)["windows"]]
        if not missing:
            continue
        part = tokens[window * context : (window + 1) * context]
        if model.bos is not None:
            part = [model.bos, *part[1:]]
        base = _log_softmax(model.logits(part, None, context // 2, batch))
        for setting in missing:
            began = time.process_time()
            kld, same = divergence(base, _log_softmax(model.logits(part, setting, context // 2, batch)))
            results.add(setting.name, window, kld, same)
            spent = time.process_time() - began
            print(f"window {window} {setting.name}: {kld.mean():.5f} ({spent:.1f} s of CPU)", flush=True)


def summary(data: dict[str, Any], only: Sequence[str] | None = None) -> dict[str, float]:
    """Figures of one setting; the standard error counts windows as independent, as tokens of one are not."""
    windows = {k: w for k, w in data["windows"].items() if only is None or k in only}
    kld = np.concatenate([w["kld"] for w in windows.values()])
    means = np.array([np.mean(w["kld"]) for w in windows.values()])
    return {
        "mean": float(kld.mean()),
        "error": float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan"),
        "median": float(np.median(kld)),
        "p99": float(np.quantile(kld, 0.99)),
        "p99.9": float(np.quantile(kld, 0.999)),
        "same": sum(w["same"] for w in windows.values()) / len(kld),
        "windows": len(windows),
    }


def table(results: Results, head: int, names: Sequence[str], relative_to: str | None) -> str:
    """A Markdown table of what was measured, on the windows that all of the named settings have."""
    loaded = {name: results.load(name) for name in names}
    loaded = {name: data for name, data in loaded.items() if data["windows"]}
    shared = set.intersection(*(set(data["windows"]) for data in loaded.values()))
    figures = {name: summary(data, sorted(shared)) for name, data in loaded.items()}
    unit = figures[relative_to]["mean"] if relative_to else 1.0
    lines = ["| setting | bits K, V | mean | error | median | 99 % | 99.9 % | same top token | mean, relative |"]
    lines.append("| --- |" + " --- |" * 8)
    for name, f in figures.items():
        setting = Setting.parse(name)
        bits = [f"{kv_coders.make(coder).bits(head):.3f}" for coder in (setting.k, setting.v)]
        shown = ", ".join(dict.fromkeys(bits))
        ratio = f"{f['mean'] / unit:.2f}" if relative_to else ""
        lines.append(
            f"| {name} | {shown} | {f['mean']:.5f} | {f['error']:.5f} | {f['median']:.5f} | {f['p99']:.4f} |"
            f" {f['p99.9']:.4f} | {f['same']:.4f} | {ratio} |"
        )
    return "\n".join([*lines, f"({len(shared)} windows)"])


def rows(model: Model, context: int, windows: int) -> dict[str, Floats]:
    """Rotated rows (tokens, heads, head size) of K and of V by layer ("k0", "v0" ...), 128 tokens of each window."""
    tokens = model.tokens(text())
    out: dict[str, list[Floats]] = {}
    for window in range(windows):
        model.hook.taken = {}
        model.logits(tokens[window * context : (window + 1) * context], None, 1, context)
        for name, taken in model.hook.taken.items():
            out.setdefault(name, []).append(np.concatenate(taken)[-128:])
    model.hook.taken = None
    return {name: np.concatenate(parts) for name, parts in out.items()}


def set_centres(model: Model, context: int) -> None:
    """Take K's mean over the tokens of the text's last window, which nothing is measured on, as centres."""
    tokens = model.tokens(text())
    model.hook.taken = {}
    model.logits(tokens[-context:], None, 1, context)
    for name, taken in model.hook.taken.items():
        if name[0] == "k":
            model.hook.centres[name] = np.concatenate(taken)[4:].mean(0)  # the first tokens are unlike all others
    model.hook.taken = None


def kurtosis(rows_: Floats) -> float:
    """Mean fourth power of the values of rows that are scaled to a mean square of 1; 3 for a Gaussian."""
    scale = np.sqrt(np.square(rows_).mean(-1, keepdims=True))
    return float(((rows_ / scale) ** 4).mean())


def main() -> None:
    """Run one part of the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["measure", "table", "rows", "gauss"])
    parser.add_argument("names", nargs="*", help="settings (measure, table) or coders (rows, gauss)")
    parser.add_argument("--model", default="smollm2-135m", help="a known model's name, or a .gguf file")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=0, help="tokens decoded at once; the context by default")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--relative-to", help="the setting whose mean is 1 in a table")
    parser.add_argument("--results", type=Path, default=Path("kv-results"))
    given = parser.parse_intermixed_args()
    if given.part == "gauss":
        rng = np.random.default_rng(5)
        sample = rng.standard_normal((2048, 1, 128)).astype(np.float32)
        for name in given.names:
            coder = kv_coders.make(name)
            d = kv_coders.distortion(sample, coder(sample))
            print(f"| {name} | {coder.bits(64):.3f} | {coder.bits(128):.3f} | {d:.5f} |", flush=True)
        return
    path = models.resolve(given.model)
    stem, batch = path.stem.lower(), given.batch or given.context
    results = Results(given.results, stem, given.context, batch)
    if given.part == "table":
        head = 256 if "gemma" in stem else 64
        print(table(results, head, given.names, given.relative_to))
        return
    model = Model(path, given.threads)
    if given.part == "measure":
        settings = [Setting.parse(n) for n in given.names]
        if any(s.centred for s in settings):
            set_centres(model, given.context)
        measure(model, results, given.context, batch, given.windows, settings)
        return
    taken = rows(model, given.context, given.windows)
    for which in "kv":
        turned = [r for key, r in taken.items() if key[0] == which]
        size = (model.hook.head["k"] & -model.hook.head["k"]) if which == "k" else 64
        found = [np.mean([kurtosis(kv_coders.rotate(r, size)) for r in turned]), np.mean([kurtosis(r) for r in turned])]
        print(f"| kurtosis of {which} as it is, rotated | {found[0]:.2f} | {found[1]:.2f} |")
    for name in given.names:
        coder = kv_coders.make(name)
        for which in "kv":
            shown = [kv_coders.distortion(r, coder(r)) for key, r in taken.items() if key[0] == which]
            print(f"| {name} | {which} | {np.mean(shown):.5f} | {max(shown):.5f} |", flush=True)


if __name__ == "__main__":
    main()
