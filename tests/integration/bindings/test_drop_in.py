"""The module llama_cpp with real engines and a real model: what llama-cpp-python's users write, on both."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forkyard_llm
import llama_cpp
import numpy as np
import pytest
from forkyard_llm.errors import UnsupportedOption, UsageError
from llama_cpp import _once, llama_chat_format
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from .tiny_media import LLAVA, png, write_projector
from .tiny_texts import write_decoder

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
PROMPT = "The capital of France is"
HI: Any = [{"role": "user", "content": "Say hi"}]
OPTIONS: Any = {"n_ctx": 256, "n_threads": 1, "verbose": False}


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest, built_payloads: None, smollm2: Path) -> Iterator[llama_cpp.Llama]:
    with llama_cpp.Llama(str(smollm2), engine=request.param, **OPTIONS) as opened:
        assert opened.engine == request.param
        yield opened


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["text"])


def test_it_says_what_forkyard_llm_says(llm: llama_cpp.Llama, smollm2: Path):
    with forkyard_llm.Llama(smollm2, engine=llm.engine, n_ctx=256, n_threads=1) as other:
        expected = other(PROMPT, max_tokens=8, temperature=0)
        chat = other.create_chat_completion(HI, max_tokens=8, temperature=0)
    made = llm(PROMPT, max_tokens=8, temperature=0, model="named")
    assert made["model"] == "named"
    assert {**made, "id": 0, "created": 0, "model": 0} == {**expected, "id": 0, "created": 0, "model": 0}
    chunks = list(llm(PROMPT, max_tokens=8, temperature=0, stream=True))
    assert "".join(map(text_of, chunks)) == text_of(expected)
    answer = llm.create_chat_completion(HI, max_tokens=8, temperature=0)
    assert answer["choices"] == chat["choices"]


def test_seeds(llm: llama_cpp.Llama):
    def some() -> list[str]:
        return [text_of(llm("Once", max_tokens=6, temperature=1.5)) for _ in range(3)]

    llm.set_seed(1)
    first = some()
    assert len(set(first)) > 1
    llm.set_seed(1)
    assert some() == first


def test_what_is_known_of_the_model(llm: llama_cpp.Llama):
    assert llm.metadata["general.architecture"] == "llama"
    assert "tokenizer.chat_template" in llm.metadata
    assert llm.n_ctx() == 256
    assert llm.token_nl() == llm.tokenize(b"\n", add_bos=False)[0]
    tokens = llm.tokenize(b"Hello", add_bos=False)
    assert llm.tokenizer().decode(tokens) == "Hello"
    assert llm.detokenize([llm.token_bos()], special=True)


def test_grammars(llm: llama_cpp.Llama):
    either = llama_cpp.LlamaGrammar.from_string('root ::= "yes" | "no"')
    assert text_of(llm("Is it? ", max_tokens=4, grammar=either)) in ("yes", "no")
    schema = '{"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}'
    made = text_of(llm("Two: ", max_tokens=40, temperature=0, grammar=llama_cpp.LlamaGrammar.from_json_schema(schema)))
    assert made.replace(" ", "").replace("\n", "").startswith("[1,1")
    with pytest.raises(UsageError):
        llm("a", max_tokens=1, grammar=llama_cpp.LlamaGrammar.from_string("root ::= ("))


def test_processors_and_criteria(llm: llama_cpp.Llama):
    (only,) = llm.tokenize(b" London", add_bos=False)

    def london(ids: Any, scores: Any) -> Any:
        assert scores.shape == (llm.n_vocab(),)
        assert llm.detokenize(ids) in (PROMPT.encode(), PROMPT.encode() + b" London")
        allowed = np.full_like(scores, -np.inf)
        allowed[only] = 0
        return allowed

    def long(ids: Any, logits: Any) -> bool:
        assert int(np.argmax(logits)) == ids[-1]
        return len(ids) >= len(prompt) + 2

    prompt = llm.tokenize(PROMPT.encode())
    processors = llama_cpp.LogitsProcessorList([london])
    criteria = llama_cpp.StoppingCriteriaList([long])
    answer = llm(PROMPT, max_tokens=9, logits_processor=processors, stopping_criteria=criteria)
    assert text_of(answer) == " London London"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert list(llm.generate(prompt, temp=0.0, logits_processor=processors, stopping_criteria=criteria)) == [only]
    chunks = list(llm(PROMPT, max_tokens=9, logits_processor=processors, stopping_criteria=criteria, stream=True))
    assert "".join(map(text_of, chunks)) == " London London"


def test_step_by_step(llm: llama_cpp.Llama, smollm2: Path):
    expected = llm.tokenize(text_of(llm(PROMPT, max_tokens=3, temperature=0)).encode(), add_bos=False)
    tokens = llm.tokenize(PROMPT.encode())
    llm.reset()
    llm.eval(tokens)
    assert llm.input_ids[: llm.n_tokens].tolist() == tokens == llm.eval_tokens
    assert llm.sample(temp=0.0) == expected[0] == int(np.argmax(llm.eval_logits[-1]))
    with pytest.raises(UnsupportedOption, match="idx=0"):
        llm.sample(idx=0)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    llm.reset()
    llm.load_state(state)
    made = llm.generate(tokens, temp=0.0)
    assert [next(made) for _ in range(2)] == expected[:2]
    made.send(llm.tokenize(b" of", add_bos=False))
    assert llm.detokenize(llm.eval_tokens).endswith(b" of")
    made.close()
    with llama_cpp.Llama(str(smollm2), engine=llm.engine, logits_all=True, **OPTIONS) as scored:
        scored.eval(tokens)
        assert int(np.argmax(scored.scores[len(tokens) - 1])) == expected[0]
        assert len(scored.eval_logits) == len(tokens)


def test_chat_formats_and_handlers(llm: llama_cpp.Llama, smollm2: Path):
    own = llm.create_chat_completion(HI, max_tokens=6, temperature=0)
    formatter = llama_chat_format.Jinja2ChatFormatter(
        llm.metadata["tokenizer.chat_template"], eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    asked: list[Any] = []

    def handler(**given: Any) -> Any:
        asked.append(given)
        return formatter.to_chat_handler()(**given)

    llm.chat_handler = handler
    try:
        answer = llm.create_chat_completion(HI, max_tokens=6, temperature=0, logprobs=True, top_logprobs=1)
        chunks = list(llm.create_chat_completion(HI, max_tokens=6, temperature=0, stream=True))
    finally:
        llm.chat_handler = None
    assert asked[0]["llama"] is llm
    assert answer["choices"][0]["message"]["content"] == own["choices"][0]["message"]["content"]
    assert len(answer["choices"][0]["logprobs"]["content"]) == 6
    told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert told == own["choices"][0]["message"]["content"]
    llm.chat_format = "chatml"
    try:
        assert llm.create_chat_completion(HI, max_tokens=2)["object"] == "chat.completion"
    finally:
        llm.chat_format = llama_chat_format.OWN


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("auto", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
        ({"name": "weather"}, '{"city": "Paris"}'),
    ],
)
def test_functions_in_openais_old_form(llm: llama_cpp.Llama, wish: Any, said: str):
    words = [*llm.tokenize(said.encode(), add_bos=False), llm.token_eos()]
    function = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    begun: list[int] = []

    def saying(ids: Any, scores: Any) -> Any:
        begun.append(len(ids))
        scores[words[len(ids) - begun[0]]] = 1e6
        return scores

    def ask(**more: Any) -> Any:
        begun.clear()
        return llm.create_chat_completion(
            HI, functions=[function], function_call=wish, max_tokens=40, temperature=0,
            logits_processor=llama_cpp.LogitsProcessorList([saying]), **more,
        )  # fmt: skip

    llm.chat_format = "chatml-function-calling"
    try:
        (choice,) = ask()["choices"]
        chunks = list(ask(stream=True))
    finally:
        llm.chat_format = llama_chat_format.OWN
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "weather"
    assert json.loads(choice["message"]["function_call"]["arguments"]) == {"city": "Paris"}
    calls = [chunk["choices"][0]["delta"].get("function_call") for chunk in chunks]
    assert (
        "".join(call.get("arguments", "") for call in calls if call) == choice["message"]["function_call"]["arguments"]
    )


def test_a_tool_that_is_named_is_called_whatever_the_template_knows(llm: llama_cpp.Llama):
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "required": ["city"], **more}}}
        for name, more in (("time", {}), ("weather", {"properties": {"city": {"type": "string", "maxLength": 20}}}))
    ]
    asked: Any = {"tools": tools, "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = llm.create_chat_completion(messages, max_tokens=48, temperature=0, **asked)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert list(json.loads(call["function"]["arguments"])) == ["city"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    llm.chat_format = "chatml-function-calling"
    try:
        with_tools = llm.create_chat_completion(messages, max_tokens=48, temperature=0, **asked)
    finally:
        llm.chat_format = llama_chat_format.OWN
    assert with_tools["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"] + 40, "this template shows the tools"
    assert with_tools["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_caches_drafts_and_pickles(llm: llama_cpp.Llama, smollm2: Path):
    expected = text_of(llm("1, 2, 3, 4, 1, 2,", max_tokens=6, temperature=0))
    draft = LlamaPromptLookupDecoding(num_pred_tokens=4)
    with llama_cpp.Llama(str(smollm2), engine=llm.engine, draft_model=draft, **OPTIONS) as first:
        cache = llama_cpp.LlamaRAMCache()
        first.set_cache(cache)
        assert text_of(first("1, 2, 3, 4, 1, 2,", max_tokens=6, temperature=0)) == expected
        assert cache.cache_size
        with pickle.loads(pickle.dumps(first)) as second:
            assert second.engine == llm.engine
            assert second.n_ctx() == 256


def test_options_that_ask_for_other_things(built_payloads: None, smollm2: Path, monkeypatch: pytest.MonkeyPatch):
    for engine in ENGINES:
        monkeypatch.setattr(_once, "_given", set())
        with pytest.raises(UnsupportedOption, match="kv_overrides"):
            llama_cpp.Llama(str(smollm2), engine=engine, kv_overrides={"a": 1}, verbose=False)
        with pytest.warns(UserWarning, match="no GPU|n_parts"):
            llama_cpp.Llama(str(smollm2), engine=engine, n_gpu_layers=-1, n_parts=1, **OPTIONS).close()


def test_embeddings(llm: llama_cpp.Llama, smollm2: Path):
    with llama_cpp.Llama(
        str(smollm2), engine=llm.engine, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN, **OPTIONS
    ) as made:
        assert made.pooling_type() == 1
        body = made.create_embedding(["one", "two words"], model="m")
        vectors, count = made.embed(["one", "two words"], return_count=True)
        assert [one["embedding"] for one in body["data"]] == vectors
        assert body["usage"]["total_tokens"] == count == 3
        assert len(made.embed("one")) == made.n_embd()
        assert np.linalg.norm(made.embed("one", normalize=True)) == pytest.approx(1, abs=1e-5)


def test_the_low_level_names_are_the_payloads(built_payloads: None, llm: llama_cpp.Llama):
    if llm.engine != "llama.cpp":
        with pytest.raises(UnsupportedOption, match=r"this is ik_llama\.cpp"):
            _ = llm.model
        pytest.skip("names of llama.cpp's C interface")
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    assert llama_cpp.llama_vocab_n_tokens(vocabulary) == llm.n_vocab()
    params = llama_cpp.llama_cpp.llama_model_default_params()  # type: ignore[attr-defined]
    assert isinstance(params, llama_cpp.llama_model_params)
    assert llama_cpp.LLAMA_LOAD_MODE_MMAP == llama_cpp.llama_cpp.LLAMA_LOAD_MODE_MMAP  # type: ignore[attr-defined]
    assert llama_cpp.llama_max_devices() > 0
    assert llama_cpp.llama_context_p is llama_cpp.llama_context_p_ctypes
    assert llama_cpp.mtmd_cpp.mtmd_default_marker() is not None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="llama_nothing"):
        _ = llama_cpp.llama_nothing
    with pytest.raises(AttributeError):
        _ = llama_cpp.mtmd_cpp.llama_decode  # type: ignore[attr-defined]


def test_a_handler_of_images_names_the_projector(llm: llama_cpp.Llama, tmp_path: Path):
    write_decoder(tmp_path / "plain.gguf", bytes_as_tokens=True, context=1024)
    write_projector(tmp_path / "mmproj.gguf", LLAVA)
    url = "data:image/png;base64," + base64.b64encode(png(16, 16, 1)).decode()

    def said(model: Any, image: Any) -> Any:
        messages = [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]
        return model.create_chat_completion(messages, max_tokens=8, temperature=0)["choices"]

    handler = llama_chat_format.Llava15ChatHandler(clip_model_path=str(tmp_path / "mmproj.gguf"))
    path = str(tmp_path / "plain.gguf")
    with llama_cpp.Llama(path, engine=llm.engine, chat_handler=handler, **OPTIONS) as model:
        found = said(model, url)
    with forkyard_llm.Llama(path, mmproj=handler.clip_model_path, engine=llm.engine, n_ctx=256, n_threads=1) as other:
        assert found == said(other, {"url": url})
