"""The module llama_cpp without an engine: names, options, grammars, chat formats, hooks, caches."""

from __future__ import annotations

import ctypes
import importlib.metadata
import inspect
import pickle
import typing
import warnings
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import forkyard_llm.state as kept
import llama_cpp
import numpy as np
import pytest
from forkyard_llm.errors import PayloadNotFound, UnsupportedOption, UsageError
from llama_cpp import _beside, _calls, _hooks, _once, _options, llama_chat_format, llama_types
from llama_cpp._templates import FORMATS
from llama_cpp.llama_cache import as_prompt_cache
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
TEXT = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_once, "_given", set())
    monkeypatch.delenv("FORKYARD_LLM_ENGINE", raising=False)
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)


def given(**changes: Any) -> dict[str, Any]:
    """The constructor's arguments."""
    parameters = inspect.signature(llama_cpp.Llama).parameters.values()
    return {one.name: one.default for one in parameters if one.name != "kwargs"} | {"model_path": "m"} | changes


# -- names


def test_every_public_name_is_there():
    for name in llama_cpp.__all__:
        assert getattr(llama_cpp, name) is not None
    assert llama_cpp.__version__ == "0.3.36"
    assert llama_cpp.GGML_TYPE_Q8_0 == 8
    assert llama_cpp.llama_cpp.LLAMA_POOLING_TYPE_MEAN == 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llama_cpp.no_such_name


def test_types_can_be_read_at_run_time():
    for name in llama_types.__all__:
        one = getattr(llama_types, name)
        if isinstance(one, type):
            assert typing.get_type_hints(one) is not None


def test_a_c_name_without_a_payload_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", str(tmp_path))
    monkeypatch.setattr("forkyard_llm.loading._loaded", {})
    with pytest.raises(PayloadNotFound):
        _ = llama_cpp.llama_backend_init


def test_a_c_name_on_ik_names_the_other_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORKYARD_LLM_ENGINE", "ik_llama.cpp")
    monkeypatch.setattr("forkyard_llm.loading._loaded", {})
    monkeypatch.setattr("llama_cpp._low_level.select", lambda wish: SimpleNamespace(engine="ik_llama.cpp"))
    with pytest.raises(UnsupportedOption, match=r"FORKYARD_LLM_ENGINE=llama\.cpp"):
        _ = llama_cpp.llama_cpp.llama_decode  # type: ignore[attr-defined]


def test_handlers_of_images_are_names_alone():
    from llama_cpp.llama_chat_format import Llava15ChatHandler

    assert Llava15ChatHandler is llama_chat_format.Llava15ChatHandler
    assert issubclass(Llava15ChatHandler, llama_chat_format.MTMDChatHandler)
    assert Llava15ChatHandler(clip_model_path="mmproj.gguf", verbose=False).clip_model_path == "mmproj.gguf"
    assert not hasattr(llama_chat_format, "OtherChatHandler")


@pytest.mark.parametrize(("files", "refused"), [(["llama_cpp/__init__.py"], True), (["other/a.py"], False)])
def test_beside_the_real_one_it_refuses(monkeypatch: pytest.MonkeyPatch, files: list[str], refused: bool):
    found = SimpleNamespace(files=[PurePosixPath(name) for name in files])
    monkeypatch.setattr(_beside, "distribution", lambda name: found)
    if refused:
        with pytest.raises(ImportError, match="pip uninstall llama-cpp-python"):
            _beside.refuse_llama_cpp_python()
    else:
        _beside.refuse_llama_cpp_python()


def test_alone_it_does_not(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_beside, "distribution", absent)
    _beside.refuse_llama_cpp_python()


# -- options


def test_numbers_become_names():
    options = _options.mapped(given(type_k=8, type_v="q4_0", pooling_type=2, embedding=True, numa=True, swa_full=True))
    assert (options["type_k"], options["type_v"], options["pooling"]) == ("q8_0", "q4_0", "cls")
    assert options["numa"] == "distribute"
    assert options["swa_full"] is True
    assert "op_offload" not in options
    assert _options.mapped(given())["numa"] is None
    with pytest.raises(UsageError, match="type_k=99"):
        _options.mapped(given(type_k=99))


@pytest.mark.parametrize("name", sorted(_options.REFUSED))
def test_what_would_change_results_is_refused(name: str):
    with pytest.raises(UnsupportedOption, match=name):
        _options.mapped(given(**{name: 7}))


def test_a_gpu_that_is_not_there_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    kinds = ["cpu"]
    monkeypatch.setattr(
        "forkyard_llm.devices", lambda *_: [SimpleNamespace(kind=kind) for kind in kinds], raising=False
    )
    assert _options.gpu_options(given(), "auto", None) == {}
    with pytest.warns(UserWarning, match="no GPU"):
        assert _options.gpu_options(given(n_gpu_layers=-1), "auto", None) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _options.gpu_options(given(n_gpu_layers=-1), "auto", None) == {}
    kinds.append("gpu")
    options = _options.gpu_options(given(n_gpu_layers=-3, split_mode=2), "auto", None)
    assert options == {"n_gpu_layers": -1, "tensor_split": (), "main_gpu": 0, "split_mode": "row"}


def test_drafts_and_more_options():
    assert _options.draft_options(LlamaPromptLookupDecoding(num_pred_tokens=3)) == {
        "draft_model": "ngram",
        "draft_tokens": 3,
    }
    with pytest.warns(UserWarning, match="draft_model does nothing"):
        assert _options.draft_options(lambda ids: ids) == {}  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="f16_kv"):
        assert _options.more_options({"f16_kv": True, "rope_cache": True, "isolate": True}, ("n_ctx",)) == {
            "rope_cache": True,
            "isolate": True,
        }


# -- grammars, hooks, caches


def test_grammars(tmp_path: Path):
    assert llama_cpp.LlamaGrammar.from_string("root ::= [a]")._grammar == "root ::= [a]"
    (tmp_path / "a.gbnf").write_text("root ::= [b]")
    assert llama_cpp.LlamaGrammar.from_file(tmp_path / "a.gbnf")._grammar == "root ::= [b]"
    (tmp_path / "a.gbnf").write_text(" ")
    with pytest.raises(UsageError, match="empty"):
        llama_cpp.LlamaGrammar.from_file(tmp_path / "a.gbnf")
    with pytest.raises(UsageError, match="no JSON"):
        llama_cpp.LlamaGrammar.from_json_schema("{")


def test_processors_may_change_logits_in_place_or_give_others():
    row = (ctypes.c_float * 3)(1, 2, 3)

    def in_place(ids: Any, scores: Any) -> Any:
        assert ids.dtype == np.intc
        scores[0] = -np.inf
        return scores

    (changed,), _ = _hooks.hooks([in_place, lambda ids, scores: scores * 2], None)
    changed([1, 2], row)
    assert list(row) == [-np.inf, 4, 6]


def test_criteria_get_the_logits_that_the_token_was_chosen_by():
    seen: list[Any] = []

    def ends(ids: Any, logits: Any) -> bool:
        seen.append((ids.tolist(), logits.tolist()))
        return len(ids) > 2

    (keep,), stops = _hooks.hooks(None, _hooks.StoppingCriteriaList([ends]))
    assert stops is not None
    keep([1], (ctypes.c_float * 2)(1, 2))
    assert not stops([1, 5])
    keep([1, 5], (ctypes.c_float * 2)(3, 4))
    assert stops([1, 5, 6])
    assert seen == [([1, 5], [1, 2]), ([1, 5, 6], [3, 4])]
    assert _hooks.hooks(None, None) == ([], None)


def test_a_text_does_not_end_early():
    early = llama_cpp.MinTokensLogitsProcessor(1, 0)
    ids = np.array([7], dtype=np.intc)
    assert early(ids, np.ones(2, dtype=np.single)).tolist() == [-np.inf, 1]
    assert early(np.array([7, 8], dtype=np.intc), np.ones(2, dtype=np.single)).tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_caches_are_mappings_and_forkyard_llms(kind: str, tmp_path: Path):
    cache = llama_cpp.LlamaRAMCache() if kind == "ram" else llama_cpp.LlamaDiskCache(tmp_path)
    state = llama_cpp.LlamaState.of(kept.LlamaState.of([1, 2, 3], b"data", "here"), seed=5)
    assert [1, 2] not in cache
    with pytest.raises(KeyError):
        _ = cache[[1, 2]]
    cache[[1, 2, 3]] = pickle.loads(pickle.dumps(state))
    assert [1, 2, 9] in cache
    assert cache[[1, 2, 9]].input_ids.tolist() == [1, 2, 3]
    assert cache.cache_size >= 4
    ours = as_prompt_cache(cache)
    assert ours is not None
    found = ours.find([1, 2], "here")
    assert found is not None
    assert found.whole
    assert ours.find([1, 2], "elsewhere") is None


def test_a_cache_of_ones_own():
    class Cache(llama_cpp.BaseLlamaCache):
        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[tuple[int, ...], llama_cpp.LlamaState] = {}

        @property
        def cache_size(self) -> int:
            return 0

        def __getitem__(self, key: Any) -> llama_cpp.LlamaState:
            return self.kept[tuple(key)]

        def __contains__(self, key: Any) -> bool:
            return tuple(key) in self.kept

        def __setitem__(self, key: Any, value: llama_cpp.LlamaState) -> None:
            self.kept[tuple(key)] = value

    ours = as_prompt_cache(Cache())
    assert ours is not None
    state = kept.LlamaState.of([1, 2], b"data", "here")
    assert ours.find([1, 2], "here") is None
    ours.add(state)
    assert ours.find([1, 2], "here") == state
    assert ours.find([1, 2], "elsewhere") is None


# -- chat


def test_formats_make_the_prompts_of_their_models():
    prompts = {}
    for name in ("alpaca", "chatml", "gemma", "llama2", "llama3", "mistral_instruct", "zephyr"):
        made = getattr(llama_chat_format, f"format_{name}")(messages=MESSAGES)
        assert made.added_special
        prompts[name] = made.prompt
    assert prompts["chatml"] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts["llama2"] == ("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]")
    assert prompts["mistral_instruct"] == "<s>[INST] Be kind.\nHi [/INST]Hello</s>[INST] Bye [/INST]"
    assert prompts["gemma"].endswith("<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n")
    assert prompts["zephyr"].endswith("<|user|>\nBye</s>\n<|assistant|>\n")


def test_handlers_by_name():
    for name in (llama_chat_format.OWN, "functionary-v2", *FORMATS):
        assert callable(llama_chat_format.get_chat_completion_handler(name))
    with pytest.raises(llama_chat_format.LlamaChatCompletionHandlerNotFoundException, match="there are alpaca"):
        llama_chat_format.get_chat_completion_handler("nope")
    registry = llama_chat_format.LlamaChatCompletionHandlerRegistry()
    with pytest.raises(ValueError, match="overwrite"):
        registry.register_chat_completion_handler("chatml", lambda **_: None)  # type: ignore[misc,arg-type]
    with pytest.raises(ValueError, match="nope"):
        registry.unregister_chat_handler("nope")


class Teller:
    """A Llama that says one thing."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        return [int(add_bos), *text]

    def create_completion(self, **asked: Any) -> Any:
        self.asked = asked
        choice = {"text": "Hi", "index": 0, "finish_reason": "stop", "logprobs": None}
        if asked.get("stream"):
            return iter(
                [
                    {**TEXT, "choices": [{**choice, "finish_reason": None}]},
                    {**TEXT, "choices": [{**choice, "text": ""}]},
                ]
            )
        probable = {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Hi": -0.5}], "text_offset": [0]}
        return {**TEXT, "choices": [{**choice, "logprobs": probable}], "usage": {"total_tokens": 3}}


def test_a_formatter_of_ones_own():
    @llama_chat_format.register_chat_format("shout")
    def shout(*, messages: Any, **kwargs: Any) -> llama_chat_format.ChatFormatterResponse:
        return llama_chat_format.ChatFormatterResponse(messages[-1]["content"].upper(), stop="!")

    try:
        handler = llama_chat_format.get_chat_completion_handler("shout")
        llama: Any = Teller()
        answer = handler(
            llama=llama, messages=MESSAGES, stop=["."], logprobs=True, top_logprobs=1, tools=None,
            response_format={"type": "json_object"},
        )  # fmt: skip
        assert llama.asked["prompt"] == [1, *b"BYE"]
        assert llama.asked["stop"] == [".", "!"]
        assert llama.asked["max_tokens"] is None
        assert llama.asked["grammar"] is not None
        assert answer["id"] == "chatcmpl-1"
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}
        assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5
        chunks = list(handler(llama=llama, messages=MESSAGES, stream=True))
        assert [one["choices"][0]["delta"] for one in chunks] == [{"role": "assistant"}, {"content": "Hi"}, {}]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        function = {"name": "f", "parameters": {"type": "object"}}
        named = {"tools": [{"type": "function", "function": function}], "tool_choice": {"function": {"name": "f"}}}
        (choice,) = handler(llama=llama, messages=MESSAGES, **named)["choices"]
        assert llama.asked["grammar"]._schema == '{"type": "object"}'
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "Hi"}
    finally:
        llama_chat_format.LlamaChatCompletionHandlerRegistry().unregister_chat_handler("shout")


FUNCTION = {"name": "f", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"tools": [{"function": FUNCTION}], "tool_choice": {"function": {"name": "f"}}}, True),
        ({"tools": [{"function": FUNCTION}], "tool_choice": {"function": {"name": "g"}}}, False),
        ({"tools": [{"function": FUNCTION}], "tool_choice": "required"}, False),
        ({"tools": None, "tool_choice": {"function": {"name": "f"}}}, False),
        ({"functions": [FUNCTION], "function_call": {"name": "f"}}, True),
        ({"functions": [FUNCTION], "function_call": "auto"}, False),
        ({}, False),
    ],
)
def test_a_function_that_is_named(asked: dict[str, Any], named: bool):
    assert _calls.named_function(asked) == (FUNCTION if named else None)


def test_arguments_become_the_call_of_a_function():
    body = {"id": "1", "choices": [{"message": {"role": "assistant", "content": "{}"}, "finish_reason": "stop"}]}
    (choice,) = _calls.as_call(body, "f")["choices"]
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": [call]}
    assert choice["finish_reason"] == "tool_calls"

    def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
        return {"id": "1", "choices": [{"delta": delta, "finish_reason": reason}]}

    given = [chunk(role="assistant"), chunk(content="{"), chunk(content="}"), chunk("length")]
    made = [one["choices"][0] for one in _calls.as_call(iter(given), "f")]
    begun = {**call, "index": 0, "function": {"name": "f", "arguments": "{"}}
    rest = {"index": 0, "function": {"arguments": "}"}}
    assert [one["delta"] for one in made] == [
        {"role": "assistant"},
        {"tool_calls": [begun]},
        {"tool_calls": [rest]},
        {},
    ]
    assert made[-1]["finish_reason"] == "length"


def test_calls_of_functions_in_openais_old_form():
    call = {"index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    whole = {"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    (choice,) = _calls.with_function_calls(whole)["choices"]
    assert choice["message"]["function_call"] == call["function"]
    assert choice["finish_reason"] == "function_call"
    chunk = {"choices": [{"delta": {"tool_calls": [{**call, "index": 1}]}, "finish_reason": None}]}
    assert list(_calls.with_function_calls(iter([chunk]))) == [chunk]


def test_small_parts():
    assert llama_cpp.Llama.longest_token_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert llama_cpp.Llama.longest_token_prefix([1], [1, 2]) == 1
    assert np.exp(llama_cpp.Llama.logits_to_logprobs([1.0, 2.0])).sum() == pytest.approx(1)
