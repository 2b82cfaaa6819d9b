"""Tool calls in an answer, as it streams: which text is words and which is calls; and tools for templates without any.

`CallReader` cuts a stream of text by the marks of a row of tool_syntax.py; what stands between them is read by
call_text.py. `in_form` and `in_words` make a conversation about tools one that the model's template can write: most
know tools, and for the others the tools become words.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.call_text import ID_LENGTH, CallDelta, CallPiece, CallText, ToolCall
from lowbit.runtime import nearest
from lowbit.tool_syntax import SYNTAXES, ToolSyntax

__all__ = [
    "CallDelta",
    "CallReader",
    "ToolCall",
    "explain",
    "find_syntax",
    "in_form",
    "in_words",
    "open_length",
    "required",
    "syntax_of",
]


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

    Words are given out as soon as they cannot be part of a call; a call in pieces (`CallDelta`) as its arguments come,
    and as a whole (`ToolCall`) when it is complete. Space around calls is no part of the words. most: how many calls
    are given out at most (None: all); further ones are dropped.
    """

    def __init__(self, syntax: ToolSyntax, tools: Sequence[str], *, most: int | None = None) -> None:
        self._syntax = syntax
        self._tools = tuple(tools)
        self._most = most
        self._indexes = itertools.count()
        self._buffer = ""  # not given out yet
        self._inside: CallText | None = None  # what reads the text between marks
        self._undecided = syntax.begins is not None  # whether the whole answer may be a call without marks
        self._after_call = False  # whether space that comes now is between a call and something else

    def push(self, text: str) -> list[CallPiece]:
        """Returns the words and calls that more text makes certain."""
        self._buffer += text
        if self._undecided:
            decision = self._begins_with_call()
            if decision is None:
                return []
            self._undecided = False
            self._inside = self._call_text(marked=False) if decision else None
        return self._advance()

    def finish(self) -> list[CallPiece]:
        """Returns what was held back, when no more text comes."""
        self._undecided = False
        found = self._advance()
        rest, self._buffer = self._buffer, ""
        if self._inside is None:
            return found + self._words(rest)
        return found + self._taken(self._inside, self._inside.push(rest) + self._inside.finish())

    def _begins_with_call(self) -> bool | None:
        """Whether the answer is a call without marks; None while its beginning leaves that open."""
        assert self._syntax.begins is not None
        if self._syntax.opening and self._buffer.lstrip().startswith(self._syntax.opening):
            return False
        return self._syntax.begins(self._buffer, self._tools)

    def _call_text(self, *, marked: bool) -> CallText:
        return CallText(self._syntax, self._tools, self._indexes, marked=marked)

    def _advance(self) -> list[CallPiece]:
        found: list[CallPiece] = []
        opening, closing = self._syntax.opening, self._syntax.closing
        while True:
            inside = self._inside
            mark = opening if inside is None else closing or opening
            before, hit, after = self._buffer.partition(mark) if mark else (self._buffer, "", "")
            if not hit:  # without what may be the beginning of a mark
                certain = len(before) - (open_length if inside is None else mark_length)(before, mark)
                before, after = before[:certain], before[certain:]
            self._buffer = after
            if inside is None:
                found += self._words(before.rstrip() if hit else before)
            else:
                found += self._taken(inside, inside.push(before) + (inside.finish() if hit else []))
            if not hit:
                return found
            # Without a closing mark, the next opening one ends a call.
            self._inside = self._call_text(marked=True) if inside is None or closing is None else None

    def _taken(self, inside: CallText, pieces: Sequence[CallPiece]) -> list[CallPiece]:
        """The pieces of what stands between marks, less the calls beyond those that are wanted."""
        found: list[CallPiece] = []
        for piece in pieces:
            if isinstance(piece, str):
                found += self._words(piece) if inside.has_calls else [piece]
                continue
            self._after_call = True
            if self._most is None or piece.index < self._most:
                found.append(piece)
        return found

    def _words(self, text: str) -> list[CallPiece]:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        return [text] if text else []


def open_length(text: str, mark: str | None) -> int:
    """Returns how much of a text's end may belong to a mark that follows: space, and the mark's own beginning."""
    if mark is None:
        return 0
    held = mark_length(text, mark)
    words = text[: len(text) - held]
    return held + len(words) - len(words.rstrip())


def mark_length(text: str, mark: str | None) -> int:
    """Returns how much of a text's end may be the beginning of a mark."""
    longest = min(len(mark or "") - 1, len(text))
    return next((n for n in range(longest, 0, -1) if str(mark).startswith(text[-n:])), 0)


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
    if given and re.fullmatch(rf"[a-zA-Z0-9]{{{ID_LENGTH}}}", given):
        return given
    return hashlib.sha256(str(given).encode()).hexdigest()[:ID_LENGTH]


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
