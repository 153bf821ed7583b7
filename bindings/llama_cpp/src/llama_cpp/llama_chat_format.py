"""Chat formats: handlers by name, formatters of one's own, and templates that the engine fills in.

A format that is a template is done by forkyard_llm, with the engine's own parser of tool calls. A formatter is a
function that makes a prompt of messages; what the model says is then the answer as it is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from forkyard_llm.chat import schema_of
from forkyard_llm.errors import UsageError

from ._calls import arguments_format, as_call, named_function
from ._templates import FORMATS, Format
from .llama_grammar import LlamaGrammar

if TYPE_CHECKING:
    from ._hooks import StoppingCriteriaList
    from .llama import Llama

__all__ = [
    "OWN",
    "ChatFormatter",
    "ChatFormatterResponse",
    "Jinja2ChatFormatter",
    "LlamaChatCompletionHandler",
    "LlamaChatCompletionHandlerNotFoundException",
    "LlamaChatCompletionHandlerRegistry",
    "chat_formatter_to_chat_completion_handler",
    "get_chat_completion_handler",
    "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter",
    "register_chat_completion_handler",
    "register_chat_format",
]

OWN = "chat_template.default"
"""The name of the format that the model's own template is."""


class LlamaChatCompletionHandler(Protocol):
    """What answers messages: called with ``llama=``, ``messages=`` and the arguments of ``create_chat_completion``."""

    def __call__(self, *, llama: Llama, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        """A chat completion, or with ``stream`` an iterator of chunks."""


class LlamaChatCompletionHandlerNotFoundException(Exception):
    """No chat format has that name."""


class LlamaChatCompletionHandlerRegistry:
    """The handlers by name; all objects of this class have the same ones."""

    _chat_handlers: dict[str, LlamaChatCompletionHandler] = {}  # noqa: RUF012 - shared on purpose

    def register_chat_completion_handler(
        self, name: str, chat_handler: LlamaChatCompletionHandler, overwrite: bool = False
    ) -> None:
        """Have a handler under ``name``. Raises ValueError if there is one already, unless ``overwrite``."""
        if not overwrite and name in self._chat_handlers:
            msg = f"there is a chat handler named {name!r} already: give overwrite=True to have this one instead"
            raise ValueError(msg)
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Forget a handler. Raises ValueError if there is none of that name."""
        if self._chat_handlers.pop(name, None) is None:
            msg = f"there is no chat handler named {name!r}"
            raise ValueError(msg)

    def get_chat_completion_handler_by_name(self, name: str) -> LlamaChatCompletionHandler:
        """The handler of that name. Raises LlamaChatCompletionHandlerNotFoundException."""
        try:
            return self._chat_handlers[name]
        except KeyError:
            msg = (
                f"there is no chat format {name!r}; there are {', '.join(sorted(self._chat_handlers))}. Leave"
                " chat_format out for the model's own template, or register one with register_chat_format"
            )
            raise LlamaChatCompletionHandlerNotFoundException(msg) from None


def get_chat_completion_handler(name: str) -> LlamaChatCompletionHandler:
    """The handler of that name. Raises LlamaChatCompletionHandlerNotFoundException."""
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name)


def register_chat_completion_handler(
    name: str,
) -> Callable[[LlamaChatCompletionHandler], LlamaChatCompletionHandler]:
    """Have the decorated function under ``name``."""

    def registered(handler: LlamaChatCompletionHandler) -> LlamaChatCompletionHandler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return handler

    return registered


@dataclass
class ChatFormatterResponse:
    """A prompt, what ends the answer, and whether the prompt has the token that begins a text."""

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """What makes a prompt of messages."""

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        """The prompt."""


class Jinja2ChatFormatter:
    """A formatter by a Jinja template, which the package jinja2 fills in; it has to be installed."""

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: list[int] | None = None,
    ) -> None:
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            msg = "chat formatters need the package jinja2: pip install forkyard-llama-cpp-python[jinja]"
            raise ImportError(msg) from error
        self.template = template
        self.eos_token = eos_token
        self.bos_token = bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else set(stop_token_ids)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        self._template = environment.from_string(template)

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        """The prompt. Raises ValueError where the template refuses the messages."""
        prompt = self._template.render(
            messages=messages,
            eos_token=self.eos_token,
            bos_token=self.bos_token,
            add_generation_prompt=self.add_generation_prompt,
            raise_exception=_refuse,
            strftime_now=lambda form: datetime.now().strftime(form),
            **kwargs,
        )
        criteria = None
        if self.stop_token_ids is not None:
            from ._hooks import StoppingCriteriaList

            ends = self.stop_token_ids
            criteria = StoppingCriteriaList([lambda tokens, _: int(tokens[-1]) in ends])
        return ChatFormatterResponse(prompt, [self.eos_token], criteria, added_special=True)

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        """A handler that uses this formatter."""
        return chat_formatter_to_chat_completion_handler(self)


def _refuse(message: str) -> None:
    raise ValueError(message)


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """A formatter by the template of a ``tokenizer_config.json``, which has the beginning of an empty answer last."""
    words = ("chat_template", "eos_token", "bos_token")
    lacking = [word for word in words if not isinstance(tokenizer_config.get(word), str)]
    if lacking:
        msg = f"this tokenizer_config has no text named {', '.join(lacking)}"
        raise UsageError(msg)
    template, eos, bos = (tokenizer_config[word] for word in words)
    by_template = Jinja2ChatFormatter(template, eos, bos)

    def formatter(*, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        begun = [{"role": "assistant", "content": ""}] if add_generation_prompt else []
        made = by_template(messages=[*messages, *begun], **kwargs)
        return ChatFormatterResponse(made.prompt, [eos, bos], added_special=True)

    return formatter


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """A handler that uses the formatter of a ``tokenizer_config.json``."""
    formatter = hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    return chat_formatter_to_chat_completion_handler(formatter)


def register_chat_format(name: str) -> Callable[[ChatFormatter], ChatFormatter]:
    """Have a handler that uses the decorated formatter under ``name``."""

    def registered(formatter: ChatFormatter) -> ChatFormatter:
        handler = chat_formatter_to_chat_completion_handler(formatter)
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return formatter

    return registered


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter) -> LlamaChatCompletionHandler:
    """A handler that completes the formatter's prompt.

    Tools reach the formatter, and no call is read from the answer but that of a tool which is named.
    """

    def handler(*, llama: Llama, messages: Sequence[Mapping[str, Any]], **asked: Any) -> Any:
        function = named_function(asked)
        tools = {name: asked.pop(name, None) for name in ("functions", "function_call", "tools", "tool_choice")}
        made = chat_formatter(messages=messages, **tools)
        prompt = llama.tokenize(made.prompt.encode("utf-8"), add_bos=not made.added_special, special=True)
        schema = schema_of(asked.pop("response_format", None))
        if function is not None:
            schema, asked["grammar"] = schema_of(arguments_format(function)), None
        if schema is not None and asked.get("grammar") is None:
            asked["grammar"] = LlamaGrammar.from_json_schema(json.dumps(schema))
        stops = [*_listed(asked.pop("stop", None)), *_listed(made.stop)]
        probable, top = asked.pop("logprobs", None), asked.pop("top_logprobs", None)
        answer = llama.create_completion(
            prompt=prompt,
            stop=[stop for stop in stops if stop],
            stopping_criteria=made.stopping_criteria,
            logprobs=(top or 0) if probable else None,
            **{**asked, "max_tokens": asked.get("max_tokens")},
        )
        chat = _chat_answer(answer) if isinstance(answer, Mapping) else _chat_chunks(answer)
        return chat if function is None else as_call(chat, function["name"])

    return handler


def _listed(stop: str | Sequence[str] | None) -> list[str]:
    return [] if stop is None else [stop] if isinstance(stop, str) else list(stop)


def _chat_answer(text: Mapping[str, Any]) -> dict[str, Any]:
    choice = text["choices"][0]
    message = {"role": "assistant", "content": choice["text"]}
    return _as_chat(text, "chat.completion", choice, message=message) | {"usage": text["usage"]}


def _chat_chunks(chunks: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(chunks):
        choice = text["choices"][0]
        if not number:
            begin = {"finish_reason": None, "logprobs": None}
            yield _as_chat(text, "chat.completion.chunk", begin, delta={"role": "assistant"})
        delta = {"content": choice["text"]} if choice["text"] else {}
        yield _as_chat(text, "chat.completion.chunk", choice, delta=delta)


def _as_chat(text: Mapping[str, Any], kind: str, choice: Mapping[str, Any], **said: Any) -> dict[str, Any]:
    logprobs = _chat_logprobs(choice["logprobs"])
    choices = [{"index": 0, **said, "logprobs": logprobs, "finish_reason": choice["finish_reason"]}]
    return {"id": f"chat{text['id']}", "object": kind, "created": text["created"], "model": text["model"]} | {
        "choices": choices
    }


def _chat_logprobs(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if given is None:
        return None

    def one(token: str, value: float) -> dict[str, Any]:
        return {"token": token, "bytes": list(token.encode("utf-8")), "logprob": value}

    content = [
        {**one(token, value), "top_logprobs": [one(*other) for other in (most or {}).items()]}
        for token, value, most in zip(given["tokens"], given["token_logprobs"], given["top_logprobs"], strict=True)
    ]
    return {"content": content, "refusal": None}


def _by_template(template: str) -> LlamaChatCompletionHandler:
    def handler(*, llama: Llama, messages: Sequence[Mapping[str, Any]], **asked: Any) -> Any:
        return llama.chat_by_template(template, messages, **asked)

    return handler


def _formatter(format: Format) -> ChatFormatter:
    def formatter(*, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        return Jinja2ChatFormatter(format.template, format.eos, format.bos)(messages=messages, **kwargs)

    return formatter


# Functionary's models have their own templates and parsers in the engines.
for _name in (OWN, "functionary", "functionary-v1", "functionary-v2"):
    register_chat_completion_handler(_name)(_by_template(""))
for _name, _format in FORMATS.items():
    register_chat_completion_handler(_name)(_by_template(_format.template))

format_alpaca = _formatter(FORMATS["alpaca"])
format_chatml = _formatter(FORMATS["chatml"])
format_gemma = _formatter(FORMATS["gemma"])
format_llama2 = _formatter(FORMATS["llama-2"])
format_llama3 = _formatter(FORMATS["llama-3"])
format_mistral_instruct = _formatter(FORMATS["mistral-instruct"])
format_qwen = _formatter(FORMATS["qwen"])
format_zephyr = _formatter(FORMATS["zephyr"])


class MTMDChatHandler:
    """A handler of images: names a model's projector, which the engine loads with the model.

    The prompt is that of the model's own template, whichever of the handlers it is.

    Args:
        clip_model_path: the projector's GGUF file.
    """

    def __init__(self, clip_model_path: str, verbose: bool = True, **kwargs: Any) -> None:
        self.clip_model_path = clip_model_path
        self.verbose = verbose

    def __call__(self, *, llama: Llama, messages: Sequence[Mapping[str, Any]], **asked: Any) -> Any:
        """A chat completion of ``messages``, whose images may be named by a text instead of a mapping."""
        return llama.chat_by_template("", [_with_urls(message) for message in messages], **asked)


def _with_urls(message: Mapping[str, Any]) -> Mapping[str, Any]:
    parts = message.get("content")
    if not isinstance(parts, list):
        return message

    def part(given: Any) -> Any:
        image = isinstance(given, Mapping) and isinstance(given.get("image_url"), str)
        return {**given, "image_url": {"url": given["image_url"]}} if image else given

    return {**message, "content": [part(given) for given in parts]}


_OF_IMAGES = {
    f"{name}ChatHandler": type(f"{name}ChatHandler", (MTMDChatHandler,), {})
    for name in (
        "Gemma4",
        "Llama3VisionAlpha",
        "Llava15",
        "Llava16",
        "MiniCPMv26",
        "Moondream",
        "NanoLlava",
        "Obsidian",
        "Qwen25VL",
    )
}


def __getattr__(name: str) -> Any:
    """The handlers of images."""
    try:
        return _OF_IMAGES[name]
    except KeyError:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg) from None
