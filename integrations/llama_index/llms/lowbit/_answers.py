"""The parts of an answer, as a text model gives them, to LlamaIndex's responses: text so far, calls, counts."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

from lowbit import chat
from lowbit.answers import Piece, Thought
from lowbit.grammar import check_finished
from lowbit.sampling import is_constrained
from lowbit.text import Completion, Delta, TokenLogprob
from lowbit.tool_calls import CallDelta, ToolCall

logger = logging.getLogger(__name__)

Part = Delta | Completion
R = TypeVar("R", CompletionResponse, ChatResponse)


class Answer(Generic[R]):
    """One answer on its way, its words, thoughts and tool calls so far: of a completion, or of deltas, not both.

    Raises UnfinishedError where a constrained answer ends before it is whole.
    """

    def __init__(self, turn: chat.Turn) -> None:
        self.text = ""
        self.thoughts = ""
        self.calls: list[ToolCall] = []
        self.coming: CallDelta | None = None  # a call that is not complete, as far as it has come
        self._reader = turn.reader
        self._constrained = is_constrained(turn.options)

    def whole(self, completion: Completion) -> R:
        """Returns the response of a finished completion."""
        self._check_end(completion)
        response = self._next(completion)
        assert response is not None  # an end is always told
        return response

    def stream(self, deltas: Iterator[Delta]) -> Iterator[R]:
        """Yields a response per delta, with the text so far; closing this ends the work."""
        with closing(deltas):  # type: ignore[type-var]
            for delta in deltas:
                if (response := self._next(delta)) is not None:
                    yield response
                self._check_end(delta)

    async def astream(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[R]:
        """Yields what `stream` does, of an async iterator."""
        async with aclosing(deltas):  # type: ignore[type-var]
            async for delta in deltas:
                if (response := self._next(delta)) is not None:
                    yield response
                self._check_end(delta)

    def _next(self, part: Part) -> R | None:
        """The response after a part; None while its text may belong to something that is not complete."""
        pieces = self._pieces(part)
        if not pieces and part.finish_reason is None and part.logprobs is None:
            return None
        words = "".join(_words(piece) for piece in pieces)
        thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
        self.text += words
        self.thoughts += thoughts
        for piece in pieces:
            self._note(piece)
        facts = _facts(part, words)
        if thoughts and isinstance(part, Delta):  # where LlamaIndex's agents look for it
            facts["additional_kwargs"] = {**facts.get("additional_kwargs", {}), "thinking_delta": thoughts}
        if self.calls and part.finish_reason == "stop":
            facts["raw"]["finish_reason"] = "tool_calls"
        return self._response(facts)

    def _note(self, piece: Piece) -> None:
        if isinstance(piece, CallDelta):
            before = self.coming.arguments if self.coming else ""
            name = self.coming.name if self.coming else piece.name
            self.coming = replace(piece, name=name, arguments=before + piece.arguments)
        elif isinstance(piece, ToolCall):
            self.coming = None
            if piece.error is None:
                self.calls.append(piece)

    def _pieces(self, part: Part) -> list[Piece]:
        if self._reader is None:
            return [part.text] if part.text else []
        pieces = self._reader.push(part.text)
        return pieces + self._reader.finish() if part.finish_reason is not None else pieces

    def _check_end(self, part: Part) -> None:
        if part.finish_reason is not None:
            check_finished(part.finish_reason, self._constrained)

    def _response(self, facts: dict[str, Any]) -> R:
        raise NotImplementedError


class CompletionAnswer(Answer[CompletionResponse]):
    """An answer as completion responses: its words alone."""

    def _response(self, facts: dict[str, Any]) -> CompletionResponse:
        return CompletionResponse(text=self.text, **facts)


class ChatAnswer(Answer[ChatResponse]):
    """An answer as the assistant's message: thoughts, words and tool calls in blocks of their own.

    A call that is not complete has the text of its arguments so far for `tool_kwargs`, as LlamaIndex's own classes do.
    """

    def _response(self, facts: dict[str, Any]) -> ChatResponse:
        return ChatResponse(message=self._message(), **facts)

    def _message(self) -> ChatMessage:
        written: list[ToolCall | CallDelta] = [*self.calls, *([self.coming] if self.coming else ())]
        calls = [
            ToolCallBlock(
                tool_call_id=call.id,
                tool_name=call.name or "",
                tool_kwargs=json.loads(call.arguments) if isinstance(call, ToolCall) else call.arguments,
            )
            for call in written
        ]
        # Where LlamaIndex does not look at blocks yet, it looks for OpenAI's form of the same.
        known = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in written
        ]
        thoughts = [ThinkingBlock(content=self.thoughts)] if self.thoughts else []
        words = [TextBlock(text=self.text)] if self.text or not calls else []
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=[*thoughts, *words, *calls],
            additional_kwargs={"tool_calls": known} if known else {},
        )


def _words(piece: Piece) -> str:
    """The text of a piece: of a call only where it cannot be read; then the user sees what the model wrote."""
    if isinstance(piece, str):
        return piece
    if isinstance(piece, ToolCall) and piece.error is not None:
        logger.warning("the model wrote a tool call that cannot be read: %s", piece.error)
        return piece.arguments
    return ""


def tool_selections(response: ChatResponse) -> list[ToolSelection]:
    """Returns the calls of an answer, as LlamaIndex executes them; while it streams, as far as they are known."""
    return [
        ToolSelection(
            tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=_known_arguments(block.tool_kwargs)
        )
        for block in _call_blocks(response)
    ]


def _known_arguments(given: dict[str, Any] | str) -> dict[str, Any]:
    if not isinstance(given, str):
        return given
    try:
        return parse_partial_json(given)
    except ValueError:  # within a key
        return {}


def with_one_call(response: ChatResponse) -> ChatResponse:
    """Returns the answer with the first of its calls only."""
    extra = _call_blocks(response)[1:]
    if not extra:
        return response
    message = response.message
    known = message.additional_kwargs["tool_calls"][:1]
    kept = ChatMessage(
        role=message.role,
        blocks=[block for block in message.blocks if not any(block is other for other in extra)],
        additional_kwargs={**message.additional_kwargs, "tool_calls": known},
    )
    return response.model_copy(update={"message": kept})


def _call_blocks(response: ChatResponse) -> list[ToolCallBlock]:
    return [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]


def _facts(part: Part, new_text: str) -> dict[str, Any]:
    """What a response holds beside the text. Counts come with the end, where LlamaIndex's token counter looks."""
    facts: dict[str, Any] = {}
    if isinstance(part, Delta):
        facts["delta"] = new_text
    if part.logprobs is not None:
        facts["logprobs"] = [_logprobs(entry) for entry in part.logprobs]
    if part.finish_reason is not None:
        usage = {
            "prompt_tokens": part.prompt_tokens,
            "completion_tokens": part.completion_tokens,
            "total_tokens": part.prompt_tokens + part.completion_tokens,
        }
        details = {"prompt_tokens_details": {"cached_tokens": part.cached_tokens}}
        facts["raw"] = {"finish_reason": part.finish_reason, "usage": {**usage, **details}}
        facts["additional_kwargs"] = usage
    return facts


def _logprobs(entry: TokenLogprob) -> list[LogProb]:
    """The chosen token first, then the alternatives that were not chosen."""
    others = [(text, logprob) for token, text, logprob in entry.alternatives if token != entry.token_id]
    return [
        LogProb(token=text, logprob=logprob, bytes=list(text.encode()))
        for text, logprob in [(entry.text, entry.logprob), *others]
    ]
