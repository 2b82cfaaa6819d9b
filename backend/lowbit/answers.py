"""What an answer consists of, as it streams: thoughts, words and tool calls.

`AnswerReader` takes the thoughts that some models write before they answer from the rest, and leaves the rest to
tool_calls.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.tool_calls import CallDelta, CallReader, ToolCall, open_length

OPENING, CLOSING = "<think>", "</think>"  # of Qwen 3, DeepSeek-R1 and whoever learned from them


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what a model thought before it answered; the pieces join to the whole."""

    text: str


Piece = str | Thought | CallDelta | ToolCall


class AnswerReader:
    """Separates an answer's thoughts, words (plain strings) and calls (in pieces, then each whole), whatever pieces it
    comes in.

    calls: what finds tool calls in the words, None where there are no tools. thinks: whether the model marks thoughts
    (only a mark at the very beginning counts). thinking: whether the prompt ends inside them already.
    """

    def __init__(self, calls: CallReader | None = None, *, thinks: bool = False, thinking: bool = False) -> None:
        self._calls = calls
        self._buffer = ""  # not given out yet
        self._at_start = thinks and not thinking
        self._thinking = thinking
        self._trim = thinking  # whether space that comes now is beside a mark

    def push(self, text: str) -> list[Piece]:
        """Returns the pieces that more text makes certain."""
        self._buffer += text
        if self._at_start:
            start = self._buffer.lstrip()
            if len(start) < len(OPENING) and OPENING.startswith(start):
                return []
            self._at_start = False
            if start.startswith(OPENING):
                self._thinking = self._trim = True
                self._buffer = start.removeprefix(OPENING)
        found: list[Piece] = []
        if self._thinking:
            thought, closed, rest = self._buffer.partition(CLOSING)
            if not closed:
                certain = len(thought) - open_length(thought, CLOSING)
                return self._thoughts(thought[:certain], thought[certain:])
            found += self._thoughts(thought.rstrip(), rest)
            self._thinking, self._trim = False, True
        words, self._buffer = self._buffer, ""
        return found + self._words(words)

    def finish(self) -> list[Piece]:
        """Returns what was held back, when no more text comes."""
        rest, self._buffer = self._buffer, ""
        if self._thinking:
            return self._thoughts(rest.rstrip(), "")
        found = self._words(rest)
        return found + (self._calls.finish() if self._calls is not None else [])

    def _thoughts(self, text: str, rest: str) -> list[Piece]:
        self._buffer = rest
        text = self._trimmed(text)
        return [Thought(text)] if text else []

    def _words(self, text: str) -> list[Piece]:
        text = self._trimmed(text)
        if self._calls is not None:
            return [*self._calls.push(text)]
        return [text] if text else []

    def _trimmed(self, text: str) -> str:
        """A text without the space that separates a mark from it."""
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        return text
