"""Messages to the prompt a model was trained on: renders the checkpoint's own chat template.

Templates come from strangers: they run in jinja2's immutable sandbox, with the names and whitespace rules transformers
gives them, and see copies of plain data only.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lowbit.tokenizer import Tokenizer

Message = Mapping[str, Any]


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """Returns the prompt text of a conversation.

    messages: dictionaries with "role" and "content", oldest first. template: the text of one, or the name of one of
    several; default the tokenizer's own ("tool_use" where there is one and tools are given). tools: JSON schemas.
    variables: whatever else the template knows, for example enable_thinking.

    Raises ValueError when there is no template, or when it refuses these messages, with its own words.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise TypeError(f"a message is a dictionary with 'role' and 'content', got {message!r}")
    names = {
        **tokenizer.special_tokens,
        **variables,
        "messages": [dict(m) for m in messages],
        "tools": None if tools is None else list(tools),
        "documents": None if documents is None else list(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    text = _template_text(tokenizer, template, tools)
    try:
        return _compile(text).render(**copy.deepcopy(names))
    except TemplateSyntaxError as error:
        raise ValueError(f"the model's chat template is not valid (line {error.lineno}: {error.message})") from None
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses these messages: {error.message}") from error
    except TypeError as error:  # a template adds strings; a message's content that is no string breaks it
        raise ValueError(f"the model's chat template cannot take these messages: {error}") from error


def encode(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Returns the prompt of a conversation as token ids; options as in `render`.

    The template writes the special tokens itself, so none are added (a second BOS is nothing the model knows).
    """
    return tokenizer.encode(render(tokenizer, messages, **options), add_special_tokens=False)


def has_template(tokenizer: Tokenizer) -> bool:
    """Returns True if the model comes with a chat template."""
    return bool(tokenizer.chat_template)


def _template_text(tokenizer: Tokenizer, asked: str | None, tools: Any) -> str:
    own = tokenizer.chat_template
    if isinstance(own, Mapping):
        if asked is not None:
            return own.get(asked, asked)
        own = own["tool_use"] if tools is not None and "tool_use" in own else own.get("default")
        if own is None:
            raise ValueError(
                "this model has several chat templates and no default: "
                f"pass template= one of {sorted(tokenizer.chat_template)}"
            )
    if asked is not None:
        return asked
    if not own:
        raise ValueError(
            "this model has no chat template (it is a base model, or the template was not saved with it): "
            "write the prompt as text, or pass template= a jinja2 template"
        )
    return own


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words for training: the content as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> Scope:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@functools.lru_cache(maxsize=32)
def _compile(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(text)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja2's own filter escapes HTML characters, which no model has seen in its training prompts.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)
