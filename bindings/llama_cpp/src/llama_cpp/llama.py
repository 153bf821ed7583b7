"""`Llama` as llama-cpp-python has it, in front of `forkyard_llm.Llama`."""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Generator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import forkyard_llm
import forkyard_llm.state as kept
import numpy as np
import numpy.typing as npt
from forkyard_llm.errors import UnsupportedOption, UsageError
from forkyard_llm.optional import hub_file, openai_types
from forkyard_llm.sampling import RANDOM_SEED, SamplingParams

from . import llama_chat_format, llama_types
from ._calls import arguments_format, as_call, named_function, with_function_calls
from ._engine import default_engine
from ._hooks import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    hooks,
)
from ._numbers import POOLINGS
from ._options import draft_options, gpu_options, mapped, more_options
from .llama_cache import BaseLlamaCache, as_prompt_cache
from .llama_grammar import LlamaGrammar
from .llama_speculative import LlamaDraftModel
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer

__all__ = [
    "Llama",
    "LlamaState",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]


class Llama:
    """A model. The arguments are llama-cpp-python's; those below are new or differ.

    Args:
        engine: ``auto``, ``llama.cpp``, ``ik_llama.cpp`` or the name of a payload distribution; None for what the
            environment variable FORKYARD_LLM_ENGINE says, else ``auto``.
        variant: a variant of that engine; None for the best that this CPU can run.
        flash_attn: None for the engine's default.
        **kwargs: what else forkyard_llm.Llama takes; the rest does nothing and is warned about.

    Raises what forkyard_llm.Llama raises, and UnsupportedOption for options that change results and are not there.
    """

    def __init__(
        self,
        model_path: str,
        *,
        n_gpu_layers: int = 0,
        split_mode: int | str = 1,
        main_gpu: int = 0,
        tensor_split: list[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: dict[str, bool | int | float | str] | None = None,
        seed: int = RANDOM_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = -1,
        pooling_type: int | str = -1,
        attention_type: int = -1,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int | str = False,
        chat_format: str | None = None,
        chat_handler: llama_chat_format.LlamaChatCompletionHandler | None = None,
        draft_model: LlamaDraftModel | None = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | str | None = None,
        type_v: int | str | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        engine: str | None = None,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        self._arguments: dict[str, Any] = {**given, **kwargs}
        chosen = engine or default_engine()
        options = {
            **mapped(given),
            **gpu_options(given, chosen, variant),
            **draft_options(draft_model),
            **more_options(kwargs, tuple(given)),
        }
        if isinstance(chat_handler, llama_chat_format.MTMDChatHandler):
            options["mmproj"] = chat_handler.clip_model_path
        self._llm = forkyard_llm.Llama(model_path, engine=chosen, variant=variant, **options)
        self.model_path = model_path
        self.verbose = verbose
        self.n_batch = n_batch
        self.last_n_tokens_size = last_n_tokens_size
        self.chat_format = chat_format or llama_chat_format.OWN
        self.chat_handler = chat_handler
        self.draft_model = draft_model
        self.metadata = self._llm.all_metadata()
        self.cache: BaseLlamaCache | None = None
        self._own_tokenizer = tokenizer is None
        self.tokenizer_ = tokenizer or LlamaTokenizer(self)
        self._logits_all = logits_all
        self._rows: npt.NDArray[np.single] | None = None
        self.set_seed(seed)

    # -- what it is

    @property
    def engine(self) -> str:
        """The engine in use: ``llama.cpp`` or ``ik_llama.cpp``."""
        return self._llm.engine

    def n_ctx(self) -> int:
        """Context size in tokens."""
        return self._llm.n_ctx()

    @property
    def context_params(self) -> SimpleNamespace:
        """What the context is like, by llama.h's names: what programs read of that struct."""
        return SimpleNamespace(n_ctx=self.n_ctx(), n_batch=self.n_batch)

    @property
    def model(self) -> Any:
        """llama.cpp's pointer to the model, for the names of llama.h; good until :meth:`close`.

        Raises:
            UnsupportedOption: the engine is another one, or in a process of its own.
        """
        generation = getattr(self._llm, "_generation", None)
        if self.engine != "llama.cpp" or generation is None:
            alone = " in a process of its own" if generation is None else ""
            msg = (
                f"the pointer to the model is for llama.cpp's C interface in this process; this is {self.engine}{alone}"
            )
            raise UnsupportedOption(msg)
        return generation.open_session()._model

    def n_embd(self) -> int:
        """Numbers in a vector of the model."""
        return self._llm.n_embd()

    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._llm.n_vocab()

    def token_eos(self) -> int:
        """The token that ends a text, or -1."""
        return self._llm.token_eos()

    def token_bos(self) -> int:
        """The token that begins a text, or -1."""
        return self._llm.token_bos()

    def token_nl(self) -> int:
        """The token of a line's end, or -1."""
        return self._llm.token_nl()

    def pooling_type(self) -> int:
        """How vectors of tokens become one, as llama.h's number."""
        numbers = {name: number for number, name in POOLINGS.items()}
        return numbers[self._llm.pooling]

    def tokenizer(self) -> LlamaTokenizer:
        """The model's own tokenizer."""
        return LlamaTokenizer(self)

    # -- tokens

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of ``text`` (UTF-8)."""
        return self.tokenizer_.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Text of ``tokens``, which follow ``prev_tokens``."""
        return self.tokenizer_.detokenize(tokens, prev_tokens=prev_tokens, special=special)

    # -- step by step

    def set_seed(self, seed: int) -> None:
        """Begin the sequence of seeds that requests without one of their own have."""
        self._seed = seed
        # Repeatable on purpose; nothing secret depends on it.
        self._seeds = random.Random(None if seed in (-1, RANDOM_SEED) else seed)  # noqa: S311

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keep states of prompts there, and look for them."""
        self._llm.set_cache(as_prompt_cache(cache))
        self.cache = cache

    def reset(self) -> None:
        """Forget what is evaluated."""
        self._llm.reset()

    @property
    def n_tokens(self) -> int:
        """How many tokens are evaluated."""
        return self._llm.n_tokens

    @property
    def input_ids(self) -> npt.NDArray[np.intc]:
        """The evaluated tokens, and zeros up to the end of the context."""
        ids = np.zeros(self.n_ctx(), dtype=np.intc)
        known = self._llm.evaluated
        ids[: len(known)] = known
        return ids

    @property
    def eval_tokens(self) -> list[int]:
        """The evaluated tokens."""
        return list(self._llm.evaluated)

    @property
    def scores(self) -> npt.NDArray[np.single]:
        """Logits after each token that :meth:`eval` computed, one row each; without ``logits_all`` of none."""
        if self._rows is None:
            rows = self.n_ctx() if self._logits_all else self.n_batch
            self._rows = np.zeros((rows, self.n_vocab()), dtype=np.single)
        return self._rows

    @property
    def eval_logits(self) -> list[list[float]]:
        """Logits after each evaluated token, with ``logits_all``; else of the last one."""
        if self._logits_all:
            return [[float(value) for value in row] for row in self.scores[: self.n_tokens]]
        return [list(self._llm.logits())] if self.n_tokens else []

    def eval(self, tokens: Sequence[int]) -> None:
        """Compute ``tokens`` behind those that are evaluated; one at a time with ``logits_all``."""
        if not self._logits_all:
            self._llm.eval(tokens)
            return
        for token in tokens:
            self._llm.eval([token])
            self.scores[self.n_tokens - 1] = self._llm.logits()

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """A token that may follow what is evaluated.

        Raises:
            UnsupportedOption: ``idx`` is another token's than the last one's.
        """
        if idx not in (None, -1, self.n_tokens - 1):
            msg = f"sample knows what follows the last token ({self.n_tokens - 1}); idx={idx} is another one"
            raise UnsupportedOption(msg)
        sampling = self._sampling(
            top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temperature=temp,
            repeat_penalty=repeat_penalty, frequency_penalty=frequency_penalty, presence_penalty=presence_penalty,
            tfs_z=tfs_z, mirostat_mode=mirostat_mode, mirostat_eta=mirostat_eta, mirostat_tau=mirostat_tau,
            grammar=grammar,
        )  # fmt: skip
        processors, _ = hooks(logits_processor, None)
        return self._llm.sample(logits_processor=processors, **sampling)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens that follow ``tokens``, or with ``reset=False`` the evaluated ones and these.

        Tokens that are sent to the generator come after the one that it gave.
        """
        sampling = self._sampling(
            top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temperature=temp,
            repeat_penalty=repeat_penalty, frequency_penalty=frequency_penalty, presence_penalty=presence_penalty,
            tfs_z=tfs_z, mirostat_mode=mirostat_mode, mirostat_eta=mirostat_eta, mirostat_tau=mirostat_tau,
            grammar=grammar,
        )  # fmt: skip
        params = SamplingParams(**sampling)
        processors, stops = hooks(logits_processor, stopping_criteria)
        known = [*(() if reset else self._llm.evaluated), *tokens]
        made = self._llm.generate(known, params, logits_processor=processors)
        while True:
            token = next(made, None)
            if token is None:
                return
            known.append(token)
            if stops is not None and stops(known):
                return
            sent = yield token
            if sent is not None:
                known.extend(sent)
                made = self._llm.generate(known, params, logits_processor=processors)

    def save_state(self) -> LlamaState:
        """What the context holds of the evaluated tokens."""
        return LlamaState.of(self._llm.save_state(), seed=self._seed)

    def load_state(self, state: LlamaState) -> None:
        """Go on from a saved state; the sequence of seeds begins anew."""
        self._llm.load_state(state.kept())
        self.set_seed(state.seed)

    # -- text

    def create_completion(
        self,
        prompt: str | list[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | list[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Any:
        """Continue ``prompt``: a ``CreateCompletionResponse``, or with ``stream`` an iterator of its chunks."""
        sampling = self._sampling(
            temperature=temperature, top_p=top_p, min_p=min_p, typical_p=typical_p, top_k=top_k, seed=seed,
            frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, repeat_penalty=repeat_penalty,
            tfs_z=tfs_z, mirostat_mode=mirostat_mode, mirostat_tau=mirostat_tau, mirostat_eta=mirostat_eta,
            grammar=grammar, logit_bias=logit_bias,
        )  # fmt: skip
        processors, stops = hooks(logits_processor, stopping_criteria)
        given: str | Sequence[int] = prompt
        if isinstance(prompt, str) and not self._own_tokenizer:
            given = self.tokenize(prompt.encode("utf-8"), special=True)
        answer = self._llm.create_completion(
            given, suffix=suffix, max_tokens=max_tokens, logprobs=logprobs, echo=echo, stop=stop, stream=stream,
            logits_processor=processors, stopping_criteria=stops, **sampling,
        )  # fmt: skip
        return named_answer(answer, model)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | list[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Any:
        """Answer ``messages``: a ``CreateChatCompletionResponse``, or with ``stream`` an iterator of its chunks.

        Done by ``chat_handler``, or the handler of ``chat_format``; without either by the model's own template.
        """
        asked = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        handler = self.chat_handler or llama_chat_format.get_chat_completion_handler(self.chat_format)
        return handler(llama=self, **asked)

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`create_chat_completion` with the types of the package ``openai``, which has to be installed."""
        return openai_types(self.create_chat_completion(*args, **kwargs))

    def chat_by_template(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        model: str | None = None,
        logits_processor: LogitsProcessorList | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **sampling: Any,
    ) -> Any:
        """A chat completion by a Jinja template, empty for the model's own, with the engine's own parser.

        A tool that is named is called whatever the template knows: the text is its arguments, by a grammar of them.
        """
        values: dict[str, Any] = {}
        function = named_function(
            {"functions": functions, "function_call": function_call, "tools": tools, "tool_choice": tool_choice}
        )
        if functions is not None:
            tools = [{"type": "function", "function": one} for one in functions]
            tool_choice = function_call
            if isinstance(function_call, Mapping):
                tool_choice = {"type": "function", "function": function_call}
        if function is not None:
            response_format, sampling["grammar"] = arguments_format(function), None
            # The template shows them to the model; the engine would have it write calls in a form of its own.
            values, tools, tool_choice = {"tools": tools}, None, None
        processors, _ = hooks(logits_processor, None)
        answer = self._llm.create_chat_completion(
            messages, tools=tools, tool_choice=tool_choice, stream=stream, stop=stop, max_tokens=max_tokens,
            response_format=response_format, logprobs=bool(logprobs), top_logprobs=top_logprobs,
            chat_template=template, chat_template_kwargs=values, logits_processor=processors,
            **self._sampling(**sampling),
        )  # fmt: skip
        if function is not None:
            answer = as_call(answer, function["name"])
        if functions is not None:
            answer = with_function_calls(answer)
        return named_answer(answer, model)

    # -- embeddings

    def create_embedding(self, input: str | list[str], model: str | None = None) -> llama_types.CreateEmbeddingResponse:
        """OpenAI's answer to a request for embeddings; the vectors are as the model makes them, of any length."""
        vectors, tokens = self.embed([input] if isinstance(input, str) else input, return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": one, "index": index} for index, one in enumerate(vectors)],
            "model": model if model is not None else self.model_path,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def embed(
        self, input: str | list[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """The vector of a text, or a list of those of several; with ``return_count`` also how many tokens they have."""
        vectors = self._llm.embed(input, normalize=normalize, truncate=truncate)
        if not return_count:
            return vectors
        texts = [input] if isinstance(input, str) else input
        return vectors, sum(min(len(self._llm.tokenize(text, special=True)), self.n_ctx()) for text in texts)

    # -- life

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: list[str] | None = None,
        local_dir: Any = None,
        local_dir_use_symlinks: Any = "auto",
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> Llama:
        """A model of the Hugging Face hub, by the package ``huggingface_hub``; ``filename`` may be a pattern.

        Raises:
            UnsupportedOption: a folder of one's own; set HF_HOME for that.
            UsageError: no file, or more than one, has that name; or the package is missing.
            DownloadError: the hub does not give it.
        """
        if local_dir is not None or cache_dir is not None:
            msg = "local_dir and cache_dir are not supported: set the environment variable HF_HOME"
            raise UnsupportedOption(msg)
        name = _hub_name(repo_id, filename or "*.gguf")
        for other in additional_files or ():
            hub_file(repo_id, _hub_name(repo_id, other), None)
        return cls(hub_file(repo_id, name, None), **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Free the model; harmless the second time."""
        self._llm.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @staticmethod
    def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> npt.NDArray[np.single]:
        """Logarithms of probabilities."""
        given = np.asarray(logits, dtype=np.single)
        shifted = given - np.max(given, axis=axis, keepdims=True)
        made: npt.NDArray[np.single] = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
        return made

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens both begin with."""
        differing = (index for index, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
        return next(differing, min(len(a), len(b)))

    # -- inside

    def _sampling(self, *, grammar: LlamaGrammar | None = None, **given: Any) -> dict[str, Any]:
        """Arguments of a request as forkyard_llm takes them."""
        sampling = {"penalty_last_n": self.last_n_tokens_size, **given}
        if sampling["penalty_last_n"] < 0:
            sampling["penalty_last_n"] = self.n_ctx()
        if sampling.get("seed") is None:
            sampling["seed"] = self._seeds.randrange(RANDOM_SEED)
        bias = sampling.get("logit_bias")
        if bias is not None:
            sampling["logit_bias"] = {int(token): value for token, value in bias.items()}
        if sampling["tfs_z"] == 1.0:
            del sampling["tfs_z"]
        if grammar is not None:
            sampling["grammar"] = grammar.text(self._llm.payload)
        return sampling


class LlamaState:
    """What a context holds of a sequence of tokens. ``scores`` is empty: what is not computed again has none."""

    def __init__(
        self,
        input_ids: npt.NDArray[np.intc],
        scores: npt.NDArray[np.single],
        n_tokens: int,
        llama_state: bytes,
        llama_state_size: int,
        seed: int,
        origin: str = "",
        digest: str = "",
    ) -> None:
        self.input_ids = input_ids
        self.scores = scores
        self.n_tokens = n_tokens
        self.llama_state = llama_state
        self.llama_state_size = llama_state_size
        self.seed = seed
        self.origin = origin
        self.digest = digest

    @classmethod
    def of(cls, state: kept.LlamaState, seed: int = RANDOM_SEED) -> LlamaState:
        """A state of forkyard_llm's."""
        ids = np.array(state.tokens, dtype=np.intc)
        nothing = np.zeros((0, 0), dtype=np.single)
        return cls(ids, nothing, len(ids), state.data, state.size, seed, state.origin, state.digest)

    def kept(self) -> kept.LlamaState:
        """The state as forkyard_llm has it."""
        return kept.LlamaState(tuple(self.input_ids.tolist()), self.llama_state, self.origin, self.digest)


def named_answer(answer: Any, model: str | None) -> Any:
    """An answer, or its chunks, with another name of the model."""
    if model is None:
        return answer
    if isinstance(answer, Mapping):
        return {**answer, "model": model}
    return ({**chunk, "model": model} for chunk in answer)


def _hub_name(repo_id: str, pattern: str) -> str:
    """The one file of a repository of the hub that has a name like ``pattern``."""
    if not set(pattern) & set("*?["):
        return pattern
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        msg = "models of the hub need the package huggingface_hub: pip install huggingface_hub"
        raise UsageError(msg) from error
    names = fnmatch.filter(HfApi().list_repo_files(repo_id), pattern)
    if len(names) != 1:
        msg = f"{len(names)} files of {repo_id} are like {pattern!r}; it must be one: {', '.join(names[:8]) or 'none'}"
        raise UsageError(msg)
    return str(names[0])
