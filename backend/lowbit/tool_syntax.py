"""How models write tool calls: a table with one row per syntax, and the readers of what stands between its marks.

A row says how a chat template betrays the syntax, which marks enclose calls, how one call is written and what reads
it. Streams of text are cut by tool_calls.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]  # name, arguments


@dataclass(frozen=True)
class ToolSyntax:
    """One way of writing tool calls.

    marks: texts of which one in a chat template shows that its model writes calls so. form: how one call is written,
    with NAME and ARGUMENTS (JSON text). read: what stands between the marks -> calls; raises ValueError. opening,
    closing: what encloses calls; without a closing mark they end with the answer. begins: for calls that come without
    an opening mark, and then are the whole answer; tells of the beginning of an answer whether it is one (None: too
    early to say). heads: what a call begins with, its name in the group "name", whose arguments are a JSON object that
    comes next: such a call can be given out while it is written. id_length: of the ids that the template insists on,
    where it does. single: whether the template takes one call per message only.
    """

    name: str
    marks: tuple[str, ...]
    form: str
    read: Callable[[str, Sequence[str]], list[Call]]
    opening: str | None = None
    closing: str | None = None
    begins: Callable[[str, Sequence[str]], bool | None] | None = None
    heads: tuple[re.Pattern[str], ...] = ()
    id_length: int | None = None
    single: bool = False

    def write(self, name: str, arguments: str) -> str:
        """Returns the text of a call; arguments: JSON text (or what a grammar puts in its place)."""
        return re.sub("NAME|ARGUMENTS", lambda m: name if m[0] == "NAME" else arguments, self.form)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Marks that may be special tokens of the vocabulary, which decoding would leave out."""
        return tuple(mark for mark in (self.opening, self.closing, *_INNER_TOKENS) if mark)


_INNER_TOKENS = ("[ARGS]", "[CALL_ID]")

# ---- readers ----

_FENCE = re.compile(r"\s*```(?:json|tool_code|python)?\s*\n?(.*?)(?:```\s*)?$", re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)  # models write line breaks into strings as they are


def _json_values(text: str) -> Iterator[Any]:
    """The JSON values of a text, one after another; between them spaces, commas and semicolons."""
    at = 0
    while (match := re.compile(r"[\s,;]*").match(text, at)) and match.end() < len(text):
        value, at = _DECODER.raw_decode(text, match.end())
        yield value


def read_json(text: str, tools: Sequence[str]) -> list[Call]:
    """Objects with a name and arguments (or parameters), alone, in a row or in a list, in a fence or not."""
    fenced = _FENCE.match(text)
    values = list(_json_values(fenced[1] if fenced else text))
    calls = [_call(item) for value in values for item in (value if isinstance(value, list) else [value])]
    if not calls:
        raise ValueError("there is no call in it")
    return calls


def _call(value: Any) -> Call:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name", value.get("function")) if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ValueError('a call is an object with a "name" and "arguments"')
    arguments: Any = next((value[key] for key in ("arguments", "parameters", "args") if value.get(key) is not None), {})
    if isinstance(arguments, str):  # JSON within JSON
        arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments are an object, not {json.dumps(arguments)}")
    return name, arguments


def _read_mistral(text: str, tools: Sequence[str]) -> list[Call]:
    """A list of JSON objects, or (since the tokenizer's version 11) names with their arguments behind them."""
    if not (match := _MISTRAL_HEAD.match(text)):
        return read_json(text, tools)
    arguments, end = _DECODER.raw_decode(text, match.end())
    rest = text[end:].strip()
    return [(match["name"], arguments), *(_read_mistral(rest, tools) if rest else ())]


def _read_llama(text: str, tools: Sequence[str]) -> list[Call]:
    """JSON objects; for the tools that Llama knows itself, behind its mark: name.call(key="value")."""
    if re.match(r"\s*[\w.]+\(", text):
        return [_python_call(text)]
    return read_json(text, tools)


def _python_call(text: str, name: str | None = None) -> Call:
    """A call written in Python; its arguments are named literals."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a call: {error.msg}") from None
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise ValueError("a call has named arguments only")
    called = ast.unparse(call.func).removesuffix(".call")
    return name or called, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}


def _read_glm(text: str, tools: Sequence[str]) -> list[Call]:
    """The name on a line of its own, then arguments as JSON, or (ChatGLM3) as tool_call(...) in a fence."""
    name, _, arguments = text.strip().partition("\n")
    name = name.strip().removeprefix("<|assistant|>").strip()
    fenced = _FENCE.match(arguments)
    if fenced and fenced[1].lstrip().startswith("tool_call("):
        return [_python_call(fenced[1], name)]
    return [_call({"name": name, "arguments": json.loads(fenced[1] if fenced else arguments, strict=False)})]


_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*$", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def _loose(text: str) -> Any:
    """A value that is JSON, or else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_pairs(text: str, tools: Sequence[str]) -> list[Call]:
    """GLM-4.5: the name, then keys and values in tags; where there are none, JSON."""
    match = re.match(r"\s*([\w.-]+)\s*(.*)", text, re.DOTALL)
    if not match:
        raise ValueError("there is no name of a tool at its beginning")
    name, rest = match.groups()
    if rest.startswith("{"):
        return [_call({"name": name, "arguments": json.loads(rest, strict=False)})]
    return [(name, {key.strip(): _loose(value) for key, value in _PAIR.findall(rest)})]


def _read_tags(text: str, tools: Sequence[str]) -> list[Call]:
    """Qwen3-Coder: <function=name> with <parameter=key> tags; where there is none, JSON."""
    if not (match := _FUNCTION.match(text)):
        return read_json(text, tools)
    return [(match[1].strip(), {key.strip(): _loose(value) for key, value in _PARAMETER.findall(match[2])})]


# ---- how a call begins, up to arguments that are a JSON object ----

# What may stand between the arguments of a call and the next one: brackets, fences, and what else is said of a call.
_BETWEEN = r"""(?:[\s,;\[\]}]|`+\w*|"\w+"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[\w.+-]+))*"""
BETWEEN = re.compile(_BETWEEN)
_JSON_HEAD = re.compile(
    _BETWEEN
    + r"""\{\s*(?:"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*)*(?:"function"\s*:\s*\{\s*)?"""
    + r""""(?:name|function)"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"(?:arguments|parameters|args)"\s*:\s*(?=\{)"""
)
_MISTRAL_HEAD = re.compile(r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)")
_NAME_HEAD = re.compile(r"\s*(?:<\|assistant\|>)?\s*(?P<name>[\w.-]+)\s*\n\s*(?:```\w*\s*)?(?=\{)")

# ---- how an answer that is a call begins ----

_JSON_BEGINNING = re.compile(r'\s*(?:```(?:json)?\s*)?\[?\s*\{\s*"(?:name|type|function|id)"\s*:\s*(?:"function"|["{])')


def _begins_json(text: str, tools: Sequence[str]) -> bool | None:
    start = text.lstrip()
    if start and start[0] not in "{[`":
        return False
    if _JSON_BEGINNING.match(text):
        return True
    return None if len(start) < 40 else False


def _begins_with_name(text: str, tools: Sequence[str]) -> bool | None:
    line, newline, _ = text.lstrip().partition("\n")
    if newline:
        return line.strip() in tools
    return None if any(tool.startswith(line.rstrip()) for tool in tools) else False


# ---- the table; where several marks are in a template, the first row counts ----

_NAMED = '{"name": "NAME", "arguments": ARGUMENTS}'
_TAGS = ("<tool_call>", "</tool_call>")
# Small models forget the marks of calls that are JSON: an answer that is the call of a known tool is taken for one.
_JSON: dict[str, Any] = {"begins": _begins_json, "heads": (_JSON_HEAD,)}
SYNTAXES: tuple[ToolSyntax, ...] = (
    ToolSyntax(
        "glm-4.5", ("<arg_key>",), "<tool_call>NAME\nARGUMENTS</tool_call>", _read_pairs, *_TAGS, heads=(_NAME_HEAD,)
    ),
    ToolSyntax("qwen-coder", ("<function=",), f"<tool_call>\n{_NAMED}\n</tool_call>", _read_tags, *_TAGS, **_JSON),
    ToolSyntax("hermes", ("<tool_call>",), f"<tool_call>\n{_NAMED}\n</tool_call>", read_json, *_TAGS, **_JSON),
    ToolSyntax(
        "mistral-11",
        ("[ARGS]",),
        "[TOOL_CALLS]NAME[ARGS]ARGUMENTS",
        _read_mistral,
        "[TOOL_CALLS]",
        heads=(_MISTRAL_HEAD, _JSON_HEAD),
        id_length=9,
    ),
    ToolSyntax(
        "mistral",
        ("[TOOL_CALLS]",),
        f"[TOOL_CALLS][{_NAMED}]",
        _read_mistral,
        "[TOOL_CALLS]",
        begins=_begins_json,
        heads=(_JSON_HEAD, _MISTRAL_HEAD),
        id_length=9,
    ),
    ToolSyntax(
        "llama-3",
        ("<|python_tag|>", "Environment: ipython"),
        '{"name": "NAME", "parameters": ARGUMENTS}',
        _read_llama,
        "<|python_tag|>",
        single=True,
        **_JSON,
    ),
    ToolSyntax(
        "chatglm", ("<|observation|>",), "NAME\nARGUMENTS", _read_glm, begins=_begins_with_name, heads=(_NAME_HEAD,)
    ),
    ToolSyntax("json", (), _NAMED, read_json, **_JSON),
)
