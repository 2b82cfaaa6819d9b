"""The parts of an answer, as a text model gives them, to LangChain's messages: words, tool calls, counts, logprobs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCall, ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from langchain_core.utils.json import parse_partial_json

from lowbit import tool_calls
from lowbit.answers import AnswerReader, Piece, Thought
from lowbit.text import Completion, Delta, TokenLogprob

Part = Delta | Completion


class Answer:
    """One answer on its way: from its deltas to chunks, or from the completion to a message, not both.

    reader: what finds thoughts and tool calls in its text, or None where there can be none.
    """

    def __init__(self, model_name: str, reader: AnswerReader | None) -> None:
        self._model_name = model_name
        self._reader = reader
        self._called = False
        self._arguments: defaultdict[int, str] = defaultdict(str)  # what chunks have of each call

    def whole(self, completion: Completion) -> ChatGeneration:
        """Returns the generation of a completion."""
        pieces = self._pieces(completion)
        calls = [piece for piece in pieces if isinstance(piece, tool_calls.ToolCall)]
        message = AIMessage(
            content=_words(pieces),
            additional_kwargs=_thoughts(pieces),
            tool_calls=[_call(call) for call in calls if call.error is None],
            invalid_tool_calls=[
                invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=call.error)
                for call in calls
                if call.error is not None
            ],
            usage_metadata=_usage(completion),
        )
        return ChatGeneration(message=message, generation_info=self._info(completion))

    def chunk(self, delta: Delta) -> ChatGenerationChunk | None:
        """Returns the chunk of a delta; None while its text may belong to a call that has not begun."""
        pieces = self._pieces(delta)
        info = self._info(delta)
        if not pieces and not info:
            return None
        ended = delta.finish_reason is not None
        message = AIMessageChunk(
            content=_words(pieces),
            additional_kwargs=_thoughts(pieces),
            tool_call_chunks=self._call_chunks(pieces),
            usage_metadata=_usage(delta) if ended else None,
            chunk_position="last" if ended else None,
        )
        return ChatGenerationChunk(message=message, generation_info=info or None)

    def _pieces(self, part: Part) -> list[Piece]:
        if self._reader is None:
            return [part.text] if part.text else []
        pieces = self._reader.push(part.text)
        if part.finish_reason is not None:
            pieces += self._reader.finish()
        self._called |= any(isinstance(piece, tool_calls.ToolCall) for piece in pieces)
        return pieces

    def _call_chunks(self, pieces: Sequence[Piece]) -> list[ToolCallChunk]:
        """One chunk for each call that pieces tell of: with its name and id the first time, with its index always."""
        chunks: dict[int, ToolCallChunk] = {}
        for piece in pieces:
            if isinstance(piece, tool_calls.CallDelta):
                name, args = piece.name, piece.arguments
            elif isinstance(piece, tool_calls.ToolCall) and piece.error is not None:
                name, args = None, _refused_end(self._arguments[piece.index])
            else:
                continue
            first = piece.index not in self._arguments
            self._arguments[piece.index] += args
            chunk = tool_call_chunk(name=name, args="", id=piece.id if first else None, index=piece.index)
            chunk = chunks.setdefault(piece.index, chunk)
            chunk["args"] = f"{chunk['args']}{args}"
        return list(chunks.values())

    def _info(self, part: Part) -> dict[str, Any]:
        """What becomes response_metadata; finish reason and name come with the end."""
        info: dict[str, Any] = {}
        if part.finish_reason is not None:
            called = self._called and part.finish_reason == "stop"
            info["finish_reason"] = "tool_calls" if called else part.finish_reason
            info |= {"model_name": self._model_name, "model_provider": "lowbit"}
        if part.logprobs is not None:
            info["logprobs"] = _logprobs(part.logprobs)
        return info


def _words(pieces: Sequence[Piece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _thoughts(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Thoughts where LangChain's content_blocks look for them."""
    text = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    return {"reasoning_content": text} if text else {}


def _call(call: tool_calls.ToolCall) -> ToolCall:
    return tool_call(name=call.name or "", args=json.loads(call.arguments), id=call.id)


# What makes text that LangChain would complete to an object one that it cannot: a bracket that closes another one than
# is open, after the end of a string where one is open, and of an escape in it.
_REFUSED = ("", *(f"{quotes}{bracket}" for quotes in ("", '"', '""') for bracket in "]}"))


def _refused_end(arguments: str) -> str:
    """Returns what to put behind the arguments of a call that cannot be read, so that a sum of chunks has it among its
    `invalid_tool_calls` too: LangChain takes half an object for a whole one."""
    return next(end for end in _REFUSED if not _is_object(arguments + end))


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False


def _usage(part: Part) -> UsageMetadata:
    """The token counts of an answer; cache_read counts prompt tokens reused from an earlier call."""
    return UsageMetadata(
        input_tokens=part.prompt_tokens,
        output_tokens=part.completion_tokens,
        total_tokens=part.prompt_tokens + part.completion_tokens,
        input_token_details={"cache_read": part.cached_tokens},
    )


def _logprobs(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities as OpenAI's chat models report them, which LangChain's tools read."""
    return {"content": [_logprob(entry) for entry in entries]}


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    others = [{"token": text, "token_id": i, "logprob": logprob} for i, text, logprob in entry.alternatives]
    return {"token": entry.text, "token_id": entry.token_id, "logprob": entry.logprob, "top_logprobs": others}
