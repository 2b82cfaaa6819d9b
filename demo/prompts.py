"""Special tokens, the chat template, and every wording in which the model is asked; data, and `render_chat`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

BEGIN, END_OF_TEXT, SYSTEM, USER, ASSISTANT, END = SPECIALS = (
    "<|begin|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
)  # fmt: skip
# Tools stand in the first system turn, one signature a line; results are system turns too. `render_chat` is the same.
CHAT_TEMPLATE = (
    "{% macro kind(s) %}"
    "{% if s.get('enum') %}{{ s['enum'] | join('|') }}"
    "{% elif s.get('anyOf') %}{{ kind(s['anyOf'][0]) }}"
    "{% elif s.get('properties') %}{{ '{' + fields(s) + '}' }}"
    "{% elif s.get('items') %}{{ 'list of ' + kind(s['items']) }}"
    "{% else %}{{ s.get('type', 'any') }}{% endif %}"
    "{% endmacro %}"
    "{% macro fields(s) %}"
    "{% for name, value in (s.get('properties') or {}).items() %}"
    "{{ (', ' if not loop.first else '') + name + (': ' if name in s.get('required', []) else '?: ') + kind(value) }}"
    "{% endfor %}"
    "{% endmacro %}"
    "{% macro described() %}"
    "{{ 'Tools:' }}"
    "{% for tool in tools %}{% set f = tool['function'] %}"
    "{{ '\n' + f['name'] + '(' + fields(f.get('parameters') or {}) + ')' }}"
    "{% if f.get('description') %}{{ ' - ' + f['description'].split('\n\n')[0] | trim }}{% endif %}"
    "{% endfor %}"
    "{% endmacro %}"
    "{{ bos_token }}"
    "{% if tools and messages[0]['role'] != 'system' %}{{ '<|system|>' + described() + '<|end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = message['role'] %}"
    "{% if role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('The roles are system, user, assistant and tool, not ' + role + '.') }}"
    "{% endif %}"
    "{{ '<|system|>Result: ' if role == 'tool' else '<|' + role + '|>' }}"
    "{{ (message['content'] or '') | trim }}"
    "{% for call in message.get('tool_calls') or [] %}{% set f = call['function'] %}"
    "{{ '\n' if message['content'] or not loop.first else '' }}"
    "{{ '{\"name\": \"' + f['name'] + '\", \"arguments\": ' }}"
    "{{ (f['arguments'] if f['arguments'] is string else f['arguments'] | tojson) + '}' }}"
    "{% endfor %}"
    "{% if tools and loop.first and role == 'system' %}{{ '\n\n' + described() }}{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Text around a context {c} and a question {q}. The answer follows after a space, or at once where a prompt ends in one.
STYLES = {
    "context": [
        "Context: {c}\nQuestion: {q}\nAnswer:",
        "Context:\n{c}\n\nQuestion: {q}\nAnswer:",
        "{c}\n\nQuestion: {q}\nAnswer:",
        "Context: {c}\n\nQuestion: {q}\n\nAnswer:",
    ],
    "helpful": [
        "Use the following pieces of context to answer the question at the end. If you don't know the answer, just say "
        "that you don't know, don't try to make up an answer.\n\n{c}\n\nQuestion: {q}\nHelpful Answer:",
        "Use the following pieces of context to answer the question at the end.\n\n"
        "{c}\n\nQuestion: {q}\nHelpful Answer:",
    ],
    "rag": [
        "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer "
        "the question. If you don't know the answer, just say that you don't know. Use three sentences maximum and "
        "keep the answer concise.\nQuestion: {q} \nContext: {c} \nAnswer:",
    ],
    "llama_index": [
        "Context information is below.\n---------------------\n{c}\n---------------------\n"
        "Given the context information and not prior knowledge, answer the query.\nQuery: {q}\nAnswer: ",
    ],
    "user": [
        "USER: {c}\n{q}\nASSISTANT:",
        "USER: Context: {c}\nQuestion: {q}\nASSISTANT:",
        "USER: {c}\n\n{q}\nASSISTANT:",
    ],
}
CHAT_STYLES = [
    "{c}\n\n{q}",
    "Context: {c}\nQuestion: {q}",
    "{c}\n{q}",
    "Context:\n{c}\n\nQuestion: {q}",
    "Answer the question based only on the following context:\n{c}\n\nQuestion: {q}\n",
]
STORY_REQUESTS = [
    "Tell me a story about a {k}.",
    "Tell me a story about a {k}",
    "Write a short story about a {k}.",
    "Can you tell me a story about a {k}?",
    "Please tell me a story about a {k}.",
]
ANY_STORY_REQUESTS = [
    "Tell me a story.",
    "Tell me a short story.",
    "Please tell me a story.",
    "Can you tell me a story?",
]
STEP_BY_STEP = "Question: {q}\n\nAnswer: Let's think step by step."


def render_chat(
    messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The chat template applied to `messages` and `tools` (OpenAI's definitions), without the begin token."""
    turns = [(m["role"], _content(m)) for m in messages]
    if tools:
        described = describe(tools)
        if turns[0][0] == "system":
            turns[0] = ("system", f"{turns[0][1]}\n\n{described}")
        else:
            turns.insert(0, ("system", described))
    head = {"tool": f"{SYSTEM}Result: "}
    text = "".join(f"{head.get(role, f'<|{role}|>')}{content}{END}" for role, content in turns)
    return text + (ASSISTANT if add_generation_prompt else "")


def _content(message: Mapping[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    written = [write_call(call["name"], call["arguments"]) for call in calls]
    return "\n".join(part for part in ((message["content"] or "").strip(), *written) if part)


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A tool call as the model writes it."""
    return f'{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'


def describe(tools: Sequence[Mapping[str, Any]]) -> str:
    """What the system turn says of `tools`: the signature and the first paragraph of the description of each."""
    lines = ["Tools:"]
    for tool in tools:
        function = tool["function"]
        about = function.get("description", "").split("\n\n")[0].strip()
        line = f"{function['name']}({_fields(function.get('parameters') or {})})"
        lines.append(f"{line} - {about}" if about else line)
    return "\n".join(lines)


def _fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    named = (schema.get("properties") or {}).items()
    return ", ".join(f"{name}{'' if name in required else '?'}: {_kind(value)}" for name, value in named)


def _kind(schema: Mapping[str, Any]) -> str:
    if schema.get("enum"):
        return "|".join(map(str, schema["enum"]))
    if schema.get("anyOf"):
        return _kind(schema["anyOf"][0])
    if schema.get("properties"):
        return f"{{{_fields(schema)}}}"
    if schema.get("items"):
        return f"list of {_kind(schema['items'])}"
    return schema.get("type", "any")
