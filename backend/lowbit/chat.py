"""Messages to the prompt a model was trained on: renders the checkpoint's own chat template.

Templates come from strangers: they run in jinja2's immutable sandbox, with the names and whitespace rules transformers
gives them, and see copies of plain data only.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lowbit import answers, chat_templates, tool_calls
from lowbit.answers import AnswerReader
from lowbit.runtime import nearest
from lowbit.sampling import CONSTRAINTS, merge
from lowbit.tokenizer import Tokenizer
from lowbit.tool_calls import CallReader
from lowbit.tool_grammar import one_call

Message = Mapping[str, Any]


@dataclass(frozen=True)
class TurnEnd:
    """What ends an answer in a conversation: token ids, and texts where the format has no token for it."""

    ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """An answer to be generated: `model.generate(turn.prompt, **turn.options)`.

    reader: for the answer's text where it may have tool calls or thoughts in it, else None; each is for one answer.
    """

    prompt: list[int]
    options: dict[str, Any]
    reader: AnswerReader | None = None


def turn(
    model: Any,
    messages: Sequence[Message],
    options: Mapping[str, Any] | None = None,
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: Any = None,
    parallel_tool_calls: bool | None = None,
    tool_syntax: str | None = None,
    **variables: Any,
) -> Turn:
    """Returns the prompt of a conversation and the options of its answer, which then ends by itself.

    model: a `TextModel`. messages: as in `render`; with the role "tool" (and "tool_call_id", "name") for results, and
    "tool_calls" as OpenAI's, their arguments objects, in what the assistant said. Where the template refuses
    neighbours of one role, they are joined; where it refuses a system message, that is joined with the user's first.
    options: names of `GenerationOptions`; stop strings add to what ends an answer, an eos_token_id replaces it.
    tools: OpenAI's tool definitions or their "function" parts; a template that knows no tools is given them in words.
    tool_choice: as in `tool_calls.required`; a call that is required is made so by a grammar, and is one call.
    parallel_tool_calls: False ends an answer with its first call where the syntax marks a call's end, and drops further
    ones elsewhere. tool_syntax: a name of tool_syntax.SYNTAXES, where the template does not show it.

    Raises ValueError and TypeError as `render` does.
    """
    _check(messages)
    tokenizer = model.tokenizer
    text = _template_text(tokenizer, template, tools or None)
    syntax = tool_calls.find_syntax(tool_syntax) if tool_syntax else tool_calls.syntax_of(text)
    tools = [dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools or ()]
    required = tool_calls.required(tool_choice, tools)
    if required == ():
        tools = []
    if "tools" in _variables(text):
        messages = tool_calls.in_form(messages, syntax)
        variables |= {"tools": tools or None}
    else:
        messages = tool_calls.in_words(messages, tools, syntax)
    prompt = _render_as_taken(tokenizer, messages, template=template, **variables)
    options = answer_options(model, options or {}, template)
    if required:
        chosen = [tool for tool in tools if tool["function"]["name"] in required]
        options = options | {"grammar": one_call(chosen, syntax, tokenizer)}
    single = parallel_tool_calls is False
    if single and tools and not required and syntax.closing:
        options = options | {"stop": (*(options.get("stop") or ()), syntax.closing)}
    thinks, thinking = answers.CLOSING in text, prompt.rstrip().endswith(answers.OPENING)
    if thinking and any(options.get(name) is not None for name in CONSTRAINTS):
        prompt, thinking = f"{prompt.rstrip()}\n{answers.CLOSING}\n\n", False  # a grammar leaves no place for thoughts
    marks = [*(syntax.tokens if tools else ()), *((answers.OPENING, answers.CLOSING) if thinks else ())]
    kept = [i for i in map(tokenizer.id, marks) if i in tokenizer.special_ids]
    names = [tool["function"]["name"] for tool in tools]
    calls = CallReader(syntax, names, most=1 if single else None) if tools else None
    return Turn(
        tokenizer.encode(prompt, add_special_tokens=False),
        options | ({"keep_tokens": kept} if kept else {}),
        AnswerReader(calls, thinks=thinks, thinking=thinking) if tools or thinks else None,
    )


def _render_as_taken(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> str:
    """A conversation's text; where the template refuses it, with neighbours of one role joined, as many want turns to
    alternate, and then with the system message in the user's first."""
    errors: list[ValueError] = []
    for form in (list, _joined, _system_as_user):
        try:
            return render(tokenizer, form(messages), **options)
        except ValueError as error:
            errors.append(error)
    raise errors[0]  # as the template sees what was asked for


def _joined(messages: Sequence[Message]) -> list[Message]:
    result: list[Message] = []
    for message in messages:
        plain = set(message) <= {"role", "content"} and message["role"] != "tool"
        if plain and result and set(result[-1]) <= {"role", "content"} and result[-1]["role"] == message["role"]:
            result[-1] = {**message, "content": f"{result[-1]['content']}\n\n{message['content']}"}
        else:
            result.append(message)
    return result


def _system_as_user(messages: Sequence[Message]) -> list[Message]:
    first, *others = messages
    return _joined([{**first, "role": "user"} if first["role"] == "system" and others else first, *others])


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

    messages: dictionaries with "role" and "content", oldest first. template: the text of one, the name of one of the
    tokenizer's several, or of `chat_templates.names()`; default the tokenizer's own ("tool_use" where there is one and
    tools are given). tools: JSON schemas. variables: whatever else the template knows, for example enable_thinking.

    Raises ValueError when there is no template, or when it refuses these messages, with its own words.
    """
    _check(messages)
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


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise TypeError(f"a message is a dictionary with 'role' and 'content', got {message!r}")


def encode(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Returns the prompt of a conversation as token ids; options as in `render`.

    The template writes the special tokens itself, so none are added (a second BOS is nothing the model knows).
    """
    return tokenizer.encode(render(tokenizer, messages, **options), add_special_tokens=False)


def has_template(tokenizer: Tokenizer) -> bool:
    """Returns True if the model comes with a chat template."""
    return bool(tokenizer.chat_template)


def knows_tools(tokenizer: Tokenizer, template: str | None = None) -> bool:
    """Returns True if a template has a place for tools (others get them in words). Raises ValueError without one."""
    return "tools" in _variables(_template_text(tokenizer, template, ()))


def turn_end(tokenizer: Tokenizer, template: str | None = None) -> TurnEnd:
    """Returns what ends an answer under a template: the special token that it puts behind one.

    Many checkpoints name another token as their eos (that of the base model), so an answer would never end by itself.
    Nothing where the template shows no such token; what a format of `chat_templates` names beside it.
    """
    named = None if template is None or _own_named(tokenizer, template) else chat_templates.find(template)
    found = [tokenizer.id(text) for text in (named.stop if named else ())]
    stop = tuple(text for text, i in zip(named.stop, found, strict=True) if i is None) if named else ()
    after = _first_token_after_answer(tokenizer, template)
    return TurnEnd(tuple(dict.fromkeys(i for i in (after, *found) if i is not None)), stop)


def answer_options(model: Any, options: Mapping[str, Any], template: str | None = None) -> dict[str, Any]:
    """Returns the options with which a `TextModel` answers a conversation: the given ones, and where an answer ends.

    options: names of `GenerationOptions`. An eos_token_id among them is taken as it is; stop strings are added to.
    """
    end = turn_end(model.tokenizer, template)
    merged = merge({"eos_token_id": tuple(dict.fromkeys((*model.eos_ids, *end.ids)))}, options)
    stop = merged.get("stop") or ()
    stops = (*((stop,) if isinstance(stop, str) else stop), *end.stop)
    return merged | ({"stop": stops} if stops else {})


def _first_token_after_answer(tokenizer: Tokenizer, template: str | None) -> int | None:
    words = ("lowbitquestion", "lowbitanswer", "lowbitagain")
    turns = [{"role": role, "content": word} for role, word in zip(("user", "assistant", "user"), words, strict=True)]
    try:
        text = render(tokenizer, turns, template=template, add_generation_prompt=False)
    except ValueError:  # a template for single questions
        return None
    between = text.rpartition(words[1])[2].partition(words[2])[0].lstrip()
    first = next(iter(tokenizer.encode(between, add_special_tokens=False)), None)
    return first if first in tokenizer.added_ids and first != tokenizer.bos_id else None


def _own_named(tokenizer: Tokenizer, name: str) -> bool:
    return isinstance(tokenizer.chat_template, Mapping) and name in tokenizer.chat_template


def _template_text(tokenizer: Tokenizer, asked: str | None, tools: Any) -> str:
    own = tokenizer.chat_template
    if asked is not None:
        return own[asked] if _own_named(tokenizer, asked) else _asked_template(asked)
    if isinstance(own, Mapping):
        own = own["tool_use"] if tools is not None and "tool_use" in own else own.get("default")
        if own is None:
            raise ValueError(
                "this model has several chat templates and no default: "
                f"pass template= one of {sorted(tokenizer.chat_template)}"
            )
    if not own:
        raise ValueError(
            "this model has no chat template (it is a base model, or the template was not saved with it): write the "
            "prompt as text, or pass template= the name of the format it was trained on "
            f"({', '.join(chat_templates.names())}) or a jinja2 template"
        )
    return own


def _asked_template(asked: str) -> str:
    named = chat_templates.find(asked)
    if named is not None:
        return named.text
    if "{" not in asked:
        known = chat_templates.names()
        raise ValueError(
            f"unknown chat template {asked!r}{nearest(asked, known)} "
            f"Pass a jinja2 template or one of {', '.join(known)}."
        )
    return asked


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words for training: the content as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> Scope:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@functools.lru_cache(maxsize=32)
def _compile(text: str) -> Template:
    return _environment().from_string(text)


@functools.lru_cache(maxsize=32)
def _variables(text: str) -> frozenset[str]:
    """The names that a template expects to be given; none where it is not valid, which rendering it tells."""
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(text)))
    except TemplateSyntaxError:
        return frozenset()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja2's own filter escapes HTML characters, which no model has seen in its training prompts.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)
