"""Random requests at the stack common-c-api, run as a child: arguments are payload's engine, model, kind, seed, count."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from forkyard_llm import Llama
from forkyard_llm.engines.common import AnswerParser, CommonSampler, schema_to_grammar
from forkyard_llm.errors import ForkyardLlmError

VALUES: list[Any] = [
    None, True, False, 0, -1, 5, 1e308, "", "x", "user", "assistant", "tool", "system", "function", "auto", "required",
    "<tool_call>", "</think>", "\0", "é🎉", "{", "[", "text", "object", "string", "array", "#/x", "^a*$", "(((", "a{1,5}",
]  # fmt: skip
KEYS = [
    "role",
    "content",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
    "type",
    "text",
    "parameters",
    "properties",
    "required",
    "items",
    "enum",
    "anyOf",
    "$ref",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "tool_call_id",
    "reasoning_content",
    "additionalProperties",
    "const",
    "minimum",
    "format",
    "$defs",
    "oneOf",
    "allOf",
    "not",
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
REQUEST = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "y"},
        {"role": "user", "content": "q"},
    ],
    "tools": [TOOL, TOOL], "tool_choice": "auto", "parallel_tool_calls": True, "reasoning_format": "auto",
    "enable_thinking": True, "template_kwargs": {"a": 1}, "prefill": False, "stream": True, "now": 5,
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^[a-z]{1,3}$"},
        "b": {"type": "array", "items": {"type": "integer", "minimum": -5}, "minItems": 1, "maxItems": 3},
        "c": {"$ref": "#/$defs/x"},
        "d": {"anyOf": [{"const": 5}, {"enum": ["x", 1, None]}]},
        "e": {"type": "string", "format": "date"},
    },
    "required": ["a"],
    "$defs": {"x": {"type": ["string", "null"]}},
    "additionalProperties": {"type": "number"},
}
TEMPLATES = (
    "",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "{{ tools | tojson }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}",
)
TEXTS = (
    "<tool_call>\n", '{"name": "weather", "arguments": {"city": "Paris"}}', "\n</tool_call>", "<think>", "</think>", "hello ",
    "{", "[", '"', "\\u00", "é", "}", "]", "functools[", "<|im_end|>", "```json\n", "<function=weather>", '{"response":',
)  # fmt: skip


class Fuzz:
    def __init__(self, llm: Llama, seed: int) -> None:
        self.llm = llm
        self.session = llm._context()
        self.random = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        chance = self.random.random()
        if depth > 4 or chance < 0.5:
            return self.random.choice(VALUES)
        if chance < 0.75:
            return {self.random.choice(KEYS): self.value(depth + 1) for _ in range(self.random.randrange(4))}
        return [self.value(depth + 1) for _ in range(self.random.randrange(4))]

    def mutated(self, value: Any, depth: int = 0) -> Any:
        if self.random.random() < 0.05:
            return self.value(depth)
        if isinstance(value, dict):
            kept = {key: self.mutated(one, depth + 1) for key, one in value.items() if self.random.random() > 0.04}
            return {**kept, self.random.choice(KEYS): self.value(depth)} if self.random.random() < 0.05 else kept
        if isinstance(value, list):
            return [self.mutated(one, depth + 1) for one in value if self.random.random() > 0.04]
        return value

    def grammar(self, grammar: str) -> None:
        CommonSampler(self.session.loaded, self.session._context, {"grammar": grammar, "seed": 1}, []).close()

    def chat(self) -> None:
        request = self.mutated(REQUEST)
        if not isinstance(request, dict):
            request = {"messages": request}
        if self.random.random() < 0.3:
            request = {**request, "tools": None, "json_schema": self.mutated(SCHEMA)}
        plan = self.session.templates(self.random.choice(TEMPLATES)).apply(request)
        parser = AnswerParser(self.session.loaded, plan)
        try:
            for _ in range(self.random.randrange(6)):
                parser.add("".join(self.random.choices(TEXTS, k=self.random.randrange(4))))
            parser.add(self.random.choice(TEXTS), self.random.choice(["stop", "length"]))
        finally:
            parser.close()
        if "grammar" in plan.sampling:
            CommonSampler(self.session.loaded, self.session._context, plan.sampling, [1, 2]).close()

    def schema(self) -> None:
        self.grammar(schema_to_grammar(self.session.loaded, json.dumps(self.mutated(SCHEMA))))

    def sampling(self) -> None:
        pick = self.random.choice
        self.llm(
            "Once upon", max_tokens=2, temperature=pick([0, 1e-6, 0.5, 1, 1e6]), top_k=pick([-5, 0, 1, 40, 10**6]),
            top_p=pick([0, 0.5, 1]), min_p=pick([0, 0.5, 1]), typical_p=pick([0, 1e-9, 0.5, 1]),
            xtc_probability=pick([0, 0.5, 1]), xtc_threshold=pick([0, 0.01, 0.5, 1]), dynatemp_range=pick([0, 0.5, 1e6]),
            dynatemp_exponent=pick([0, 1, 1e6]), dry_multiplier=pick([0, 1, 1e6]), dry_base=pick([1, 1.75, 1e6]),
            dry_allowed_length=pick([0, 2, 10**6]), dry_penalty_last_n=pick([-1, 0, 5, 10**6]),
            mirostat_mode=pick([0, 0, 1, 2]), mirostat_tau=pick([0, 5, 1e6]), mirostat_eta=pick([0, 0.1, 1e6]),
            min_keep=pick([0, 1, 10**6, 2**31 - 1]), repeat_penalty=pick([1e-6, 1, 1e6]),
            frequency_penalty=pick([-1e6, 0, 1e6]), presence_penalty=pick([-1e6, 0, 1e6]),
            penalty_last_n=pick([0, 64, 10**6, 2**31 - 1]), ignore_eos=pick([True, False]), seed=pick(range(100)),
            grammar=pick(["", "root ::= [a-z ]+"]),
            samplers=pick([None, [], ["dry", "top_k"], ["xtc", "temperature"], ["min_p", "top_p", "typ_p"], ["sauna"]]),
            logit_bias=pick([{}, {5: 1e9, 6: -1e9, 7: float("-inf")}]),
        )  # fmt: skip


def main() -> None:
    engine, model, kind, seed, count = sys.argv[1:]
    done = 0
    with Llama(model, engine=engine, n_ctx=256, n_threads=1) as llm:
        fuzz = Fuzz(llm, int(seed))
        for _ in range(int(count)):
            try:
                getattr(fuzz, kind)()
                done += 1
            except ForkyardLlmError:
                pass
        # What was refused left nothing behind.
        assert llm("The capital of France is", max_tokens=1, temperature=0)["choices"][0]["text"] == " Paris"  # type: ignore[index]
    print(done)


if __name__ == "__main__":
    main()
