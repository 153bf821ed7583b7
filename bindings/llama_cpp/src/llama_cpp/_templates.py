"""Chat formats by name, as Jinja templates: for models whose files have none, or another one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORMATS", "Format"]

# The text of a system message goes in front of the next user's.
_SYSTEM_FIRST = (
    "{% set ns = namespace(before='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.before = SYSTEM %}{% elif m['role'] == 'user' %}{{ USER }}{% set ns.before = '' %}"
    "{% else %}{{ ANSWER }}{% endif %}{% endfor %}"
)
# Each message has a head of its own.
_HEADED = "{% for m in messages %}{{ ONE }}{% endfor %}{% if add_generation_prompt %}{{ HEAD }}{% endif %}"


@dataclass(frozen=True)
class Format:
    """A Jinja template, and the tokens around a text as the models that it is for spell them."""

    template: str
    bos: str = ""
    eos: str = ""


def _system_first(system: str, user: str, answer: str) -> str:
    return _SYSTEM_FIRST.replace("SYSTEM", system).replace("USER", user).replace("ANSWER", answer)


def _headed(one: str, head: str) -> str:
    return _HEADED.replace("ONE", one).replace("HEAD", head)


_CHATML = Format(
    _headed(r"'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'", r"'<|im_start|>assistant\n'"),
    eos="<|im_end|>",
)

# Tool calls as Hermes' models write them: the engines make the grammar, and read the calls, of a template like this.
_TOOLS = (
    r"{% if tools %}{{ '<|im_start|>system\nYou may call these functions:\n<tools>\n' }}"
    r"{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    r"{{ '</tools>\nWrite a call as JSON:\n<tool_call>\n{\"name\": NAME, \"arguments\": ARGUMENTS}\n</tool_call>' }}"
    r"{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    r"{% if m['content'] %}{{ m['content'] }}{% endif %}{% for call in m['tool_calls'] or [] %}"
    r"{{ '<tool_call>\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    r"{% if call['function']['arguments'] is string %}{{ call['function']['arguments'] }}"
    r"{% else %}{{ call['function']['arguments'] | tojson }}{% endif %}{{ '}\n</tool_call>' }}{% endfor %}"
    r"{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

FORMATS = {
    "chatml": _CHATML,
    "qwen": _CHATML,
    "chatml-function-calling": Format(_TOOLS, eos="<|im_end|>"),
    "llama-2": Format(
        _system_first(
            r"'<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n'",
            "bos_token + '[INST] ' + ns.before + m['content'] + ' [/INST]'",
            "' ' + m['content'] + ' ' + eos_token",
        ),
        "<s>",
        "</s>",
    ),
    "llama-3": Format(
        "{{ bos_token }}"
        + _headed(
            r"'<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>'",
            r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
        ),
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "mistral-instruct": Format(
        "{{ bos_token }}"
        + _system_first(
            r"m['content'] + '\n'", "'[INST] ' + ns.before + m['content'] + ' [/INST]'", "m['content'] + eos_token"
        ),
        "<s>",
        "</s>",
    ),
    "gemma": Format(
        "{{ bos_token }}"
        + _system_first(
            r"m['content'] + '\n\n'",
            r"'<start_of_turn>user\n' + ns.before + m['content'] + '<end_of_turn>\n'",
            r"'<start_of_turn>model\n' + m['content'] + '<end_of_turn>\n'",
        )
        + r"{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<bos>",
        "<end_of_turn>",
    ),
    "zephyr": Format(
        _headed(r"'<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n'", r"'<|assistant|>\n'"), "<s>", "</s>"
    ),
    "vicuna": Format(
        "{{ bos_token }}"
        + _system_first(
            "m['content'] + ' '",
            "ns.before + 'USER: ' + m['content'] + ' '",
            "'ASSISTANT: ' + m['content'] + eos_token",
        )
        + "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        "<s>",
        "</s>",
    ),
    "alpaca": Format(
        "{{ bos_token }}"
        + _system_first(
            r"m['content'] + '\n\n'",
            r"ns.before + '### Instruction:\n' + m['content'] + '\n\n'",
            r"'### Response:\n' + m['content'] + eos_token + '\n\n'",
        )
        + r"{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
        "<s>",
        "</s>",
    ),
}
