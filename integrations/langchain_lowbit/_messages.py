"""LangChain's messages to those of a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
    FunctionMessage: "tool",
}
# Parts of a message's content that are no text and that are told to a template in other ways, if at all.
_SILENT = frozenset({"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "thinking", "reasoning"})


def template_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Returns messages as chat templates expect them.

    Raises ValueError for content other than text, and for a message that has no place in a prompt.
    """
    names = {call["id"]: call["name"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls}
    return [_template_message(part, names) for message in messages for part in _with_results_apart(message)]


def _with_results_apart(message: BaseMessage) -> Iterator[BaseMessage]:
    """A message; Anthropic's tool results, which are parts of a user's message, as messages of their own before it."""
    results = [p for p in message.content if isinstance(p, dict) and p.get("type") == "tool_result"]
    for part in results:
        yield ToolMessage(content=part.get("content") or "", tool_call_id=part["tool_use_id"])
    if results:
        rest = [part for part in message.content if part not in results]
        message = message.model_copy(update={"content": rest})
    if message.content or not results:
        yield message


def _template_message(message: BaseMessage, call_names: Mapping[str | None, str]) -> dict[str, Any]:
    result: dict[str, Any] = {"role": _role(message), "content": _text(message)}
    if message.name:
        result["name"] = message.name
    if isinstance(message, ToolMessage):
        result["tool_call_id"] = message.tool_call_id
        result.setdefault("name", call_names.get(message.tool_call_id))
    if isinstance(message, AIMessage) and (thoughts := _thoughts(message)):
        result["reasoning_content"] = thoughts  # templates of models that think know when to repeat them
    if isinstance(message, AIMessage) and message.tool_calls:
        result["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    return result


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise ValueError(f"a {type(message).__name__} has no place in a prompt")


def _thoughts(message: AIMessage) -> str:
    parts = [part for part in message.content if isinstance(part, dict) and part.get("type") == "reasoning"]
    return message.additional_kwargs.get("reasoning_content") or "".join(part.get("reasoning") or "" for part in parts)


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(_texts(message.content))


def _texts(parts: Iterable[Any]) -> Iterable[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif part.get("type") in ("text", "text-plain"):
            yield part.get("text") or ""
        elif part.get("type") not in _SILENT:
            kind = part.get("type", "content of no type")
            raise ValueError(f"this model reads text only: a message's content has {kind!r} in it; leave it out")
