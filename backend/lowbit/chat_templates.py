"""Prompt formats of chat models that come without a template, by name: what `template="vicuna"` means.

Owns the formats as published by the models' makers, written as jinja templates: of the special tokens only those the
tokenizer has appear. Knows no tokenizer and renders nothing (chat.py does). Tools are not part of any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedTemplate:
    """A prompt format. stop: tokens or texts that end an answer, where the format shows no token after one."""

    text: str
    stop: tuple[str, ...] = ()


def _template(lines: str) -> str:
    """A template without the line breaks and indentation it is written with here."""
    return re.sub(r"\n\s*", "", lines)


# The messages after a system message, and its words or a default; every format below begins with this.
def _system(default: str = "") -> str:
    return (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
        f'{{% else %}}{{% set system = "{default}" %}}{{% set turns = messages %}}{{% endif %}}'
    )


def _chatml(default: str) -> str:
    return _system(default) + _template(r"""
        {{ bos_token }}
        {% if system %}{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}{% endif %}
        {% for m in turns %}
            {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
    """)


NAMED: dict[str, NamedTemplate] = {
    # lm-sys/FastChat, Vicuna 1.1 and later.
    "vicuna": NamedTemplate(
        _system(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        )
        + _template(r"""
            {{ bos_token }}{{ system }}{{ ' ' }}
            {% for m in turns %}
                {% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}
                {% else %}{{ 'ASSISTANT: ' + m.content }}{{ eos_token }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
        """),
    ),
    # facebookresearch/llama, chat_completion.
    "llama-2": NamedTemplate(
        _system()
        + _template(r"""
            {% for m in turns %}
                {% if m.role == 'user' %}
                    {{ bos_token }}{{ '[INST] ' }}
                    {% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}
                    {{ m.content | trim }}{{ ' [/INST]' }}
                {% else %}{{ ' ' + (m.content | trim) + ' ' }}{{ eos_token }}{% endif %}
            {% endfor %}
        """),
    ),
    # THUDM/ChatGLM2-6B, build_prompt.
    "chatglm2": NamedTemplate(
        _system()
        + _template(r"""
            {{ '[gMASK]sop' }}
            {% if system %}{{ system + '\n\n' }}{% endif %}
            {% set count = namespace(rounds=0) %}
            {% for m in turns %}
                {% if m.role == 'user' %}
                    {% set count.rounds = count.rounds + 1 %}
                    {{ '[Round ' ~ count.rounds ~ ']\n\n问：' + m.content + '\n\n' }}
                {% else %}{{ '答：' + m.content + '\n\n' }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '答：' }}{% endif %}
        """),
        stop=("\n\n[Round ", "\n\n问："),
    ),
    # THUDM/ChatGLM3, PROMPT.md.
    "chatglm3": NamedTemplate(
        _system()
        + _template(r"""
            {{ '[gMASK]sop' }}
            {% if system %}{{ '<|system|>\n ' + system }}{% endif %}
            {% for m in turns %}{{ '<|' + m.role + '|>\n ' + m.content }}{% endfor %}
            {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
        """),
        stop=("<|user|>", "<|observation|>"),
    ),
    # baichuan-inc/Baichuan2: the reserved tokens 195 and 196 stand for the two speakers.
    "baichuan": NamedTemplate(
        _system()
        + _template(r"""
            {{ system }}
            {% for m in turns %}
                {{ '<reserved_106>' if m.role == 'user' else '<reserved_107>' }}{{ m.content }}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}
        """),
        stop=("<reserved_106>",),
    ),
    # QwenLM/Qwen, tokenization_note: ChatML.
    "qwen": NamedTemplate(_chatml("You are a helpful assistant."), stop=("<|im_end|>",)),
    # InternLM/InternLM 1, modeling_internlm.py, build_inputs; the second one talks ChatML.
    "internlm": NamedTemplate(
        _system()
        + _template(r"""
            {{ bos_token }}
            {% if system %}{{ '<|System|>:' + system + '\n' }}{% endif %}
            {% for m in turns %}
                {% if m.role == 'user' %}{{ '<|User|>:' + m.content + '<eoh>\n' }}
                {% else %}{{ '<|Bot|>:' + m.content + '<eoa>\n' }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|Bot|>:' }}{% endif %}
        """),
        stop=("<eoa>", "<|User|>:"),
    ),
    "internlm2": NamedTemplate(_chatml(""), stop=("<|im_end|>",)),
    # Intel/neural-chat-7b-v3, model card.
    "neural-chat": NamedTemplate(
        _system("You are a chatbot developed by Intel. Please answer all questions to the best of your ability.")
        + _template(r"""
            {{ bos_token }}
            {{ '### System:\n' + system + '\n' }}
            {% for m in turns %}
                {% if m.role == 'user' %}{{ '### User:\n' + m.content + '\n' }}
                {% else %}{{ '### Assistant:\n' + m.content + '\n' }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}
        """),
        stop=("\n### User:", "### User:"),
    ),
    # databricks/dolly-v2, instruct_pipeline.py.
    "dolly": NamedTemplate(
        _system(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        )
        + _template(r"""
            {{ system + '\n\n' }}
            {% for m in turns %}
                {% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}
                {% else %}{{ '### Response:\n' + m.content + '\n\n### End\n\n' }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}
        """),
        stop=("### End", "\n### End"),
    ),
    # OpenAI's ChatML, which many fine-tunes use.
    "chatml": NamedTemplate(_chatml(""), stop=("<|im_end|>",)),
}
ALIASES = {"llama2": "llama-2", "chatglm": "chatglm2", "baichuan2": "baichuan", "neural_chat": "neural-chat"}


def names() -> tuple[str, ...]:
    """Returns the names of the formats."""
    return tuple(NAMED)


def find(name: str) -> NamedTemplate | None:
    """Returns the format of that name, or None."""
    return NAMED.get(ALIASES.get(name, name))
