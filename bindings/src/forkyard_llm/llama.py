"""The one class most programs use: a model on whichever engine, with the API llama-cpp-python made familiar."""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from . import gguf_check
from .chat import chat_body, chat_chunks, chat_prompt, read_messages
from .checks import INT_MAX, flag, integer, token_ids
from .completion import Completion, Delta, collect, completion_body, completion_chunks, run, usage
from .completion_text import stop_strings
from .engines.cores import default_threads
from .engines.devices import Device, fitting_layers
from .engines.generation import Generation, check_prompt
from .engines.numa import numa_choice
from .engines.numa_mirror import NumaNode, NumaReport
from .engines.options import ModelOptions, check_engine_options
from .engines.rpc import addresses
from .engines.session import NO_TOKEN, Perf, Session
from .errors import AbiMismatch, EngineError, UsageError
from .loading import load
from .payloads import Payload
from .sampling import RANDOM_SEED, SamplingParams
from .selection import leave_out, select
from .text import to_engine

__all__ = ["Llama", "devices"]


def devices(
    engine: str = "auto",
    variant: str | None = None,
    *,
    rpc_servers: Sequence[str] = (),
    allow_remote_rpc: bool = False,
) -> tuple[Device, ...]:
    """What the payload of ``engine`` and ``variant`` can compute on, in its order, the CPU among them.

    Those of ``rpc_servers`` come last. The payload is loaded into this process, as :class:`Llama` would do it. Raises
    what that raises for payloads and servers.
    """
    servers = addresses(rpc_servers, allow_remote_rpc)
    loaded = load(select(engine, variant))
    return (*loaded.devices(), *loaded.remote_devices(servers))


class Llama:
    """A model loaded into this process.

    One ``Llama`` does one generation at a time: starting another one while a stream is open, from this thread or any
    other, raises :class:`EngineError` at once. Exhaust or close the stream first, or use one ``Llama`` per thread.
    Everything else may be called from any thread and waits for the token being computed, ``close`` included.

    Args:
        model_path: the GGUF file, of a split model the first; all are checked before the engine sees them.
        engine: ``auto``, ``llama.cpp``, ``ik_llama.cpp`` or the name of a payload distribution.
        variant: a variant of that engine (``avx512-vnni``); None takes the best this CPU can run.
        n_ctx: context size in tokens; 0 takes the model's own.
        n_batch, n_ubatch: prompt tokens handed over, and computed, at once; n_ubatch None for the engine's default.
        n_threads: threads that generate, at most 512; None for the physical cores this process may use, less where a
            CPU quota of its control group allows less.
        n_threads_batch: threads that read the prompt; None for ``n_threads``.
        n_gpu_layers: layers to keep on a GPU, -1 for all; an error where the payload has no GPU to use. ``auto`` for
            as many as fit into the GPUs' free memory, none where there is no GPU.
        devices: the GPUs, and devices of RPC servers, to use, by the names :func:`forkyard_llm.devices` has; None for
            all, those of servers first.
        split_mode: how several devices share the model, by name: ``none``, ``layer``; llama.cpp ``row``, ``tensor``;
            ik_llama.cpp ``attn``, ``graph``.
        tensor_split, main_gpu: one share for each of ``devices``; the one of them that is used where only one is.
        rpc_servers: addresses ``HOST:PORT`` of RPC servers whose devices are used, of this machine alone.
        allow_remote_rpc: let them be of other machines. RPC is neither authenticated nor encrypted: whoever is on the
            way reads and changes the model, the prompts and the results, and can end this process or do worse.
        seed: makes the sequence of completions that give no seed of their own repeatable; None or -1 for a fresh one.
        use_mmap, use_mlock: map the file, keep it in memory; an error where the system does not lock all of it.
        check_tensors: have the engine validate tensor data while loading.
        vocab_only: load no weights; only tokenizing works then.
        flash_attn: True, False, or None for the engine's default.
        offload_kqv: keep the KV cache where the layers are.
        type_k, type_v: types of the KV cache by name (``f16``, ``q8_0`` ...).
        rope_freq_base, rope_freq_scale: 0 for the model's own.
        numa: ``distribute``, ``isolate``, ``numactl``, ``mirror``, ``split``, False for none, None for what is set: all
            models of a payload in a process share one.
        numa_mirror: what ``mirror`` copies: ``weights``, ``kv``, ``all``, ``none``, ``best-effort``; None for all.
        prompt_reuse: keep the part of the KV cache that a new prompt shares with the last one. Faster for chats; a
            result may then differ in the last digits from the same request on a fresh ``Llama``.
        verbose: pass the engine's log on to stderr; one setting for all models of a payload.
        **engine_options: options only one engine has (see ``docs/python-api.md``).

    Raises:
        ModelError: the file is not a sound GGUF, its model does not continue a text, or the engine refuses it.
        UnsupportedOption: the engine lacks an option that the other one has; the message names it.
        UsageError: an option no engine has, or a value that makes no sense.
        PayloadNotFound, PayloadRejected, AbiMismatch, EngineError: no payload can be used, or it fails.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        engine: str = "auto",
        variant: str | None = None,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int | None = None,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_gpu_layers: int | Literal["auto"] = 0,
        devices: Sequence[str] | None = None,
        split_mode: str | None = None,
        tensor_split: Sequence[float] = (),
        main_gpu: int = 0,
        rpc_servers: Sequence[str] = (),
        allow_remote_rpc: bool = False,
        seed: int | None = None,
        use_mmap: bool = True,
        use_mlock: bool = False,
        check_tensors: bool = False,
        vocab_only: bool = False,
        flash_attn: bool | None = None,
        offload_kqv: bool = True,
        type_k: str | None = None,
        type_v: str | None = None,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        numa: str | bool | None = None,
        numa_mirror: str | Sequence[str] | None = None,
        prompt_reuse: bool = False,
        verbose: bool = False,
        **engine_options: bool | int | float,
    ) -> None:
        threads = default_threads() if n_threads is None else n_threads
        options = ModelOptions(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=threads,
            n_threads_batch=threads if n_threads_batch is None else n_threads_batch,
            n_gpu_layers=0 if n_gpu_layers == "auto" else n_gpu_layers,
            devices=devices,
            split_mode=split_mode,
            main_gpu=main_gpu,
            tensor_split=tensor_split,
            rpc_servers=addresses(rpc_servers, allow_remote_rpc),
            use_mmap=use_mmap,
            use_mlock=use_mlock,
            check_tensors=check_tensors,
            vocab_only=vocab_only,
            rope_freq_base=rope_freq_base,
            rope_freq_scale=rope_freq_scale,
            flash_attn=flash_attn,
            offload_kqv=offload_kqv,
            type_k=type_k,
            type_v=type_v,
            numa=numa_choice(numa, numa_mirror),
            engine_options=engine_options,
        )
        seed = SamplingParams(seed=seed).resolved_seed()
        flag("prompt_reuse", prompt_reuse)
        flag("verbose", verbose)
        self.model_path = os.fspath(model_path)
        purposes = gguf_check.WITH_A_TOKENIZER if vocab_only else {gguf_check.TEXT}
        while True:
            self._payload = select(engine, variant)
            check_engine_options(self._payload.engine, engine_options)
            summary = gguf_check.check(self.model_path, engine=self._payload.engine, purposes=purposes)
            try:
                self._engine = load(self._payload)
                break
            except (EngineError, AbiMismatch) as error:
                leave_out(self._payload, error)
        if n_gpu_layers == "auto":
            there = self._engine.gpus(options.devices, self._engine.remote_devices(options.rpc_servers))
            layers = fitting_layers(there, summary.model_bytes, summary.layers)
            options = replace(options, n_gpu_layers=layers)
        session = self._engine.open(Path(self.model_path), options, verbose=verbose)
        self._generation = Generation(session, reuse=prompt_reuse, name=self.model_path)
        self._options = options
        # Repeatable on purpose; nothing secret depends on it.
        self._seeds = random.Random(seed)  # noqa: S311
        # Also when nobody calls close: at the latest before the interpreter ends.
        self._finalizer = weakref.finalize(self, self._generation.close)

    # -- what it is

    @property
    def payload(self) -> Payload:
        """The payload in use."""
        return self._payload

    @property
    def engine(self) -> str:
        """The engine family in use: ``llama.cpp`` or ``ik_llama.cpp``."""
        return self._payload.engine

    @property
    def capabilities(self) -> frozenset[str]:
        """What the payload in use can do, its patch stacks' additions included."""
        return self._engine.capabilities

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._generation.closed

    def n_ctx(self) -> int:
        """Context size in tokens; 0 with ``vocab_only``."""
        return self._generation.open_session().n_ctx

    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._generation.open_session().n_vocab

    def token_bos(self) -> int:
        """The token that begins a text, or -1."""
        return self._generation.open_session().bos

    def token_eos(self) -> int:
        """The token that ends a text, or -1."""
        return self._generation.open_session().eos

    def description(self) -> str:
        """The engine's short description of the model."""
        return self._generation.call(lambda session: session.description())

    def metadata(self, key: str) -> str | None:
        """A scalar of the model file's metadata as text, or None where there is none of that name."""
        return self._generation.call(lambda session: session.metadata(key))

    def perf(self) -> Perf:
        """The engine's counters: tokens, and milliseconds, of prompts and of generation."""
        self._context()
        return self._generation.call(lambda session: session.perf())

    @property
    def numa(self) -> str | None:
        """The NUMA strategy this process runs the payload with, or None."""
        return self._engine.numa.strategy

    def numa_counters(self, *, reset: bool = False) -> list[NumaNode]:
        """Bytes each node's threads have read, of all models of this payload; ``reset`` then begins anew.

        Empty while mirror and split are off. Raises UnsupportedOption without the capability `numa-mirror`.
        """
        return self._generation.call(lambda session: session.engine.numa.counters(reset=reset))

    def numa_report(self) -> NumaReport:
        """Where the kernel says all pages are, and whether copies agree; reads all of them. Raises as above."""
        return self._generation.call(lambda session: session.engine.numa.report())

    # -- tokens

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of ``text``.

        Args:
            add_bos: add the special tokens the model is configured to add; a model that wants none gets none.
            special: take the spelling of special tokens (``<|im_start|>``) for these tokens.
        """
        flag("add_bos", add_bos)
        flag("special", special)
        raw = to_engine(text, "the text")
        return self._generation.call(lambda session: session.tokenize(raw, add_special=add_bos, parse_special=special))

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Text of ``tokens`` as bytes; special tokens are spelled out only if ``special``."""
        flag("special", special)
        plain = token_ids("tokens", tokens)
        return self._generation.call(lambda session: session.detokenize(plain, special=special))

    # -- generation

    def generate(self, tokens: Sequence[int], params: SamplingParams | None = None) -> Iterator[int]:
        """Token ids that follow ``tokens``, until the context is full; end tokens are given out like any other.

        The generation lasts from the first ``next`` until the iterator is exhausted or closed.

        Raises:
            UsageError: no token, a token outside the vocabulary, or more than fit into the context.
            EngineError: another generation is going on, the engine failed, or this ``Llama`` was closed meanwhile.
        """
        self._context()
        return self._stream(token_ids("tokens", tokens), self._with_seed(params or SamplingParams()))

    def create_completion(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        echo: bool = False,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Continue ``prompt`` (text, or tokens): an OpenAI text completion, or an iterator of its chunks.

        Args:
            max_tokens: at most so many; None or less than 1 for as many as the context has room for.
            stop: texts that end the completion and are not part of it, wherever token borders fall.
            stream: give chunks out as soon as their text is sure, instead of one dictionary.
            echo: put the prompt in front of the text.

        The sampling arguments are those of :class:`SamplingParams`. Raises what :meth:`generate` raises.
        """
        params = SamplingParams(
            temperature, top_k, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty,
            seed=seed, logit_bias={} if logit_bias is None else logit_bias,
        )  # fmt: skip
        flag("stream", stream)
        flag("echo", echo)
        tokens = self._prompt_tokens(prompt)
        shown = self._prompt_text(prompt) if echo else ""
        deltas = self._deltas(tokens, params, max_tokens, stop)
        request = Completion.new("cmpl", self.model_path)
        if stream:
            return completion_chunks(request, deltas, shown)
        text, last = collect(deltas)
        body = completion_body(request, shown + text, last.finish_reason)
        body["usage"] = usage(len(tokens), last.completion_tokens)
        return body

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Answer ``messages``: an OpenAI chat completion, or an iterator of its chunks.

        The prompt is made by the engine's template function from the model's own template. That function knows the
        common templates and runs no Jinja; for others there is the server (``forkyard-llm serve``).

        Raises:
            UnsupportedOption: the model has no template the engine's C API knows, or a message is more than text.
        """
        params = SamplingParams(
            temperature, top_k, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty,
            seed=seed, logit_bias={} if logit_bias is None else logit_bias,
        )  # fmt: skip
        flag("stream", stream)
        tokens = self._chat_tokens(messages)
        deltas = self._deltas(tokens, params, max_tokens, stop)
        request = Completion.new("chatcmpl", self.model_path)
        if stream:
            return chat_chunks(request, deltas)
        text, last = collect(deltas)
        counts = usage(len(tokens), last.completion_tokens)
        return chat_body(request, text, last.finish_reason or "stop", counts)

    # -- life

    def reset(self) -> None:
        """Forget everything evaluated so far, and set the engine's counters to zero.

        Raises:
            EngineError: a generation is going on.
        """
        self._context()
        self._generation.reset()

    def close(self) -> None:
        """Free model and context; harmless the second time. An open stream raises EngineError when it is continued."""
        self._finalizer()

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- inside

    def _context(self) -> Session:
        session = self._generation.open_session()
        if self._options.vocab_only:
            msg = "this Llama was made with vocab_only=True and has no weights; make one without it"
            raise UsageError(msg)
        return session

    def _stream(self, prompt: list[int], params: SamplingParams) -> Iterator[int]:
        # A method of this object, so that a stream keeps it, and with it the session, alive.
        yield from self._generation.tokens(prompt, params)

    def _with_seed(self, params: SamplingParams) -> SamplingParams:
        """``params`` with a seed of its own: the next of this object's sequence where the request has none."""
        if params.seed not in (None, -1, RANDOM_SEED):
            return params
        return replace(params, seed=self._seeds.randrange(RANDOM_SEED))

    def _deltas(
        self,
        tokens: list[int],
        params: SamplingParams,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
    ) -> Iterator[Delta]:
        # As many as there is room for is also what less than 1 means.
        wanted = 0 if max_tokens is None else integer("max_tokens", max_tokens, -INT_MAX - 1)
        limit = wanted if wanted > 0 else None
        stops = stop_strings(stop)
        session = self._context()
        check_prompt(session, tokens)
        return run(self._generation, self.generate(tokens, params), limit, stops)

    def _prompt_tokens(self, prompt: str | bytes | Sequence[int]) -> list[int]:
        if not isinstance(prompt, (str, bytes)):
            return token_ids("the prompt", prompt)
        tokens, bos = self.tokenize(prompt, special=True), self._context().bos
        # A model that adds no BOS still needs something to start from.
        return tokens if tokens or bos == NO_TOKEN else [bos]

    def _prompt_text(self, prompt: str | bytes | Sequence[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        raw = prompt if isinstance(prompt, bytes) else self.detokenize(prompt)
        return raw.decode("utf-8", "replace")

    def _chat_tokens(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        conversation = read_messages(messages)
        session = self._context()
        prompt = self._generation.call(lambda session: chat_prompt(session, conversation, self.model_path))
        tokens = self.tokenize(prompt, special=True)
        if session.adds_bos and tokens[:2] == [session.bos, session.bos]:
            # Some templates write the BOS the tokenizer adds as well.
            del tokens[0]
        return tokens
