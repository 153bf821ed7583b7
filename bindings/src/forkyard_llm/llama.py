"""The one class most programs use: a model on whichever engine, with the API llama-cpp-python made familiar."""

from __future__ import annotations

import itertools
import json
import os
import random
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from . import gguf_check
from .asynchronous import awaited
from .chat import answer_body, answer_chunks, chat_logprobs, chat_request
from .checks import INT_MAX, flag, integer, number, shown, token_ids
from .completion import (
    Completion,
    collect,
    completion_body,
    completion_chunks,
    completion_logprobs,
    run,
    usage,
)
from .completion_text import stop_strings
from .embeddings import Input, embed, embedding_body, pooling_of, positions_of, rank
from .engines.adapters import ControlVector, Lora, Scaled
from .engines.common import ChatPlan
from .engines.cores import default_threads
from .engines.devices import Device, fitting_layers
from .engines.drafts import Draft, DraftModel, PromptLookup
from .engines.embedding import Vectors
from .engines.generation import Generation
from .engines.loaded import Buffer
from .engines.media import Prompt
from .engines.numa import numa_choice
from .engines.numa_mirror import NumaNode, NumaReport
from .engines.options import NO_POOLING, ModelOptions, check_engine_options
from .engines.request import LogitsProcessor, Progress, Request, Token, check_prompt, common_length, spare_cells
from .engines.rpc import addresses
from .engines.scheduler import Scheduler
from .engines.session import NO_TOKEN, Perf, Session
from .errors import AbiMismatch, EngineError, ModelError, UnsupportedOption, UsageError
from .loading import load
from .media import FetchUrl, Media
from .optional import hub_file, openai_types
from .payloads import Payload
from .sampling import RANDOM_SEED, SamplingOptions, SamplingParams
from .selection import leave_out, select
from .state import LlamaState, PromptCache
from .text import to_engine

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arguments import ChatOptions, CompletionOptions

__all__ = ["Llama", "devices"]

_MOST_LOGPROBS = 1000
MOST_GUESSES = 256
NGRAM = "ngram"
MTP = "mtp"


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
    other, raises :class:`EngineError` at once. With ``n_parallel=8`` it does eight, and more wait: any number of
    threads may ask. Everything else may be called from any thread and waits for the token being computed, ``close``
    included.

    Args:
        model_path: the GGUF file, of a split model the first; all are checked before the engine sees them.
        engine: ``auto``, ``llama.cpp``, ``ik_llama.cpp`` or the name of a payload distribution.
        variant: a variant of that engine (``avx512-vnni``); None takes the best this CPU can run.
        n_ctx: context size in tokens; 0 takes the model's own.
        n_batch, n_ubatch: prompt tokens handed over, and computed, at once; n_ubatch None for the engine's default.
        n_parallel: how many requests are computed at a time, each with a context of its own of ``n_ctx`` tokens. More
            than 1 needs the stack common-c-api.
        max_waiting: how many more may wait for their turn, with ``n_parallel``; another one raises ``QueueFull``.
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
        embedding: make vectors of texts, or ranks, instead of text, with encoders (BERT and its kin), too.
        pooling: how the vectors of a text's tokens become one: ``mean``, ``cls`` (the first), ``last``; ``none`` for
            one vector each; ``rank`` for :meth:`rank`; None for the model's own.
        flash_attn: True, False, or None for the engine's default.
        offload_kqv: keep the KV cache where the layers are.
        type_k, type_v: types of the KV cache by name (``f16``, ``q8_0`` ...).
        rope_freq_base, rope_freq_scale: 0 for the model's own.
        numa: ``distribute``, ``isolate``, ``numactl``, ``mirror``, ``split``, False for none, None for what is set: all
            models of a payload in a process share one.
        numa_mirror: what ``mirror`` copies: ``weights``, ``kv``, ``all``, ``none``, ``best-effort``; None for all.
        lora_path, lora_scale: a LoRA adapter that all requests use which name no other, and its factor.
        draft_model: guess tokens and have the model check several at a time, which changes no text: a path of a smaller
            model of the same vocabulary; ``"ngram"`` for what followed the last few tokens before; ``"mtp"`` for what
            layers of the model say that predict further tokens.
        draft_tokens: how many are guessed at a time.
        mmproj: the projector of the model, a GGUF file of its own: what images and sounds in chats need.
        prompt_reuse: keep the part of the KV cache that a new prompt shares with the last one. Faster for chats; a
            result may then differ in the last digits from the same request on a fresh ``Llama``.
        isolate: run the engine in a child process, whose death is an exception, :class:`EngineDied`.
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
        n_parallel: int = 1,
        max_waiting: int = 1024,
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
        embedding: bool = False,
        pooling: str | None = None,
        flash_attn: bool | None = None,
        offload_kqv: bool = True,
        type_k: str | None = None,
        type_v: str | None = None,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        numa: str | bool | None = None,
        numa_mirror: str | Sequence[str] | None = None,
        lora_path: str | os.PathLike[str] | None = None,
        lora_scale: float = 1.0,
        draft_model: str | os.PathLike[str] | None = None,
        draft_tokens: int = 8,
        mmproj: str | os.PathLike[str] | None = None,
        prompt_reuse: bool = False,
        isolate: bool = False,
        verbose: bool = False,
        **engine_options: bool | int | float,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "engine_options", "__class__")}
        self._arguments = {**given, **engine_options}
        self.model_path = os.fspath(model_path)
        if flag("isolate", isolate):
            from . import isolated

            isolated.isolate(self)
            return
        threads = default_threads() if n_threads is None else n_threads
        guesses = integer("draft_tokens", draft_tokens, 1, MOST_GUESSES)
        options = ModelOptions(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_parallel=n_parallel,
            guesses=guesses if draft_model is not None else 0,
            own_guesses=draft_model == MTP,
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
            embedding=embedding,
            pooling=pooling,
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
        limit = integer("max_waiting", max_waiting, 0)
        scale = number("lora_scale", lora_scale)
        others = {"n_parallel": options.n_parallel > 1, "embedding": embedding, "vocab_only": vocab_only}
        for name, asked in others.items():
            if draft_model is not None and asked:
                msg = f"draft_model and {name} do not go together: leave one of them out"
                raise UnsupportedOption(msg)
        if mmproj is not None and (vocab_only or embedding or draft_model is not None):
            msg = "mmproj is for chats, and goes neither with vocab_only, nor embedding, nor draft_model: leave one out"
            raise UnsupportedOption(msg)
        purposes = (
            gguf_check.WITH_A_TOKENIZER if vocab_only else gguf_check.FOR_EMBEDDINGS if embedding else {gguf_check.TEXT}
        )
        while True:
            self._payload = select(engine, variant)
            check_engine_options(self._payload.engine, engine_options)
            summary = gguf_check.check(self.model_path, engine=self._payload.engine, purposes=purposes)
            if mmproj is not None:
                gguf_check.check(mmproj, engine=self._payload.engine, purposes={gguf_check.PROJECTOR})
            try:
                self._engine = load(self._payload)
                break
            except (EngineError, AbiMismatch) as error:
                leave_out(self._payload, error)
        if embedding:
            options = replace(options, pooling=pooling_of(summary, pooling), positions=positions_of(summary))
        if lora_path is not None and flash_attn is None:
            options = replace(options, flash_attn=self._engine.flash_attn_with_lora)
        if n_gpu_layers == "auto":
            there = self._engine.gpus(options.devices, self._engine.remote_devices(options.rpc_servers))
            layers = fitting_layers(there, summary.model_bytes, summary.layers)
            options = replace(options, n_gpu_layers=layers)
        session = self._engine.open(Path(self.model_path), options, verbose=verbose)
        if mmproj is not None:
            try:
                session.load_projector(Path(mmproj), options)
            except BaseException:
                session.close()
                raise
        self._generation: Generation | Scheduler
        if options.n_parallel > 1:
            self._generation = Scheduler(session, parallel=options.n_parallel, limit=limit, name=self.model_path)
        else:
            try:
                draft = self._draft(session, draft_model, options)
            except BaseException:
                session.close()
                raise
            self._generation = Generation(
                session, reuse=prompt_reuse, name=self.model_path, draft=draft, guesses=options.guesses
            )
        self._options = options
        self._cache: PromptCache | None = None
        self._adapters: Scaled = ()
        # Repeatable on purpose; nothing secret depends on it.
        self._seeds = random.Random(seed)  # noqa: S311
        # Also when nobody calls close: at the latest before the interpreter ends.
        self._finalizer = weakref.finalize(self, self._generation.close)
        if lora_path is not None:
            try:
                self._adapters = ((self.load_lora(lora_path), scale),)
            except BaseException:
                self.close()
                raise

    def _draft(self, session: Session, wish: str | os.PathLike[str] | None, options: ModelOptions) -> Draft | None:
        """What guesses tokens for the session."""
        if wish is None:
            return None
        if wish == NGRAM:
            return PromptLookup()
        if wish == MTP:
            return session.own_guesses
        path = os.fspath(wish)
        gguf_check.check(path, engine=self._payload.engine, purposes={gguf_check.TEXT})
        drafting = self._engine.open(Path(path), replace(options, engine_options={}, n_ctx=session.n_ctx, guesses=0))
        if drafting.n_vocab != session.n_vocab:
            drafting.close()
            msg = f"{path} has {drafting.n_vocab} tokens, {self.model_path} {session.n_vocab}: they must be the same"
            raise ModelError(msg)
        return DraftModel(drafting)

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str, *, revision: str | None = None, **arguments: Any) -> Llama:
        """A model of the Hugging Face hub, by the package ``huggingface_hub``, which has to be installed.

        Args:
            filename: the name of the GGUF file, of a split model its first.
            **arguments: those of the constructor.

        Raises:
            UsageError: the package is missing.
            DownloadError: the hub does not give the file.
        """
        return cls(hub_file(repo_id, filename, revision), **arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled model is loaded anew where it is unpickled: by path, with the same options."""
        return _unpickled, (type(self), self._arguments)

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

    def token_nl(self) -> int:
        """The token of a line's end, or -1. Raises ModelError for a model without a tokenizer."""
        return self._generation.read(lambda session: session.newline())

    def description(self) -> str:
        """The engine's short description of the model."""
        return self._generation.call(lambda session: session.description())

    def metadata(self, key: str) -> str | None:
        """A scalar of the model file's metadata as text, or None where there is none of that name."""
        return self._generation.call(lambda session: session.metadata(key))

    def all_metadata(self) -> dict[str, str]:
        """All scalars of the model file's metadata as texts, by name."""
        return self._generation.call(lambda session: session.all_metadata())

    def n_embd(self) -> int:
        """Numbers in the vector that the model has for a token; 0 with ``vocab_only``."""
        return self._generation.open_session().n_embd

    @property
    def pooling(self) -> str | None:
        """How the vectors of a text's tokens become one; None without ``embedding``."""
        return self._options.pooling

    def perf(self) -> Perf:
        """The engine's counters: tokens, and milliseconds, of prompts and of generation."""
        self._weights()
        return self._generation.call(lambda session: session.perf())

    @property
    def numa(self) -> str | None:
        """The NUMA strategy this process runs the payload with, or None."""
        return self._engine.numa.strategy

    def numa_counters(self, *, reset: bool = False) -> list[NumaNode]:
        """Bytes each node's threads have read, of all models of this payload; ``reset`` then begins anew.

        Empty while mirror and split are off. Raises UnsupportedOption without the capability `numa-mirror`.
        """
        return self._generation.call(lambda _: self._engine.numa.counters(reset=reset))

    def numa_report(self) -> NumaReport:
        """Where the kernel says all pages are, and whether copies agree; reads all of them. Raises as above."""
        return self._generation.call(lambda _: self._engine.numa.report())

    # -- adapters

    def load_lora(self, path: str | os.PathLike[str]) -> Lora:
        """A LoRA adapter for this model, to be named in ``adapters`` of a request. It lives as long as this object.

        Raises:
            ModelError: the file is none, or one for another model.
            UnsupportedOption: ik_llama.cpp, with flash attention.
        """
        gguf_check.check(path, engine=self.engine, purposes={"adapter"})
        self._weights()
        return self._generation.call(lambda session: session.load_lora(os.fspath(path)))

    def load_control_vector(self, path: str | os.PathLike[str], layers: tuple[int, int] | None = None) -> ControlVector:
        """A control vector for this model, to be named in ``adapters`` of a request.

        Args:
            layers: the first and the last layer that it is added to; None for all.
        """
        gguf_check.check(path, engine=self.engine, purposes={"control-vector"})
        if layers is not None:
            first, last = (integer("a layer", layer, 1) for layer in layers)
            layers = (first, last)
        self._weights()
        return self._generation.call(lambda session: session.load_control_vector(os.fspath(path), layers))

    # -- step by step

    @property
    def n_tokens(self) -> int:
        """How many tokens are evaluated."""
        return len(self._single("n_tokens").evaluated)

    @property
    def evaluated(self) -> tuple[int, ...]:
        """The tokens that are evaluated."""
        return tuple(self._single("evaluated").evaluated)

    def logits(self) -> Buffer:
        """What the model thinks of each token as the next one, before any sampling: a ctypes array of floats, a copy.

        Raises as :meth:`eval` does, and UsageError where nothing is evaluated.
        """
        return self._single("logits").logits()

    def eval(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Compute ``tokens`` behind the evaluated ones.

        Raises:
            UsageError: they do not fit, or are outside the vocabulary.
            UnsupportedOption: with ``n_parallel``, where there is no one sequence.
        """
        plain = token_ids("tokens", tokens)
        self._single("eval").extend(plain, progress)

    def sample(
        self,
        *,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> int:
        """A token that may follow the evaluated ones; :meth:`eval` it to go on. Raises as that does."""
        request = Request((), self._params(sampling, None), processors=_processors(logits_processor))
        return self._single("sample").sample(request).id

    def save_state(self) -> LlamaState:
        """What the context holds of the evaluated tokens. Raises as :meth:`eval` does."""
        tokens, data = self._single("save_state").state()
        return LlamaState.of(tokens, data, self._origin())

    def load_state(self, state: LlamaState) -> None:
        """Go on from a saved state.

        Raises:
            UsageError: it was saved by another build, or of another model or cache, or is damaged.
            EngineError: the engine refuses it; nothing is evaluated then.
        """
        generation = self._single("load_state")
        if state.origin != self._origin():
            msg = f"this state is of {state.origin}, and this Llama is {self._origin()}: the engine would misread it"
            raise UsageError(msg)
        if not state.whole:
            msg = "this state is not as it was saved: its digest is not that of its bytes"
            raise UsageError(msg)
        generation.open_session().check_tokens(state.tokens)
        generation.restore(state.tokens, state.data)

    def set_cache(self, cache: PromptCache | None) -> None:
        """Look prompts up in ``cache`` and keep their states there; None for no cache. Raises as :meth:`eval` does."""
        self._single("set_cache").reuse = cache is not None or bool(self._arguments["prompt_reuse"])
        self._cache = cache

    def _single(self, what: str) -> Generation:
        self._context()
        if isinstance(self._generation, Scheduler):
            msg = f"{what} is about one sequence, and with n_parallel there are several: make a Llama without it"
            raise UnsupportedOption(msg)
        return self._generation

    def _origin(self) -> str:
        options = self._options
        size = os.stat(self.model_path).st_size
        kinds = "/".join(str(kind or "default") for kind in (options.type_k, options.type_v))
        return f"{self.engine} {self._payload.build_key[:16]}, {self.description()} of {size} bytes, cache {kinds}"

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
        return self._generation.read(lambda session: session.tokenize(raw, add_special=add_bos, parse_special=special))

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Text of ``tokens`` as bytes; special tokens are spelled out only if ``special``."""
        flag("special", special)
        plain = token_ids("tokens", tokens)
        return self._generation.read(lambda session: session.detokenize(plain, special=special))

    def pieces(self, tokens: Sequence[int], special: bool = False) -> list[bytes]:
        """What each of ``tokens`` adds to a text, a space in front of a word included, wherever the word stands.

        Args:
            special: spell special tokens out, which add nothing otherwise.
        """
        flag("special", special)
        plain = token_ids("tokens", tokens)

        def spelled(session: Session) -> list[bytes]:
            session.check_tokens(plain)
            return [session.piece(token, special=special) for token in plain]

        return self._generation.read(spelled)

    # -- generation

    def generate(
        self,
        tokens: Sequence[int],
        params: SamplingParams | None = None,
        *,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
    ) -> Iterator[int]:
        """Token ids that follow ``tokens``, until the context is full; end tokens are given out like any other.

        The generation lasts from the first ``next`` until the iterator is exhausted or closed.

        Raises:
            UsageError: no token, a token outside the vocabulary, or more than fit into the context.
            EngineError: another generation is going on, the engine failed, or this ``Llama`` was closed meanwhile.
        """
        self._context()
        request = Request(
            token_ids("tokens", tokens), self._with_seed(params or SamplingParams()),
            processors=_processors(logits_processor), past_end=True,
        )  # fmt: skip
        return (token.id for token in self._stream(request))

    @overload
    def create_completion(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        stream: Literal[False] = False,
        **options: Unpack[CompletionOptions],
    ) -> dict[str, Any]: ...
    @overload
    def create_completion(
        self, prompt: str | bytes | Sequence[int], *, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> Generator[dict[str, Any], None, None]: ...
    @overload
    def create_completion(
        self, prompt: str | bytes | Sequence[int], *, stream: bool, **options: Unpack[CompletionOptions]
    ) -> dict[str, Any] | Generator[dict[str, Any], None, None]: ...
    def create_completion(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        max_tokens: int | None = 16,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        echo: bool = False,
        suffix: str | None = None,
        logprobs: int | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Callable[[Sequence[int]], bool] | None = None,
        progress: Progress | None = None,
        adapters: Mapping[Lora | ControlVector, float] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Continue ``prompt`` (text, or tokens): an OpenAI text completion, or an iterator of its chunks.

        Args:
            max_tokens: at most so many; None or less than 1 for as many as the context has room for.
            stop: texts that end the completion and are not part of it, wherever token borders fall.
            stream: give chunks out as soon as their text is sure, instead of one dictionary.
            echo: put the prompt in front of the text.
            suffix: what comes after the text, for models that are trained to fill in.
            logprobs: how many of the most likely tokens are told for each token, with their probabilities; with
                ``echo`` also for those of the prompt.
            json_schema: the text is JSON that this schema describes.
            logits_processor: functions that change the logits before a token is chosen.
            stopping_criteria: told all tokens, the prompt's first, after each new one; True ends the text after it.
            progress: told how many tokens of the prompt are computed; what it raises ends the request.
            adapters: LoRA adapters and control vectors for this request, each with its factor; None for the
                constructor's, an empty dictionary for none.

        The other arguments are those of :class:`SamplingParams`. Raises what :meth:`generate` raises.
        """
        flag("stream", stream)
        flag("echo", echo)
        params = self._params(sampling, json_schema)
        if suffix is None:
            tokens = self._prompt_tokens(prompt)
        else:
            tokens = self._infill_tokens(prompt, to_engine(suffix, "the suffix"))
        shown = self._prompt_text(prompt) if echo else ""
        top = None if logprobs is None else integer("logprobs", logprobs, 0, _MOST_LOGPROBS)
        request = Request(
            tokens, params, top_logprobs=top, scored=echo and top is not None, processors=_processors(logits_processor),
            progress=progress, limit=_limit(max_tokens), adapters=self._scaled(adapters),
        )  # fmt: skip
        stops = stop_strings(stop)
        check_prompt(self._context(), tokens)
        made = self._stream(request)
        completion = Completion.new("cmpl", self.model_path)
        if stream:
            return self._completion_chunks(completion, request, made, stops, shown, stopping_criteria)
        before = self._scored(request, made)
        criterion = _criterion(tokens, stopping_criteria)
        text, last = collect(run(self._generation, made, request.limit, stops, criterion=criterion))
        spelled = self._spell
        told = completion_logprobs(spelled, (*before, *last.tokens), 0 if before else len(shown))
        body = completion_body(completion, shown + text, last.finish_reason, told)
        body["usage"] = usage(len(tokens), last.completion_tokens)
        return body

    __call__ = create_completion

    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> dict[str, Any]: ...
    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> Generator[dict[str, Any], None, None]: ...
    @overload
    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool, **options: Unpack[ChatOptions]
    ) -> dict[str, Any] | Generator[dict[str, Any], None, None]: ...
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        logprobs: bool = False,
        top_logprobs: int | None = None,
        reasoning_format: str = "auto",
        enable_thinking: bool = True,
        chat_template: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        prefill: bool | None = None,
        fetch_url: FetchUrl | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Callable[[Sequence[int]], bool] | None = None,
        progress: Progress | None = None,
        adapters: Mapping[Lora | ControlVector, float] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Answer ``messages``: an OpenAI chat completion, or an iterator of its chunks.

        The model's own Jinja template makes the prompt, and the engine's own parser reads the answer.

        Args:
            tools, tool_choice, parallel_tool_calls: OpenAI's: functions that the model may call.
            response_format: OpenAI's: ``json_object``, or ``json_schema`` with a schema.
            logprobs, top_logprobs: tell probabilities of tokens, and of so many of the most likely ones.
            reasoning_format: ``auto`` or ``deepseek`` put reasoning into ``reasoning_content``, ``none`` leaves it in
                the content, ``deepseek-legacy`` does both in streams.
            enable_thinking: let models think that can be told not to.
            chat_template, chat_template_kwargs: a Jinja template instead of the model's, and values for it.
            prefill: the last message is the beginning of the answer; None for yes if it is the assistant's.
            fetch_url: gives the bytes of images that messages name by ``http`` or ``https``, which are refused without.

        The other arguments are those of :meth:`create_completion`.

        Raises:
            UnsupportedOption: the payload lacks the stack common-c-api; a message has an image or a sound, and the
                model takes none.
            UsageError: a conversation that the template refuses; an image or a sound that cannot be read.
        """
        flag("stream", stream)
        params = self._params(sampling, None)
        media = Media(self._context().projector, fetch_url)
        asked = chat_request(
            messages, tools=tools, tool_choice=tool_choice, parallel_tool_calls=parallel_tool_calls,
            response_format=response_format, grammar=params.grammar, reasoning_format=reasoning_format,
            enable_thinking=enable_thinking, template_kwargs=chat_template_kwargs, prefill=prefill, stream=stream,
            media=media,
        )  # fmt: skip
        plan, spelled = self._generation.call(lambda session: _plan(session, chat_template, asked))
        made = self._chat_prompt(plan.prompt, media.files)
        tokens, pieces = made.tokens, made.pieces
        flag("logprobs", logprobs)
        if top_logprobs is not None and not logprobs:
            msg = "top_logprobs needs logprobs=True"
            raise UsageError(msg)
        request = Request(
            tokens, params, answer=plan.sampling,
            top_logprobs=integer("top_logprobs", top_logprobs or 0, 0, _MOST_LOGPROBS) if logprobs else None,
            processors=_processors(logits_processor), progress=progress, limit=_limit(max_tokens),
            pieces=pieces,
        )  # fmt: skip
        stops = tuple(dict.fromkeys((*stop_strings(stop), *plan.stops)))
        check_prompt(self._context(), tokens, pieces)
        deltas = run(
            self._generation, self._stream(request), request.limit, stops, spelled=spelled,
            criterion=_criterion(tokens, stopping_criteria),
        )  # fmt: skip
        completion = Completion.new("chatcmpl", self.model_path)
        session = self._context()
        if stream:
            return answer_chunks(completion, deltas, lambda: session.answer_parser(plan), self._spell)
        parser = session.answer_parser(plan)
        try:
            text, last = collect(deltas)
            message = parser.add(text, last.finish_reason)["message"]
        finally:
            parser.close()
        counts = usage(len(tokens) + spare_cells(pieces), last.completion_tokens)
        told = chat_logprobs(self._spell, last.tokens)
        return answer_body(completion, message, last.finish_reason or "stop", counts, told)

    def create_chat_completion_openai_v1(self, *arguments: Any, **named: Any) -> Any:
        """:meth:`create_chat_completion` with the types of the package ``openai``, which has to be installed."""
        return openai_types(self.create_chat_completion(*arguments, **named))

    @overload
    async def acreate_completion(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        stream: Literal[False] = False,
        **options: Unpack[CompletionOptions],
    ) -> dict[str, Any]: ...
    @overload
    async def acreate_completion(
        self, prompt: str | bytes | Sequence[int], *, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> AsyncGenerator[dict[str, Any], None]: ...
    @overload
    async def acreate_completion(
        self, prompt: str | bytes | Sequence[int], *, stream: bool, **options: Unpack[CompletionOptions]
    ) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]: ...
    async def acreate_completion(self, *arguments: Any, **named: Any) -> Any:
        """:meth:`create_completion` in a thread of its own; a stream is an asynchronous iterator.

        Cancelling the task ends the request, and it is over when the task is.
        """
        return await awaited(self.create_completion, *arguments, **named)

    @overload
    async def acreate_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> dict[str, Any]: ...
    @overload
    async def acreate_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> AsyncGenerator[dict[str, Any], None]: ...
    @overload
    async def acreate_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool, **options: Unpack[ChatOptions]
    ) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]: ...
    async def acreate_chat_completion(self, *arguments: Any, **named: Any) -> Any:
        """:meth:`create_chat_completion`, as :meth:`acreate_completion` does it."""
        return await awaited(self.create_chat_completion, *arguments, **named)

    # -- embeddings

    def embed(
        self, input: Input, normalize: bool = True, truncate: bool = False
    ) -> list[float] | list[list[float]] | list[list[list[float]]]:
        """The vector of a text, or a list of those of several texts, in their order; needs ``embedding=True``.

        With the pooling ``none`` there is a list of vectors for each text. Calls of several threads take turns.

        Args:
            input: a text or its tokens, or a sequence of these. What spells a special token is that token.
            normalize: give vectors the length 1.
            truncate: cut a text that is too long instead of refusing it; a token that ends it stays.

        Raises:
            UsageError: a text is empty or too long, or this ``Llama`` was not made for embeddings.
            EngineError: the engine failed, or the model makes something of a text that is no number.
        """
        vectors, single, _ = self._embedded(input, normalize=normalize, truncate=truncate)
        shaped = vectors if self._options.pooling == NO_POOLING else [one[0] for one in vectors]
        return shaped[0] if single else shaped

    def create_embedding(self, input: Input) -> dict[str, Any]:
        """OpenAI's answer to a request for embeddings, of length 1. Raises as :meth:`embed` does."""
        vectors, _, tokens = self._embedded(input, normalize=True, truncate=False)
        return embedding_body(self.model_path, vectors, str(self._options.pooling), tokens)

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each of ``documents`` answers ``query``: the more, the better. Needs the pooling ``rank``.

        The prompt is the one that the engine's own llama-server makes. Raises as :meth:`embed` does.
        """
        self._weights()
        return rank(self._generation, query, documents, self._adapters)

    def _embedded(self, given: Input, *, normalize: bool, truncate: bool) -> tuple[list[Vectors], bool, int]:
        self._weights()
        return embed(self._generation, given, self._adapters, normalize=normalize, truncate=truncate)

    # -- life

    def reset(self) -> None:
        """Forget everything evaluated so far, and set the engine's counters to zero.

        Raises:
            EngineError: a generation is going on.
        """
        self._weights()
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
        """The session, for generating."""
        session = self._weights()
        if self._options.embedding:
            msg = "this Llama was made with embedding=True and makes no text; make one without it for that"
            raise UsageError(msg)
        return session

    def _weights(self) -> Session:
        session = self._generation.open_session()
        if self._options.vocab_only:
            msg = "this Llama was made with vocab_only=True and has no weights; make one without it"
            raise UsageError(msg)
        return session

    def _stream(self, request: Request) -> Generator[Token, None, None]:
        # A method of this object, so that a stream keeps it, and with it the session, alive.
        cache = self._cache if not (request.adapters or request.scored or request.pieces) else None
        if cache is None:
            yield from self._generation.tokens(request)
            return
        known = cache.find(request.prompt, self._origin())
        if known is not None and _longer(known.tokens, self._single("the cache").evaluated, request.prompt):
            self.load_state(known)
        tokens = self._generation.tokens(request)
        try:
            yield from tokens
        finally:
            # Before its state can be taken the generation has to be over.
            tokens.close()
            if not self.closed:
                cache.add(self.save_state())

    def _scaled(self, adapters: Mapping[Lora | ControlVector, float] | None) -> Scaled:
        if adapters is None:
            return self._adapters
        if not all(isinstance(one, (Lora, ControlVector)) for one in adapters):
            msg = "adapters must map what load_lora and load_control_vector give to numbers"
            raise UsageError(msg)
        return tuple((one, number("the factor of an adapter", scale)) for one, scale in adapters.items())

    def _completion_chunks(
        self,
        completion: Completion,
        request: Request,
        made: Generator[Token, None, None],
        stops: Sequence[str],
        shown: str,
        stopping: Callable[[Sequence[int]], bool] | None,
    ) -> Iterator[dict[str, Any]]:
        before = self._scored(request, made)
        deltas = run(self._generation, made, request.limit, stops, criterion=_criterion(request.prompt, stopping))
        yield from completion_chunks(completion, deltas, shown, self._spell, before)

    @staticmethod
    def _scored(request: Request, made: Iterator[Token]) -> list[Token]:
        """The prompt's own tokens, which come first if they are wanted."""
        return list(itertools.islice(made, len(request.prompt))) if request.scored else []

    def _spell(self, token: int) -> bytes:
        return self._generation.open_session().piece(token, special=True)

    def _params(self, sampling: SamplingOptions, schema: Mapping[str, Any] | str | None) -> SamplingParams:
        given: dict[str, Any] = {**sampling}
        if given.get("logit_bias", 0) is None:
            del given["logit_bias"]
        try:
            params = SamplingParams(**given)
        except TypeError as error:
            # An argument that there is not is the only one it takes for an error of types.
            raise TypeError(str(error).replace("SamplingParams.__init__()", "Llama")) from None
        if schema is not None:
            if params.grammar:
                msg = "json_schema makes a grammar of its own: give either it or grammar"
                raise UsageError(msg)
            text = schema if isinstance(schema, str) else json.dumps(schema)
            params = replace(params, grammar=self._context().schema_to_grammar(text))
        return self._with_seed(params)

    def _with_seed(self, params: SamplingParams) -> SamplingParams:
        """``params`` with a seed of its own: the next of this object's sequence where the request has none."""
        if params.seed not in (None, -1, RANDOM_SEED):
            return params
        return replace(params, seed=self._seeds.randrange(RANDOM_SEED))

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

    def _infill_tokens(self, prompt: str | bytes | Sequence[int], suffix: bytes) -> list[int]:
        """The tokens of a text with a hole: what is before it, what is after it, and the token that asks for it."""
        session = self._context()
        marks = self._generation.call(lambda session: session.infill_tokens())
        if marks is None:
            msg = (
                f"{self.model_path} is not trained to fill in: its vocabulary has no tokens for that; leave suffix out"
            )
            raise ModelError(msg)
        before = prompt if isinstance(prompt, (str, bytes)) else self.detokenize(prompt)
        first, second = (self.tokenize(text, add_bos=False) for text in (before, suffix))
        begin = [session.bos] if session.adds_bos and session.bos != NO_TOKEN else []
        return [*begin, marks[0], *first, marks[1], *second, marks[2]]

    def _chat_prompt(self, prompt: str, files: Sequence[bytes]) -> Prompt:
        if files:
            return self._generation.call(lambda session: session.media_prompt(prompt.encode(), files))
        tokens = self.tokenize(prompt, special=True)
        session = self._context()
        if session.adds_bos and tokens[:2] == [session.bos, session.bos]:
            # Some templates write the BOS the tokenizer adds as well.
            del tokens[0]
        return Prompt(tokens, {})


def _plan(session: Session, template: str, asked: Mapping[str, Any]) -> tuple[ChatPlan, frozenset[int]]:
    """The plan of a conversation, and the control tokens that its answer's text has."""
    plan = session.templates(template).apply(asked)
    spelled = set()
    for text in plan.preserved_tokens:
        tokens = session.tokenize(text.encode(), add_special=False, parse_special=True)
        if len(tokens) == 1:
            spelled.add(tokens[0])
    return plan, frozenset(spelled)


def _longer(known: Sequence[int], evaluated: Sequence[int], prompt: Sequence[int]) -> bool:
    """Whether a state has more of the prompt than what is evaluated."""
    return common_length(known, prompt) > common_length(evaluated, prompt)


def _unpickled(kind: type[Llama], arguments: Mapping[str, Any]) -> Llama:
    return kind(**arguments)


def _limit(max_tokens: int | None) -> int | None:
    # As many as there is room for is also what less than 1 means.
    wanted = 0 if max_tokens is None else integer("max_tokens", max_tokens, -INT_MAX - 1)
    return wanted if wanted > 0 else None


def _criterion(prompt: Sequence[int], asked: Callable[[Sequence[int]], bool] | None) -> Callable[[Token], bool] | None:
    """``asked`` as what is told one token after the other."""
    if asked is None:
        return None
    if not callable(asked):
        msg = f"stopping_criteria must be a function of the tokens so far; got {shown(asked)}"
        raise UsageError(msg)
    tokens = list(prompt)

    def ends(token: Token) -> bool:
        tokens.append(token.id)
        return bool(asked(tokens))

    return ends


def _processors(given: LogitsProcessor | Sequence[LogitsProcessor] | None) -> tuple[LogitsProcessor, ...]:
    if given is None:
        return ()
    listed = (given,) if callable(given) else tuple(given)
    for one in listed:
        if not callable(one):
            msg = f"logits_processor must be a function or a sequence of functions; got {one!r}"
            raise UsageError(msg)
    return listed
