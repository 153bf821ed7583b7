"""Packages of the registry that are written for llama-cpp-python, or for OpenAI's API: their normal flow, unchanged.

Each is installed into an environment of its own, beside the wheels of the bindings and of the module llama_cpp, and
runs on both engines. docs/from-llama-cpp-python.md has the same versions, and says what does not run.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.environment import own_variables, pip_variables
from forkyard.pure import build_bindings

from ..conftest import ROOT
from .minilm import fetch
from .test_serve import served

pytestmark = pytest.mark.deep

ENGINES = ("llama.cpp", "ik_llama.cpp")
CONSUMERS = {
    "langchain": ("langchain-community==0.4.2", "langchain-core==1.8.3"),
    "index": ("llama-index-llms-llama-cpp==0.7.0", "llama-index-core==0.14.25"),
    "haystack": ("llama-cpp-haystack==3.0.2", "haystack-ai==3.4.1"),
    "llm": ("llm==0.36", "llm-llama-cpp==0.3", "llm-gguf==0.2"),
    "instructor": ("instructor==1.17.0",),
    "grammars": ("lm-format-enforcer==0.11.3", "outlines==1.3.3", "numba==0.68.1", "llama-cpp-agent==0.2.35"),
    "http": ("openai==3.51.0", "lm-eval[api]==0.4.13"),
}
# What satisfies a requirement of llama-cpp-python and brings no file. docs/from-llama-cpp-python.md says how.
EMPTY = """\
[project]
name = "llama-cpp-python"
version = "0.3.36"

[tool.setuptools]
py-modules = []
"""
OFFLINE = re.compile("connection broken|NameResolution|No matching distribution found")

LANGCHAIN = """
import json, sys
model, minilm = sys.argv[1:]
from langchain_community.chat_models import ChatLlamaCpp
from langchain_community.embeddings import LlamaCppEmbeddings
from langchain_community.llms import LlamaCpp
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel

said = {}
# Its own default of rope_freq_base is another than the model's.
options = dict(model_path=model, n_ctx=512, temperature=0, rope_freq_base=0, rope_freq_scale=0, verbose=False)
llm = LlamaCpp(max_tokens=8, **options)
chain = PromptTemplate.from_template("The capital of {country} is") | llm
said["chain"] = chain.invoke({"country": "France"})
said["stream"] = "".join(chain.stream({"country": "France"}))
said["batch"] = chain.batch([{"country": "France"}, {"country": "Spain"}])
said["stop"] = llm.invoke("The capital of France is", stop=["."])
said["tokens"] = llm.get_num_tokens("The capital of France is")
said["grammar"] = LlamaCpp(grammar='root ::= "yes" | "no"', **options).invoke("Is Paris in France? ")
chat = ChatLlamaCpp(max_tokens=64, **options)
said["chat"] = chat.invoke([("system", "Be short."), ("human", "Say hi")]).content
prompt = ChatPromptTemplate.from_messages([("human", "Say {what}")]) | chat | StrOutputParser()
said["prompt"] = "".join(prompt.stream({"what": "hi"}))

@tool
def weather(city: str) -> str:
    "The weather of a city."
    return "sun"

class Person(BaseModel):
    name: str
    age: int

bound = chat.bind_tools([weather], tool_choice={"type": "function", "function": {"name": "weather"}})
said["calls"] = [call["name"] for call in bound.invoke([("human", "What is the weather in Paris?")]).tool_calls]
said["person"] = chat.with_structured_output(Person).invoke([("human", "Ann is 30 years old.")]).age
vectors = LlamaCppEmbeddings(model_path=minilm, verbose=False)
said["documents"] = [len(vector) for vector in vectors.embed_documents(["a cat sits", "prices rose"])]
said["query"] = len(vectors.embed_query("a cat sits"))
print(json.dumps(said))
"""
INDEX = """
import json, sys
from llama_index.core import Document, Settings, SummaryIndex
from llama_index.core.llms import ChatMessage
from llama_index.llms.llama_cpp import LlamaCPP

def prompt_of(messages):
    written = (f"<|im_start|>{one.role.value}\\n{one.content}<|im_end|>\\n" for one in messages)
    return "".join(written) + "<|im_start|>assistant\\n"

said = {}
llm = LlamaCPP(
    model_path=sys.argv[1], temperature=0, max_new_tokens=8, context_window=2048, verbose=False,
    messages_to_prompt=prompt_of, completion_to_prompt=str,
)
said["complete"] = llm.complete("The capital of France is").text
said["stream"] = "".join(one.delta for one in llm.stream_complete("The capital of France is"))
said["window"] = llm.metadata.context_window
said["chat"] = llm.chat([ChatMessage(role="user", content="Say hi")]).message.content
Settings.llm = llm
index = SummaryIndex.from_documents([Document(text="Ann lives in Oslo.")])
said["query"] = str(index.as_query_engine().query("Where does Ann live?"))
print(json.dumps(said))
"""
HAYSTACK = """
import json, sys
from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack_integrations.components.generators.llama_cpp import LlamaCppChatGenerator

said = {}
llm = LlamaCppChatGenerator(
    model=sys.argv[1], n_ctx=512, model_kwargs={"verbose": False}, generation_kwargs={"max_tokens": 32, "temperature": 0}
)
pipeline = Pipeline()
pipeline.add_component("prompt", ChatPromptBuilder(template=[ChatMessage.from_user("Say {{what}}")]))
pipeline.add_component("llm", llm)
pipeline.connect("prompt.prompt", "llm.messages")
said["pipeline"] = pipeline.run({"prompt": {"what": "hi"}})["llm"]["replies"][0].text
pieces = []
reply = llm.run([ChatMessage.from_user("Say hi")], streaming_callback=lambda one: pieces.append(one.content))
said["stream"] = reply["replies"][0].text == "".join(pieces) != ""
city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
weather = Tool(name="weather", description="The weather", parameters=city, function=lambda city: "sun")
choice = {"tool_choice": {"type": "function", "function": {"name": "weather"}}}
asked = [ChatMessage.from_user("What is the weather in Paris?")]
call = llm.run(asked, tools=[weather], generation_kwargs=choice)["replies"][0].tool_calls[0]
said["call"] = [call.tool_name, list(call.arguments)]
print(json.dumps(said))
"""
INSTRUCTOR = """
import json, sys
import instructor, llama_cpp
from pydantic import BaseModel

class Person(BaseModel):
    name: str
    age: int

llama = llama_cpp.Llama(model_path=sys.argv[1], n_ctx=1024, verbose=False, chat_format="chatml")
said = {}
for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
    create = instructor.patch(create=llama.create_chat_completion_openai_v1, mode=mode)
    asked = [{"role": "user", "content": "Extract: Bob is 20 years old."}]
    said[mode.name] = create(messages=asked, response_model=Person, max_tokens=64, temperature=0).age
    if mode is instructor.Mode.JSON_SCHEMA:
        parts = create(
            messages=asked, response_model=instructor.Partial[Person], stream=True, max_tokens=64, temperature=0
        )
        said["partial"] = list(parts)[-1].age
print(json.dumps(said))
"""
ENFORCER = """
import json, sys
from llama_cpp import Llama, LogitsProcessorList
from lmformatenforcer import JsonSchemaParser, RegexParser
from lmformatenforcer.integrations.llamacpp import (
    build_llamacpp_logits_processor, build_token_enforcer_tokenizer_data
)
llm = Llama(sys.argv[1], n_ctx=256, verbose=False)
tokens = build_token_enforcer_tokenizer_data(llm)
schema = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
said = []
for parser in (RegexParser(r" \\d\\d\\d\\d"), JsonSchemaParser(schema)):
    processors = LogitsProcessorList([build_llamacpp_logits_processor(tokens, parser)])
    said.append(llm("The year is", max_tokens=32, temperature=0, logits_processor=processors)["choices"][0]["text"])
print(json.dumps(said))
"""
AGENT = """
import json, sys
from llama_cpp import Llama
from llama_cpp_agent import LlamaCppAgent, MessagesFormatterType
from llama_cpp_agent.llm_output_settings import LlmStructuredOutputSettings, LlmStructuredOutputType
from llama_cpp_agent.providers import LlamaCppPythonProvider
from pydantic import BaseModel, Field

class Person(BaseModel):
    "A person."
    name: str = Field(..., description="the name")
    age: int = Field(..., description="the age")

provider = LlamaCppPythonProvider(Llama(sys.argv[1], n_ctx=1024, verbose=False))
agent = LlamaCppAgent(provider, predefined_messages_formatter_type=MessagesFormatterType.CHATML)
settings = provider.get_provider_default_settings()
settings.temperature, settings.max_tokens = 0.0, 80
said = {"text": agent.get_chat_response("Say hi", llm_sampling_settings=settings, print_output=False)}
form = LlmStructuredOutputSettings.from_pydantic_models([Person], LlmStructuredOutputType.object_instance)
person = agent.get_chat_response(
    "Ann is 30 years old.", llm_sampling_settings=settings, structured_output_settings=form, print_output=False
)
said["person"] = isinstance(person, Person)
print(json.dumps(said))
"""
OUTLINES = """
import json, sys
from typing import Literal
import llama_cpp, outlines
from pydantic import BaseModel

class Person(BaseModel):
    name: str
    age: int

model = outlines.from_llamacpp(llama_cpp.Llama(sys.argv[1], n_ctx=512, verbose=False))
said = {"text": model("Say hi", max_tokens=8), "stream": "".join(model.stream("Say hi", max_tokens=8))}
said["choice"] = model("Is Paris in France?", Literal["Yes", "No"], max_tokens=8)
said["age"] = json.loads(model("Ann is 30 years old. As JSON:", Person, max_tokens=48, temperature=0))["age"]
print(json.dumps(said))
"""
OPENAI = """
import json, sys
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
said = {}
if sys.argv[2] == "embeddings":
    for form in ({}, {"encoding_format": "float"}):
        data = client.embeddings.create(model="m", input=["a cat sits", "prices rose"], **form).data
        said[str(form)] = [len(one.embedding) for one in data]
else:
    def chat(text, **more):
        asked = [{"role": "user", "content": text}]
        return client.chat.completions.create(model="m", messages=asked, temperature=0, **more)

    made = client.completions.create(model="m", prompt="The capital of France is", max_tokens=2, temperature=0)
    said["completion"] = made.choices[0].text
    said["chat"] = chat("Say hi", max_tokens=8).choices[0].message.content
    chunks = list(chat("Say hi", max_tokens=8, stream=True, stream_options={"include_usage": True}))
    said["stream"] = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    said["usage"] = chunks[-1].usage.completion_tokens
    probable = chat("Say hi", max_tokens=2, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    said["logprobs"] = [[len(one.top_logprobs), one.logprob == one.top_logprobs[0].logprob] for one in probable]
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    said["schema"] = json.loads(chat("Ann is 30.", response_format=form, max_tokens=48).choices[0].message.content)
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": city}}]
    text = "What is the weather in Paris?"
    message = chat(text, tools=tools, tool_choice="required", max_tokens=64).choices[0].message
    calls = message.tool_calls or ()
    said["calls"] = [[call.function.name, list(json.loads(call.function.arguments))] for call in calls]
    said["text"] = message.content
print(json.dumps(said))
"""
LM_EVAL = """
import json, sys
from forkyard_llm import Llama
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.gguf import GGUFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

class Here(GGUFLM):
    def __init__(self, llm):
        super().__init__(base_url="none")
        self.llm = llm

    def gguf_completion(self, context, continuation=None, stop=None, **_):
        return self.llm(
            context + (continuation or ""), max_tokens=1 if continuation else 256, echo=bool(continuation),
            logprobs=10, temperature=0, stop=stop or (),
        )

def asked(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]

url, model, engine = sys.argv[1:]
prompt, until = "The capital of France is", {"until": ["."], "max_gen_toks": 8}
question = JsonChatStr(json.dumps([{"role": "user", "content": "Say hi"}]))
said = {"gguf": GGUFLM(base_url=url).generate_until(asked("generate_until", prompt, until))}
local = LocalCompletionsAPI(
    base_url=url + "/v1/completions", model="m", tokenizer_backend=None, tokenized_requests=False, max_length=512
)
said["completions"] = local.generate_until(asked("generate_until", prompt, until))
chat = LocalChatCompletion(base_url=url + "/v1/chat/completions", model="m")
said["chat"] = chat.generate_until(asked("generate_until", question, until))
with Llama(model, engine=engine, n_ctx=256) as llm:
    here = Here(llm)
    pairs = asked("loglikelihood", prompt, " Paris") + asked("loglikelihood", prompt, " Berlin, of course")
    said["likely"] = here.loglikelihood(pairs)
    said["here"] = here.generate_until(asked("generate_until", prompt, until))
    token = llm(prompt, max_tokens=1, logprobs=1, temperature=0)["choices"][0]["logprobs"]["token_logprobs"][0]
    said["token"] = token
print(json.dumps(said))
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a name of :data:`CONSUMERS` to the programs of an environment that has these packages."""

    @functools.cache
    def environment(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "empty").mkdir()
        (folder / "empty" / "pyproject.toml").write_text(EMPTY)
        wheels = build_bindings(ROOT, Cache.default(), folder, Silent())
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        words = [python, "-m", "pip", "install", "--quiet", *wheels, folder / "empty", *CONSUMERS[name]]
        variables = pip_variables(python, os.environ)
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode != 0 and OFFLINE.search(done.stderr):
            pytest.skip(f"pip finds no registry that has {' '.join(CONSUMERS[name])}: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, done.stderr[-3000:]
        return python.parent

    return environment


@pytest.fixture
def variables(payloads: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    """The environment for programs of consumers: both payloads, and nothing else of the repository."""
    mine = {name: value for name, value in own_variables(os.environ).items() if not name.startswith("FORKYARD")}
    return {
        **mine,
        "FORKYARD_LLM_PAYLOAD_PATH": os.pathsep.join(map(str, payloads.values())),
        "FORKYARD_LLM_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "LLM_USER_PATH": str(tmp_path),
        # Threads that wait for each other are very slow where other programs want the cores.
        "OMP_THREAD_LIMIT": "1",
    }


@pytest.fixture
def ask(installed: Callable[[str], Path], variables: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """A function that runs a program of an environment, on an engine, and gives what it prints."""

    def run(name: str, engine: str, program: str, *words: object) -> str:
        command = [str(installed(name) / program), *map(str, words)]
        done = subprocess.run(
            command, cwd=tmp_path, env={**variables, "FORKYARD_LLM_ENGINE": engine},
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture
def flow(ask: Callable[..., str]) -> Callable[..., Any]:
    """A function that runs Python code in an environment and reads the JSON that it prints last."""

    def run(name: str, engine: str, code: str, *words: object) -> Any:
        return json.loads(ask(name, engine, "python", "-c", code, *words).splitlines()[-1])

    return run


@pytest.mark.parametrize("engine", ENGINES)
def test_langchain_community(flow: Callable[..., Any], smollm2: Path, engine: str):
    said = flow("langchain", engine, LANGCHAIN, smollm2, fetch())
    assert said["chain"].startswith(" Paris.")
    assert said["stream"] == said["batch"][0] == said["chain"]
    assert said["batch"][1].startswith(" Madrid.")
    assert (said["stop"], said["tokens"]) == (" Paris", 5)
    assert said["grammar"] in ("yes", "no")
    assert said["chat"]
    assert said["prompt"]
    assert said["calls"] == ["weather"]
    assert isinstance(said["person"], int)
    assert [*said["documents"], said["query"]] == [384] * 3


@pytest.mark.parametrize("engine", ENGINES)
def test_llama_index(flow: Callable[..., Any], smollm2: Path, engine: str):
    said = flow("index", engine, INDEX, smollm2)
    assert said["complete"].startswith(" Paris.")
    assert said["stream"] == said["complete"]
    assert said["window"] == 2048
    assert said["chat"]
    assert "Oslo" in said["query"]


@pytest.mark.parametrize("engine", ENGINES)
def test_haystack(flow: Callable[..., Any], smollm2: Path, engine: str):
    said = flow("haystack", engine, HAYSTACK, smollm2)
    assert said["pipeline"]
    assert said["stream"] is True
    assert said["call"] == ["weather", ["city"]]


@pytest.mark.parametrize("engine", ENGINES)
def test_plugins_of_the_command_llm(ask: Callable[..., str], smollm2: Path, engine: str):
    def llm(*words: object) -> str:
        return ask("llm", engine, "llm", *words)

    short = ("-o", "max_tokens", "8", "-o", "n_ctx", "512")
    llm("llama-cpp", "add-model", smollm2, "--alias", "small", "--llama2-chat")
    assert llm("-m", "small", "Say hi", *short).strip()
    assert llm("-m", "gguf", "-o", "path", smollm2, "The capital of France is", *short).startswith(" Paris")
    llm("gguf", "register-model", "smollm2", smollm2, "--alias", "s", "--n-ctx", "512")
    said = llm("-m", "s", "Say hi in one word")
    assert said.strip()
    assert said.strip() in llm("logs", "-n", "1")
    assert llm("-c", "And again?").strip()
    llm("gguf", "register-embed-model", "mini", fetch())
    assert len(json.loads(llm("embed", "-m", "gguf/mini", "-c", "a cat sits"))) == 384


@pytest.mark.parametrize("engine", ENGINES)
def test_instructor(flow: Callable[..., Any], smollm2: Path, engine: str):
    said = flow("instructor", engine, INSTRUCTOR, smollm2)
    assert [(name, type(age)) for name, age in said.items()] == [("JSON_SCHEMA", int), ("partial", int), ("TOOLS", int)]


@pytest.mark.parametrize("engine", ENGINES)
def test_lm_format_enforcer(flow: Callable[..., Any], smollm2: Path, engine: str):
    year, document = flow("grammars", engine, ENFORCER, smollm2)
    assert re.fullmatch(r" \d{4}", year)
    assert list(json.loads(document)) == ["year"]


@pytest.mark.parametrize("engine", ENGINES)
def test_llama_cpp_agent(flow: Callable[..., Any], smollm2: Path, engine: str):
    said = flow("grammars", engine, AGENT, smollm2)
    assert said["text"].strip()
    assert said["person"] is True


def test_outlines_reads_the_vocabulary_through_llama_cpps_interface(flow: Callable[..., Any], smollm2: Path):
    said = flow("grammars", "llama.cpp", OUTLINES, smollm2)
    assert said["text"]
    assert said["stream"]
    assert said["choice"] in ("Yes", "No")
    assert isinstance(said["age"], int)


@pytest.fixture
def serving(variables: dict[str, str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sees the payloads built here, and the bindings of the repository."""
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", variables["FORKYARD_LLM_PAYLOAD_PATH"])
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)


@pytest.mark.usefixtures("serving")
@pytest.mark.parametrize("engine", ENGINES)
def test_openais_client(flow: Callable[..., Any], smollm2: Path, engine: str):
    with served(smollm2, "--engine", engine, "--", "-t", "1", "-c", "1024", "--jinja") as (_, ready):
        said = flow("http", engine, OPENAI, ready["url"], "chat")
    assert said["completion"] == " Paris."
    assert said["stream"] == said["chat"] != ""
    assert said["usage"] <= 8
    assert said["logprobs"] == [[3, True]] * 2
    assert list(said["schema"]) == ["age"]
    # llama.cpp's calls none by a template that knows no tools.
    assert said["calls"] == ([] if engine == "llama.cpp" else [["weather", ["city"]]])
    assert bool(said["text"]) == (engine == "llama.cpp")
    with served(fetch(), "--engine", engine, "--", "-t", "1", "-c", "512", "--embedding") as (_, ready):
        said = flow("http", engine, OPENAI, ready["url"], "embeddings")
    assert list(said.values()) == [[384, 384]] * 2


@pytest.mark.usefixtures("serving")
@pytest.mark.parametrize("engine", ENGINES)
def test_lm_eval(flow: Callable[..., Any], smollm2: Path, engine: str):
    with served(smollm2, "--engine", engine, "--", "-t", "1", "-c", "512") as (_, ready):
        said = flow("http", engine, LM_EVAL, ready["url"], smollm2, engine)
    assert said["gguf"] == said["here"] == ["Paris"]
    assert said["completions"] == [" Paris"]
    assert said["chat"][0]
    (likely, greedy), (unlikely, surprising) = said["likely"]
    assert (greedy, surprising) == (True, False)
    assert likely > unlikely
    assert likely == pytest.approx(said["token"], abs=0.3)


def test_the_documents_name_these_versions():
    document = (ROOT / "docs" / "from-llama-cpp-python.md").read_text(encoding="utf-8")
    for packages in CONSUMERS.values():
        for package in packages:
            name, _, version = package.partition("==")
            if name not in ("langchain-core", "llama-index-core", "haystack-ai", "numba"):
                assert f"{name.partition('[')[0]} {version}" in document
