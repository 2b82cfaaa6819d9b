"""LlamaIndex's messages to those of a chat template, and the parts of an answer to LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)

from lowbit import chat
from lowbit.text import Completion, Delta, TokenLogprob
from lowbit.tokenizer import Tokenizer

Part = Delta | Completion
R = TypeVar("R")
Respond = Callable[[str, Part], R]

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

    template: the text of one to use instead of the model's. Without any, LlamaIndex's own "user: ..." lines.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template

    @property
    def has_template(self) -> bool:
        """True if the model was made for conversations, or a template is given."""
        return self.template is not None or chat.has_template(self.tokenizer)

    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        if not self.has_template:
            return messages_to_prompt(messages)
        return chat.render(self.tokenizer, to_messages(messages), template=self.template)

    def ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Returns the token ids of the conversation; ValueError where there is no template."""
        return chat.encode(self.tokenizer, to_messages(messages), template=self.template)


def to_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Returns the conversation as a chat template takes it. Raises ValueError for content that is not text."""
    return [_to_message(message) for message in messages]


def _to_message(message: ChatMessage) -> dict[str, Any]:
    for block in message.blocks:
        if not isinstance(block, (TextBlock, *_LEFT_OUT)):
            raise ValueError(
                f"a message contains {block.block_type!r} content, and this model reads text only: "
                "leave it out or describe it in words"
            )
    return {"role": _ROLES.get(message.role, message.role.value), "content": message.content or ""}


def completion_response(text: str, part: Part) -> CompletionResponse:
    """Returns the response whose whole text so far is `text` and whose newest part is `part`."""
    return CompletionResponse(text=text, **_facts(part))


def chat_response(text: str, part: Part) -> ChatResponse:
    """Returns the same as the assistant's message."""
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), **_facts(part))


def whole(completion: Completion, respond: Respond[R]) -> R:
    """Returns the response of a finished completion."""
    return respond(completion.text, completion)


def stream(deltas: Iterator[Delta], respond: Respond[R]) -> Iterator[R]:
    """Yields a response per delta, with the text so far; closing this ends the work."""
    text = ""
    with closing(deltas):  # type: ignore[type-var]
        for delta in deltas:
            text += delta.text
            yield respond(text, delta)


async def astream(deltas: AsyncIterator[Delta], respond: Respond[R]) -> AsyncIterator[R]:
    """Yields what `stream` does, of an async iterator."""
    text = ""
    async with aclosing(deltas):  # type: ignore[type-var]
        async for delta in deltas:
            text += delta.text
            yield respond(text, delta)


def _facts(part: Part) -> dict[str, Any]:
    """What a response holds beside the text. Counts come with the end, where LlamaIndex's token counter looks."""
    facts: dict[str, Any] = {}
    if isinstance(part, Delta):
        facts["delta"] = part.text
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
