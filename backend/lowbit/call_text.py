"""What stands between the marks of tool calls, as it comes: each call in pieces while its arguments are written, and
then as a whole.

A call can be given out early where its name comes first and its arguments are a JSON object (`ToolSyntax.heads`): from
there on it is one, whatever follows. Every other way of writing is read when it is complete.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lowbit.tool_syntax import BETWEEN, ToolSyntax

ID_LENGTH = 9  # the only length that Mistral's templates accept; no other asks for one
_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a call that is on its way.

    index: the call's place among the answer's calls. name: with the first piece of a call, None with the others.
    arguments: what comes to the text of the call's arguments; the pieces of a call join to `ToolCall.arguments`, but
    where it turns out that it cannot be read.
    """

    index: int
    id: str
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in an answer, complete; its pieces came before.

    index: its place among the answer's calls. arguments: JSON text of an object, as the model wrote it where it wrote
    JSON. error: None, or why it cannot be read; then arguments is the whole call as the model wrote it, mark included,
    and name is None where none was found.
    """

    index: int
    id: str
    name: str | None
    arguments: str
    error: str | None = None


CallPiece = str | CallDelta | ToolCall


class CallText:
    """Reads the text between two marks, or, where there are none (marked=False), of an answer that seems to be a call.

    indexes: the numbers of an answer's calls. Without marks, a call of no known tool is no call but words.
    """

    def __init__(self, syntax: ToolSyntax, tools: Sequence[str], indexes: Iterator[int], *, marked: bool) -> None:
        self._syntax = syntax
        self._tools = tuple(tools)
        self._indexes = indexes
        self._marked = marked
        self._unread = ""  # no part of a call that has begun
        self._open: _OpenCall | None = None
        self.has_calls = False

    def push(self, text: str) -> list[CallPiece]:
        """Returns what more text makes certain."""
        found: list[CallPiece] = []
        while True:
            if self._open is None:
                self._unread += text
                match = self._head()
                if match is None:
                    return found
                text, self._unread = self._unread[match.end() :], ""
                written = match[0] if self.has_calls or not self._marked else f"{self._syntax.opening}{match[0]}"
                self._open = _OpenCall(next(self._indexes), match["name"], written)
                self.has_calls = True
            pieces, text = self._open.push(text)
            found += pieces
            if not self._open.complete:
                return found
            self._open = None

    def finish(self) -> list[CallPiece]:
        """Returns what was held back, when no more text comes."""
        if self._open is not None:
            return [self._open.failed()]
        text = readable = self._unread
        if self.has_calls:  # what is left of their list
            match = BETWEEN.match(text)
            text = text[match.end() :] if match else text
            readable = text.rstrip().rstrip("`").rstrip(" \t\r\n,;]")
        if not text.strip():
            return []
        try:
            calls = self._syntax.read(readable, self._tools)
            error = None
        except (ValueError, SyntaxError, RecursionError) as cause:
            calls, error = [], str(cause)
        if not self._marked and (error is not None or not all(name in self._tools for name, _ in calls)):
            return [text]
        opening = "" if self.has_calls else self._syntax.opening or ""
        self.has_calls = True
        if error is not None:
            name = re.search(r'"name"\s*:\s*"([^"]+)"', text)
            return self._whole(name[1] if name else None, f"{opening}{text.rstrip()}", error)
        return [p for name, values in calls for p in self._whole(name, json.dumps(values, ensure_ascii=False))]

    def _head(self) -> re.Match[str] | None:
        """Where the text begins with a call up to its arguments."""
        for head in self._syntax.heads:
            if (match := head.match(self._unread)) and (self._marked or match["name"] in self._tools):
                return match
        return None

    def _whole(self, name: str | None, arguments: str, error: str | None = None) -> list[CallPiece]:
        index, call_id = next(self._indexes), new_id()
        return [CallDelta(index, call_id, name, arguments), ToolCall(index, call_id, name, arguments, error)]


class _OpenCall:
    """A call whose arguments, a JSON object, are being written."""

    def __init__(self, index: int, name: str, written: str) -> None:
        self._index = index
        self._id = new_id()
        self._name = name
        self._written = [written]  # as the model wrote it
        self._arguments: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = False
        self._ended = False  # whether the braces are closed
        self.complete = False

    def push(self, text: str) -> tuple[list[CallPiece], str]:
        """Returns the pieces that more text gives, and the rest of it when the call is complete."""
        if self._ended:  # by closed braces around what is not JSON
            self._written.append(text)
            return [], ""
        piece, used = self._scan(text)
        self._written.append(text[:used])
        found: list[CallPiece] = []
        if piece:
            name = None if self._arguments else self._name
            self._arguments.append(piece)
            found.append(CallDelta(self._index, self._id, name, piece))
        if self._ended:
            if self._error() is not None:
                self._written.append(text[used:])
                return found, ""
            self.complete = True
            found.append(ToolCall(self._index, self._id, self._name, "".join(self._arguments)))
        return found, text[used:]

    def failed(self) -> ToolCall:
        """Returns the call that no more text will complete."""
        written = "".join(self._written).rstrip()
        return ToolCall(self._index, self._id, self._name, written, self._error())

    def _error(self) -> str | None:
        try:
            json.loads("".join(self._arguments))
        except (ValueError, RecursionError) as cause:
            return str(cause)
        return None

    def _scan(self, text: str) -> tuple[str, int]:
        """The text up to the end of the arguments, as JSON (models write line breaks into strings as they are), and
        how much of it that is."""
        found = []
        for used, character in enumerate(text, 1):
            if self._in_string:
                found.append(character if character >= " " or self._escaped else json.dumps(character)[1:-1])
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                continue
            found.append(character)
            if character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._ended = True
                    return "".join(found), used
        return "".join(found), len(text)


def new_id() -> str:
    """Returns a new id for a call."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(ID_LENGTH))
