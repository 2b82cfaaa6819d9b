"""LlamaIndex's messages to those of a chat template, and a conversation in one as LlamaIndex's `messages_to_prompt`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from lowbit import chat
from lowbit.text import TextModel

# LlamaIndex's names of roles -> those that templates know; the others are the same.
_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}
_LEFT_OUT = (ThinkingBlock, CachePoint)  # no part of a conversation that a template shows the model


class Conversation:
    """A LlamaIndex `messages_to_prompt`: the text of a conversation in a model's chat template, asking for an answer.

    template: one to use instead of the model's, its text or a name of `lowbit.chat_templates`. Without any, the text is
    LlamaIndex's own "user: ..." lines. variables: whatever else the template knows.
    """

    def __init__(self, model: TextModel, template: str | None, variables: Mapping[str, Any]) -> None:
        self.model = model
        self.template = template
        self.variables = dict(variables)

    @property
    def has_template(self) -> bool:
        """True if the model was made for conversations, or a template is given."""
        return self.template is not None or chat.has_template(self.model.tokenizer)

    @property
    def knows_tools(self) -> bool:
        """True if the template writes tools the way the model was trained on."""
        return self.has_template and chat.knows_tools(self.model.tokenizer, self.template)

    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        if not self.has_template:
            return messages_to_prompt(messages)
        return chat.render(self.model.tokenizer, to_messages(messages), template=self.template, **self.variables)

    def turn(self, messages: Sequence[ChatMessage], options: Mapping[str, Any], **tools: Any) -> chat.Turn:
        """Returns the answer to come; ValueError where there is no template."""
        return chat.turn(self.model, to_messages(messages), options, template=self.template, **tools, **self.variables)


def to_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Returns the conversation as a chat template takes it. Raises ValueError for content that is not text."""
    return [_to_message(message) for message in messages]


def _to_message(message: ChatMessage) -> dict[str, Any]:
    for block in message.blocks:
        if not isinstance(block, (TextBlock, ToolCallBlock, *_LEFT_OUT)):
            raise ValueError(
                f"a message contains {block.block_type!r} content, and this model reads text only: "
                "leave it out or describe it in words"
            )
    result: dict[str, Any] = {"role": _ROLES.get(message.role, message.role.value), "content": message.content or ""}
    if calls := _calls(message):
        result["tool_calls"] = calls
    for name in ("tool_call_id", "name"):
        if message.additional_kwargs.get(name) is not None:
            result[name] = message.additional_kwargs[name]
    return result


def _calls(message: ChatMessage) -> list[dict[str, Any]]:
    """The calls of an assistant's message: its blocks, or, from older code, OpenAI's dictionaries beside them."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return [_call(block.tool_call_id, block.tool_name, block.tool_kwargs) for block in blocks]
    given = message.additional_kwargs.get("tool_calls") or ()
    return [_call(c.get("id"), c["function"]["name"], c["function"]["arguments"]) for c in given]


def _call(call_id: str | None, name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments_of(arguments)}}


def arguments_of(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """Returns the arguments of a call, of JSON text too: a template that got that would write it in quotes."""
    return json.loads(given or "{}") if isinstance(given, str) else dict(given)
