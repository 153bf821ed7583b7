"""Chat, tools, grammars and samplers of the engines' own `common`, on real models: as the payload's own server has them."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import Llama
from forkyard_llm.errors import EngineError, UsageError

from . import qwen

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
MODELS = ("smollm2-135m", "gemma3-270m", pytest.param(qwen.NAME, marks=pytest.mark.deep))
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CHATML_WITH_TOOLS = (
    "{%- if tools %}<|im_start|>system\nTools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}\n"
    'Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n{% endif %}'
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{%- for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_of(body: Any) -> str:
    return str(body["choices"][0]["text"])


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest, built_payloads: None, smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, engine=request.param, n_ctx=512, n_threads=1) as opened:
        yield opened


@contextlib.contextmanager
def server(llm: Llama, model: Path, *more: str) -> Iterator[str]:
    """The address of the payload's own server, computing as ``Llama`` does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(llm.payload.tool("llama-server")), "-m", str(model), "--port", str(port), "-c", "1024", "-t", "1"]
    words += ["-np", "1", "--jinja", "-fa", "on", *more]
    if llm.engine == "llama.cpp":
        # With checkpoints it computes a prompt in other parts, and rounds otherwise.
        words += ["-fit", "off", "--cache-ram", "0", "--ctx-checkpoints", "0", "--swa-full"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_chat_says_what_the_payload_s_own_server_says(engine: str, name: str, model_file: Callable[[str], Path]):
    path = model_file(name)
    asked: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Count from 1 to 12."}]},
        {"messages": QUESTION, "tools": [WEATHER]},
        {"messages": QUESTION, "tools": [WEATHER], "tool_choice": "required"},
        {"messages": [{"role": "user", "content": "Name a colour."}], "response_format": {"type": "json_object"}},
    ]
    with Llama(path, engine=engine, n_ctx=1024, n_threads=1, flash_attn=True) as llm, server(llm, path) as address:
        for body in asked:
            ours = llm.create_chat_completion(**body, max_tokens=32, temperature=0)
            theirs = ask(address, {**body, "max_tokens": 32, "temperature": 0, "cache_prompt": False})
            assert isinstance(ours, dict)
            messages = [answer["choices"][0]["message"] for answer in (ours, theirs)]
            said = [message.get("content") or "" for message in messages]
            calls = [[call["function"] for call in message.get("tool_calls") or ()] for message in messages]
            assert said[0] == said[1]
            assert calls[0] == calls[1]
            assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


def saying(llm: Llama, text: str) -> Any:
    """A processor that has the model say this, as far as a grammar lets it, and end."""
    words = [*llm.tokenize(text, add_bos=False, special=True), llm.token_eos()]
    begun: list[int] = []

    def force(tokens: Any, logits: Any) -> None:
        begun.append(len(tokens))
        logits[words[len(tokens) - begun[0]]] = 1e6

    return force


def test_a_tool_is_called_and_its_answer_read(llm: Llama):
    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'

    def ask(**more: Any) -> Any:
        return llm.create_chat_completion(
            QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=64, temperature=0,
            chat_template=CHATML_WITH_TOOLS, logits_processor=saying(llm, said), **more,
        )  # fmt: skip

    body = ask()
    (choice,) = body["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "weather"
    assert call["id"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}

    chunks = list(ask(stream=True))
    parts = [one for chunk in chunks for one in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert parts[0]["function"]["name"] == "weather"
    assert "".join(part["function"].get("arguments", "") for part in parts) == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    told: Any = llm.create_chat_completion(
        [*QUESTION, choice["message"], result], max_tokens=8, temperature=0, chat_template=CHATML_WITH_TOOLS
    )
    assert told["choices"][0]["message"]["content"]


def test_a_schema_is_followed_in_completions_and_chats(llm: Llama):
    for seed in range(3):
        body: Any = llm.create_chat_completion(
            [{"role": "user", "content": "Invent a person."}],
            response_format={"type": "json_schema", "json_schema": {"schema": PERSON}},
            max_tokens=100, seed=seed, logit_bias={llm.tokenize("\n", add_bos=False)[0]: -5.0},
        )  # fmt: skip
        if body["choices"][0]["finish_reason"] == "stop":
            person = json.loads(body["choices"][0]["message"]["content"])
            assert set(person) == {"name", "age"}
            assert isinstance(person["age"], int)
    assert text_of(llm("Is fire hot?", json_schema={"enum": ["yes", "no"]}, max_tokens=9)).strip() in ('"yes"', '"no"')


def test_a_grammar_is_followed_and_its_state_is_the_request_s_own(llm: Llama):
    for _ in range(2):
        assert text_of(llm("Say it:", grammar='root ::= "ab" [0-9] "c"', max_tokens=9)) in [
            f"ab{n}c" for n in range(10)
        ]


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= (",
        'x ::= "a"',
        'root ::= root "a"',
        "root ::= " + "(" * 100_000,
        "root ::= " + "(" * 300 + '"a"' + ")" * 300,
        'root ::= "a"{5,3}',
        'root ::= ("a" | [{]){ 4 , 2 }',
        "%llguidance {}",
        "root ::= x",
        "\x7f\x01",
    ],
)
def test_bad_grammars_are_refused(llm: Llama, grammar: str):
    with pytest.raises(UsageError, match=r"grammar|nested|llguidance|repeats"):
        llm("x", grammar=grammar, max_tokens=2)
    assert llm("x", max_tokens=1)


@pytest.mark.parametrize(
    "grammar", ["root ::= [\\U0010FFFF]", 'root ::= "a"{1,1000000}', 'root ::= ""', 'root ::= ("")*']
)
def test_strange_grammars_are_no_crash(llm: Llama, grammar: str):
    with contextlib.suppress(EngineError, UsageError):
        llm("x", grammar=grammar, max_tokens=4, temperature=1.0)
    assert llm("x", max_tokens=1)


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "[]",
        '{"type": "banana"}',
        '{"$ref": "#/nowhere"}',
        '{"$ref": "#"}',
        "[" * 5000,
        '{"type": "array", "minItems": 5, "maxItems": 3}',
        '{"pattern": "(", "type": "string"}',
    ],
)
def test_bad_schemas_are_refused_or_harmless(llm: Llama, schema: str):
    with contextlib.suppress(UsageError, EngineError):
        llm("x", json_schema=schema, max_tokens=2)
    assert llm("x", max_tokens=1)


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "{% for %}",
        "{% if %}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
        "{{ x.y.z }}",
        "{{ a",
        "{{ [1,",
        "{% for x in",
        "{{ {'a':",
        "{% for x in y %}a",
        "{% macro f(",
        "{{ )",
    ],
)
def test_bad_templates_are_refused_or_harmless(llm: Llama, template: str):
    with contextlib.suppress(UsageError):
        llm.create_chat_completion([{"role": "user", "content": "x"}], chat_template=template, max_tokens=1)
    assert llm("x", max_tokens=1)


def test_logprobs_are_those_of_the_model(llm: Llama):
    body: Any = llm("The capital of France is", max_tokens=2, temperature=0, logprobs=3, echo=True)
    told = body["choices"][0]["logprobs"]
    assert told["tokens"][:2] == ["The", " capital"]
    assert told["token_logprobs"][0] is None
    assert body["choices"][0]["text"] == "".join(told["tokens"])
    tokens = llm.tokenize("The capital of France is")
    llm.reset()
    for place in range(1, len(tokens)):
        # One token after the other, by a softmax over all of them.
        llm.eval(tokens[place - 1 : place])
        row = list(llm._generation.call(lambda session: session.row_of_logits())[: llm.n_vocab()])
        largest = max(row)
        total = largest + math.log(math.fsum(math.exp(value - largest) for value in row))
        assert told["token_logprobs"][place] == pytest.approx(row[tokens[place]] - total, abs=0.1)
    top = told["top_logprobs"][-1]
    assert list(top.values()) == sorted(top.values(), reverse=True)
    assert len(top) == 3


def test_a_chat_s_logprobs(llm: Llama):
    body: Any = llm.create_chat_completion(QUESTION, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2)
    content = body["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == body["choices"][0]["message"]["content"]
    assert all(one["logprob"] == one["top_logprobs"][0]["logprob"] for one in content)
    plain: Any = llm.create_chat_completion(QUESTION, max_tokens=3, temperature=0)
    assert plain["choices"][0]["logprobs"] is None
    with pytest.raises(UsageError, match="top_logprobs needs"):
        llm.create_chat_completion(QUESTION, top_logprobs=2)


@pytest.mark.parametrize(
    "sampling",
    [
        {"typical_p": 0.5},
        {"mirostat_mode": 1},
        {"mirostat_mode": 2, "mirostat_tau": 3.0},
        {"xtc_probability": 1.0},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1},
        {"top_n_sigma": 0.5},
        {"dynatemp_range": 0.5},
        {"min_keep": 5},
        {"ignore_eos": True},
        {"samplers": ["temperature"], "top_k": 1},
    ],
    ids=lambda sampling: next(iter(sampling)),
)
def test_each_sampler_is_repeatable_and_does_something(llm: Llama, sampling: dict[str, Any]):
    def generate(seed: int, **more: Any) -> str:
        return text_of(llm("Once upon a time", max_tokens=16, temperature=1.2, seed=seed, **more))

    assert generate(7, **sampling) == generate(7, **sampling)
    if sampling.keys() & {"typical_p", "mirostat_mode", "xtc_probability", "dry_multiplier", "top_n_sigma", "samplers"}:
        assert any(generate(seed, **sampling) != generate(seed, min_keep=1) for seed in range(4))


def test_what_one_engine_lacks_is_refused(llm: Llama):
    lacking: list[dict[str, Any]] = [{"tfs_z": 0.5}]
    if llm.engine == "ik_llama.cpp":
        lacking = [{"reasoning_budget": 5}, {"adaptive_target": 0.3}, {"dynatemp_range": 2.0}]
    for sampling in lacking:
        with pytest.raises(UsageError, match=r"tfs_z|reasoning budget|adaptive_p|dynatemp_range"):
            llm("x", max_tokens=1, **sampling)
    with pytest.raises(UsageError, match="none of this engine's"):
        llm("x", max_tokens=1, samplers=["sauna"])


def test_reasoning_is_read_apart(llm: Llama):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: <think>\n"
    plan = llm._generation.call(
        lambda session: session.templates(template).apply({"messages": QUESTION, "reasoning_format": "deepseek"})
    )
    assert plan.prompt.endswith("<think>")
    parser = llm._context().answer_parser(plan)
    message = parser.add("It rains often.</think>Rain.", "stop")["message"]
    parser.close()
    assert message["content"].strip() in ("Rain.", "It rains often.</think>Rain.")


def test_an_answer_may_be_begun_for_the_model(llm: Llama):
    begun = [*QUESTION, {"role": "assistant", "content": "The weather in Paris is"}]
    arguments: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    body: Any = llm.create_chat_completion(begun, **arguments)
    whole: Any = llm.create_chat_completion(begun, prefill=False, **arguments)
    assert body["usage"]["prompt_tokens"] < whole["usage"]["prompt_tokens"]
    assert not body["choices"][0]["message"]["content"].startswith("The weather")


def test_processors_change_what_is_chosen(llm: Llama):
    wanted = llm.tokenize(" Rome", add_bos=False)[0]

    def prefer(tokens: Any, logits: Any) -> None:
        assert tokens[: len(prompt)] == prompt
        logits[wanted] = 1e4

    prompt = llm.tokenize("The capital of France is")
    assert text_of(llm(prompt, max_tokens=1, temperature=0, logits_processor=prefer)) == " Rome"

    def fail(_tokens: Any, _logits: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        llm("x", max_tokens=1, logits_processor=[fail])
    assert llm("x", max_tokens=1)
