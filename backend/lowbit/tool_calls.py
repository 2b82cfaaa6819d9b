"""Tool calls in an answer, as it streams: which text is words and which is calls; and tools for templates without any.

`CallReader` cuts a stream of text by a row of tool_syntax.py. `with_tools` makes a conversation about tools one that
the model's template can write: most know tools, and for the others the tools become words.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.runtime import nearest
from lowbit.tool_syntax import SYNTAXES, ToolSyntax

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # the only length that Mistral's templates accept; no other asks for one


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in an answer.

    index: its place among the answer's calls. arguments: JSON text of an object. error: None, or why it cannot be read;
    then arguments is the text as the model wrote it, mark included, and name is None where none was found.
    """

    index: int
    id: str
    name: str | None
    arguments: str
    error: str | None = None


def syntax_of(template: str) -> ToolSyntax:
    """Returns the syntax in which the model of a chat template writes calls; "json" where the template shows none."""
    return next((s for s in SYNTAXES if any(mark in template for mark in s.marks)), SYNTAXES[-1])


def required(tool_choice: Any, tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Returns the names of the tools of which one must be called, () where none may, None where the model decides.

    tool_choice: None or "auto", "none", "any" or "required" or True, a tool's name, or OpenAI's or Anthropic's
    dictionary with one of these. Raises ValueError for the name of another tool, with the nearest.
    """
    if isinstance(tool_choice, Mapping):
        inner = tool_choice.get("function", tool_choice)
        tool_choice = inner.get("name", inner.get("type"))
    names = tuple(str(tool.get("function", tool)["name"]) for tool in tools)
    fixed: dict[Any, tuple[str, ...] | None] = {None: None, False: None, "auto": None, "none": ()}
    fixed |= dict.fromkeys(("any", "required", True), names)
    if tool_choice in fixed:
        return fixed[tool_choice]
    if tool_choice not in names:
        known = sorted({*names, "auto", "any", "none"})
        raise ValueError(f"tool_choice is {tool_choice!r}{nearest(str(tool_choice), known)} One of {', '.join(known)}.")
    return (tool_choice,)


def find_syntax(name: str) -> ToolSyntax:
    """Returns the syntax of that name. Raises ValueError for an unknown one, with the nearest."""
    for syntax in SYNTAXES:
        if syntax.name == name:
            return syntax
    names = [syntax.name for syntax in SYNTAXES]
    raise ValueError(f"unknown tool syntax {name!r}{nearest(name, names)} Known: {', '.join(names)}.")


class CallReader:
    """Separates the calls from the words of an answer, whatever pieces it comes in.

    Words are given out as soon as they cannot be part of a call; a call when it is complete. Space around calls is no
    part of the words.
    """

    def __init__(self, syntax: ToolSyntax, tools: Sequence[str]) -> None:
        self._syntax = syntax
        self._tools = tuple(tools)
        self._buffer = ""  # not given out yet
        self._inside = False  # whether the buffer begins inside a call
        self._marked = False  # whether a mark says so
        self._undecided = syntax.begins is not None  # whether the whole answer may be a call without marks
        self._after_call = False  # whether space that comes now is between a call and something else
        self._count = 0

    def push(self, text: str) -> list[str | ToolCall]:
        """Returns the words and calls that more text makes certain."""
        self._buffer += text
        if self._undecided:
            decision = self._begins_with_call()
            if decision is None:
                return []
            self._undecided, self._inside = False, decision
        return self._advance()

    def finish(self) -> list[str | ToolCall]:
        """Returns what was held back, when no more text comes."""
        self._undecided = False
        found = self._advance()
        rest, self._buffer = self._buffer, ""
        return found + (self._read(rest) if self._inside else self._words(rest))

    def _begins_with_call(self) -> bool | None:
        """Whether the answer is a call without marks; None while its beginning leaves that open."""
        assert self._syntax.begins is not None
        if self._syntax.opening and self._buffer.lstrip().startswith(self._syntax.opening):
            return False
        return self._syntax.begins(self._buffer, self._tools)

    def _advance(self) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        opening, closing = self._syntax.opening, self._syntax.closing
        while mark := (closing or opening) if self._inside else opening:
            before, hit, after = self._buffer.partition(mark)
            if not hit:
                break
            self._buffer = after
            if self._inside:
                found += self._read(before)
                self._inside = closing is None  # without a closing mark, the next opening one ends a call
            else:
                found += self._words(before.rstrip())
                self._inside = self._marked = True
        if not self._inside:
            certain = len(self._buffer) - open_length(self._buffer, opening)
            found += self._words(self._buffer[:certain])
            self._buffer = self._buffer[certain:]
        return found

    def _words(self, text: str) -> list[str | ToolCall]:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        return [text] if text else []

    def _read(self, text: str) -> list[str | ToolCall]:
        """The calls of a text between marks; without marks it may have been words that look like one."""
        if not text.strip():
            return []
        try:
            calls = self._syntax.read(text, self._tools)
            error = None
        except (ValueError, SyntaxError, RecursionError) as cause:
            calls, error = [], str(cause)
        if not self._marked and (error is not None or not all(name in self._tools for name, _ in calls)):
            return [text]
        self._after_call = True
        if error is not None:
            name = re.search(r'"name"\s*:\s*"([^"]+)"', text)
            written = f"{self._syntax.opening or ''}{text.rstrip()}"
            return [self._numbered(name[1] if name else None, written, error)]
        return [self._numbered(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]

    def _numbered(self, name: str | None, arguments: str, error: str | None = None) -> ToolCall:
        self._count += 1
        return ToolCall(self._count - 1, new_id(), name, arguments, error)


def open_length(text: str, mark: str | None) -> int:
    """Returns how much of a text's end may belong to a mark that follows: space, and the mark's own beginning."""
    if mark is None:
        return 0
    held = next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
    words = text[: len(text) - held]
    return held + len(words) - len(words.rstrip())


def new_id() -> str:
    """Returns a new id for a call."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))


# ---- conversations about tools, for the template at hand ----

_EXPLANATION = """You can use these tools, given with the JSON schema of their arguments:

{tools}

To use one, answer with nothing but this, and wait for its result:

{form}

Otherwise answer in plain words."""


def explain(tools: Sequence[Mapping[str, Any]], syntax: ToolSyntax) -> str:
    """Returns words that tell a model which tools there are and how to call them."""
    described = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return _EXPLANATION.format(tools=described, form=syntax.write("<name of the tool>", "<its arguments>"))


def in_words(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], syntax: ToolSyntax
) -> list[dict[str, Any]]:
    """Returns a conversation about tools for a template that knows none: the tools in the system message, calls as the
    assistant's text, results as the user's."""
    result: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            of = f" of {message['name']}" if message.get("name") else ""
            words = f"Result{of}: {message['content']}"
            if result and result[-1].get("results"):  # several results are one turn of the user
                result[-1]["content"] += "\n" + words
                continue
            result.append({"role": "user", "content": words, "results": True})
        elif message.get("tool_calls"):
            written = [
                syntax.write(c["function"]["name"], json.dumps(c["function"]["arguments"], ensure_ascii=False))
                for c in message["tool_calls"]
            ]
            words = "\n".join(part for part in (message["content"], *written) if part)
            result.append({"role": "assistant", "content": words})
        else:
            result.append(dict(message))
    for message in result:
        message.pop("results", None)
    if tools:
        explanation = explain(tools, syntax)
        if result and result[0]["role"] == "system":
            result[0]["content"] += "\n\n" + explanation
        else:
            result.insert(0, {"role": "system", "content": explanation})
    return result


def in_form(messages: Sequence[Mapping[str, Any]], syntax: ToolSyntax) -> list[dict[str, Any]]:
    """Returns a conversation whose calls are as a template insists on: ids of its length, one call per message."""
    result = [dict(message) for message in messages]
    if syntax.id_length:
        for message in result:
            if message.get("tool_calls"):
                message["tool_calls"] = [{**c, "id": _short_id(c["id"])} for c in message["tool_calls"]]
            if "tool_call_id" in message:
                message["tool_call_id"] = _short_id(message["tool_call_id"])
    return _one_call_each(result) if syntax.single else result


def _short_id(given: str | None) -> str:
    if given and re.fullmatch(rf"[a-zA-Z0-9]{{{_ID_LENGTH}}}", given):
        return given
    return hashlib.sha256(str(given).encode()).hexdigest()[:_ID_LENGTH]


def _one_call_each(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of several calls in a message of its own, directly before its result."""
    results = {m["tool_call_id"]: m for m in messages if m["role"] == "tool" and "tool_call_id" in m}
    moved: set[int] = set()
    flat: list[dict[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            if id(message) not in moved:
                flat.append(message)
            continue
        for i, call in enumerate(calls):
            flat.append({**message, "content": message["content"] if i == 0 else "", "tool_calls": [call]})
            if answer := results.get(call["id"]):
                flat.append(answer)
                moved.add(id(answer))
    return flat
