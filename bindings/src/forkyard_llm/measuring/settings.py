"""What `tune` tries beside payload and threads, as data: the values that make sense here, and how to ask for them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..cache_advice import bytes_per_token
from ..gguf_reader import GgufSummary
from .engine import SERVER, Engine
from .kv import read_cache
from .kv_table import SINKS
from .machine import core_sets, free_memory, read_nodes

__all__ = ["FIT", "PLAIN", "Host", "Setting", "settings"]

PLAIN = "engine's"
"""The value of a setting that is left to the engine."""
FIT = "fit"
"""The value of GPU layers that leaves them to the engine's `--fit`."""
_MARGIN_MIB = "1024"
"""What `--fit` leaves free on each device, as llama-server of llama.cpp does."""
_CACHES = ("f16", "q8_0", "ftq4", "ftq4+128", "q4_0", "q4_0+128")

Words = Callable[[str, Engine], tuple[str, ...]]


@dataclass(frozen=True)
class Host:
    """What decides here which values make sense."""

    nodes: int
    """Memory nodes."""
    memory: int | None
    """Bytes that may be used; None: unknown."""
    core_sets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Some of the processors, by a name: one of each core, the fast ones."""
    numactl: bool = False

    @classmethod
    def here(cls, memory: int | None = None) -> Host:
        """This machine; `memory` is a limit that the user sets."""
        free = free_memory()
        limits = [one for one in (free, memory) if one is not None]
        return cls(
            len(read_nodes()), min(limits) if limits else None, core_sets(), numactl=shutil.which("numactl") is not None
        )


def _flag(*options: str) -> Words:
    """Options that all take the value."""
    return lambda value, _: tuple(word for one in options for word in (one, value))


def _nothing(_: str, __: Engine) -> tuple[str, ...]:
    return ()


def _having(option: str) -> Callable[[str, Engine], bool]:
    """Whether an engine's llama-bench has an option."""
    return lambda _, engine: option in engine.options


@dataclass(frozen=True)
class Setting:
    """One thing that can be chosen."""

    name: str
    default: str
    values: tuple[str, ...]
    has: Callable[[str, Engine], bool]
    """Whether an engine can do a value that is not the default."""
    # The words of the default are not asked for, as it is what happens without any, unless `always` is set.
    bench: Words = _nothing
    """Arguments of llama-bench for a value."""
    server: Words = _nothing
    """Arguments of llama-server."""
    python: Callable[[str], Mapping[str, object]] | None = None
    """Keywords of `Llama`; None: it has none."""
    variable: str = ""
    """An environment variable that gets the value."""
    prefix: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What stands before the program, for some values."""
    always: bool = False
    ordered: bool = False
    lossy: bool = False
    """Whether other values change what the model says."""
    memory: Callable[[str, Engine], int] = lambda _, __: 0
    """Bytes that a value needs, the default as well."""


def settings(
    engines: Sequence[Engine], host: Host, model: GgufSummary | None, *, prompt: int, tokens: int, lossy: bool
) -> tuple[list[Setting], list[str]]:
    """The settings that can matter here, the most important first, and why others are not tried.

    Args:
        model: None leaves out what depends on it.
        prompt: tokens of a prompt.
        tokens: tokens in the cache, of all requests at once.
        lossy: whether what costs quality may be tried.
    """
    found, reasons = list[Setting](), list[str]()
    for one in (
        *_of_devices(engines, model, reasons),
        *_of_processor(host, model, prompt, reasons),
        *_of_cache(engines, model, tokens, lossy, reasons),
        *_of_family(model),
    ):
        having = [engine for engine in engines if any(one.has(value, engine) for value in one.values)]
        if having and len(one.values) > 1:
            found.append(one)
            reasons += [
                f"{one.name}: {engine.recipe} {engine.variant} has none" for engine in engines if engine not in having
            ]
        else:
            why = "no payload has it" if len(one.values) > 1 else "one value makes sense for this workload"
            reasons.append(f"{one.name}: {why}")
    return found, reasons


def _of_processor(host: Host, model: GgufSummary | None, prompt: int, reasons: list[str]) -> Iterator[Setting]:
    # What is larger than the prompt computes it at once, as the smallest of them does.
    ubatches = tuple(
        one for one in ("64", "128", "256", "512", "1024", "2048") if int(one) // 2 < prompt or one == "512"
    )
    yield Setting(
        "ubatch",
        "512",
        ubatches,
        _having("-ub"),
        _flag("-ub"),
        _flag("-ub"),
        lambda one: {"n_ubatch": int(one)},
        ordered=True,
    )
    yield Setting(
        "flash attention",
        PLAIN,
        (PLAIN, "off", "on"),
        _having("-fa"),
        _flash,
        _flash,
        lambda one: {"flash_attn": one == "on"},
    )
    size = model.model_bytes or model.file_size if model else 0
    if host.nodes > 1:
        ways = (PLAIN, "distribute", "isolate", "mirror", "split", *(["interleave"] if host.numactl else []))
        yield Setting(
            "NUMA",
            PLAIN,
            ways,
            lambda one, engine: _mode(one) in engine.modes,
            lambda one, _: ("--numa", _mode(one)),
            lambda one, _: ("--numa", _mode(one)),
            lambda one: {"numa": _mode(one)},
            prefix={"interleave": ("numactl", "--interleave=all")},
            memory=lambda one, _: size * host.nodes if one == "mirror" else 0,
        )
    else:
        reasons.append("NUMA modes and numactl: this machine has one node")
    yield Setting("poll", PLAIN, (PLAIN, "0", "100"), _having("--poll"), _flag("--poll"), _flag("--poll"))
    yield Setting(
        "run-time repack",
        PLAIN,
        (PLAIN, "1"),
        _having("-rtr"),
        _flag("-rtr"),
        lambda _, __: ("-rtr",),
        memory=lambda one, _: size if one == "1" else 0,
    )
    yield Setting(
        "load",
        PLAIN,
        (PLAIN, "memory"),
        lambda _, __: True,
        lambda _, engine: engine.load[False],
        _read,
        lambda _: {"use_mmap": False},
        memory=lambda one, _: size if one == "memory" else 0,
    )
    batches = tuple(one for one in ("512", "1024", "2048", "4096") if int(one) < prompt or one == "2048")
    yield Setting(
        "batch",
        "2048",
        batches,
        _having("-b"),
        _flag("-b"),
        _flag("-b"),
        lambda one: {"n_batch": int(one)},
        ordered=True,
    )
    if host.core_sets:
        masks = {name: hex(sum(1 << cpu for cpu in cpus)) for name, cpus in host.core_sets.items()}
        yield Setting(
            "CPUs",
            PLAIN,
            (PLAIN, *masks),
            _having("-C"),
            lambda one, _: ("-C", masks[one]),
            lambda one, _: ("-C", masks[one]),
        )
    else:
        reasons.append("CPU masks: this machine's processors are all alike")


def _of_cache(
    engines: Sequence[Engine], model: GgufSummary | None, tokens: int, lossy: bool, reasons: list[str]
) -> Iterator[Setting]:
    if not lossy:
        reasons.append("KV cache types: they cost quality (--lossy tries them, and measures how much)")
        return

    @functools.cache
    def has(value: str, bench: str) -> bool:
        (engine,) = (one for one in engines if str(one.bench) == bench)
        return engine.takes(*read_cache(value).words)

    def needs(value: str, engine: Engine) -> int:
        cache = read_cache(value)
        return tokens * bytes_per_token(model, engine.name, cache.k, cache.v) if model else 0

    yield Setting(
        "KV cache",
        "f16",
        _CACHES,
        lambda one, engine: has(one, str(engine.bench)),
        lambda one, _: read_cache(one).words,
        lambda one, _: read_cache(one).words,
        _cache_keywords,
        lossy=True,
        memory=needs,
    )


def _of_devices(engines: Sequence[Engine], model: GgufSummary | None, reasons: list[str]) -> Iterator[Setting]:
    devices = {str(one.bench): one.devices() for one in engines}
    most = max(map(len, devices.values()))
    if not most or model is None:
        reasons.append(
            "GPU layers, --fit, split modes, experts on the CPU, op-offload minimum: no payload finds a device"
        )
        return

    def any_of(engine: Engine) -> bool:
        return bool(devices[str(engine.bench)])

    def fits(engine: Engine) -> bool:
        return any_of(engine) and bool({"-fitt", "--fit"} & engine.options)

    def layers(value: str, engine: Engine, *, server: bool) -> tuple[str, ...]:
        if not any_of(engine):
            return ()
        if value == FIT and "--fit-margin" in engine.options:
            return ("-ngl", "999", *(("--fit",) if server else ("--fit", "1")))
        if value == FIT:
            return () if server else ("-fitt", _MARGIN_MIB)
        return ("-ngl", "999" if value == "all" else value)

    fitting = any(map(fits, engines))
    count = model.layers
    parts = sorted({count // 4, count // 2, 3 * count // 4} - {0})
    yield Setting(
        "GPU layers",
        FIT if fitting and (fits(engines[0]) or not any_of(engines[0])) else "all",
        (*([FIT] if fitting else []), "all", *map(str, parts), "0"),
        lambda one, engine: fits(engine) if one == FIT else any_of(engine),
        lambda one, engine: layers(one, engine, server=False),
        lambda one, engine: layers(one, engine, server=True),
        lambda one: {"n_gpu_layers": {FIT: "auto", "all": -1}.get(one) or int(one)},
        always=True,
    )
    if most > 1:
        modes = [
            one for one in ("layer", "none", "row", "tensor", "graph") if any(one in each.splits for each in engines)
        ]
        yield Setting(
            "split mode",
            "layer",
            tuple(modes),
            lambda one, engine: one in engine.splits and any_of(engine),
            _flag("-sm"),
            _flag("-sm"),
            lambda one: {"split_mode": one},
        )
    else:
        reasons.append("split modes: there is one device")
    experts = model.values.get(f"{model.architecture}.expert_count")
    if experts is not None and any(experts.numbers):
        yield Setting(
            "layers with experts on the CPU",
            "0",
            ("0", *map(str, parts), str(count)),
            lambda _, engine: any_of(engine) and "--n-cpu-moe" in engine.options,
            _flag("--n-cpu-moe"),
            _flag("--n-cpu-moe"),
            ordered=True,
        )
        yield Setting(
            "expert cache",
            PLAIN,
            (PLAIN, "auto"),
            _having("--expert-cache"),
            _flag("--expert-cache"),
            _flag("--expert-cache"),
        )
    yield Setting(
        "op-offload minimum",
        PLAIN,
        (PLAIN, "8", "128", "512", "2048"),
        lambda _, engine: any_of(engine) and engine.name == "llama.cpp",
        variable="GGML_OP_OFFLOAD_MIN_BATCH",
    )


def _of_family(model: GgufSummary | None) -> Iterator[Setting]:
    """What ik_llama.cpp alone has; some of it for some models."""
    if model is None:
        return
    name = model.architecture
    if f"{name}.attention.kv_lora_rank" in model.values:
        yield Setting("MLA", "3", ("0", "1", "2", "3"), _having("-mla"), _flag("-mla"), _flag("-mla"))
    if f"{name}.expert_count" in model.values:
        yield Setting(
            "fused experts", PLAIN, (PLAIN, "0"), _having("-fmoe"), _flag("-fmoe"), lambda _, __: ("-no-fmoe",)
        )


def _mode(value: str) -> str:
    """The word after ``--numa``; numactl says where memory is, and the engine must not say it again."""
    return "numactl" if value == "interleave" else value


def _flash(value: str, engine: Engine) -> tuple[str, ...]:
    on = engine.flash_attention
    return on if value == "on" else (on[0], "off" if on[1] == "on" else "0")


def _read(_: str, engine: Engine) -> tuple[str, ...]:
    return ("--load-mode", "none") if engine.reads("--load-mode", SERVER) else ("--no-mmap",)


def _cache_keywords(value: str) -> Mapping[str, object]:
    cache = read_cache(value)
    more = {"kv_tail_tokens": cache.tail, "kv_sink_tokens": SINKS} if cache.tail else {}
    return {"type_k": cache.k, "type_v": cache.v, **more}
