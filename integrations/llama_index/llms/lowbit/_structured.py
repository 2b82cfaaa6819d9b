"""Pydantic objects as answers: `structured_predict` and its kin, where every token keeps to the object's schema.

LlamaIndex's own way asks for JSON in words, or for a tool call, and hopes. Here the schema is a constraint of the
generation; the words stay, because a model that knows what it is to write writes better.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, TextBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.llm import LLM
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.types import PydanticProgramMode

dispatcher = get_dispatcher(__name__)
Object = TypeVar("Object", bound=BaseModel)
Methods = tuple[Callable[..., Any], Callable[..., Any]]  # the one that chats, the one that completes


class StructuredAnswers(LLM):
    """The structured methods of an LLM whose `chat` and `complete` take `json_schema`.

    With another pydantic_program_mode than the default, LlamaIndex's own way is taken. Raises pydantic's
    ValidationError where a validator of the class refuses what its schema allows, and lowbit's UnfinishedError when
    max_new_tokens ends the answer first.
    """

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Object:
        """Returns the object that answers a prompt."""
        if not self._constrains:
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _tell_start(output_cls, prompt, prompt_args)
        method, question = self._question(output_cls, prompt, prompt_args, (self.chat, self.complete))
        result = output_cls.model_validate_json(_text(method(question, **_options(output_cls, llm_kwargs))))
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Object:
        """Returns what `structured_predict` does; the event loop stays free."""
        if not self._constrains:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _tell_start(output_cls, prompt, prompt_args)
        method, question = self._question(output_cls, prompt, prompt_args, (self.achat, self.acomplete))
        result = output_cls.model_validate_json(_text(await method(question, **_options(output_cls, llm_kwargs))))
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    def _structured_stream_call(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """Yields the object as far as it is known, in the end whole: the work of stream_structured_predict."""
        if not self._constrains:
            yield from super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
            return
        method, question = self._question(output_cls, prompt, prompt_args, (self.stream_chat, self.stream_complete))
        partial = _Partial(output_cls)
        for response in method(question, **_options(output_cls, llm_kwargs)):
            yield partial.of(response)
        yield partial.whole()

    async def _structured_astream_call(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """Returns the same, asynchronously."""
        if not self._constrains:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        method, question = self._question(output_cls, prompt, prompt_args, (self.astream_chat, self.astream_complete))
        responses = await method(question, **_options(output_cls, llm_kwargs))

        async def objects() -> AsyncGenerator[Any, None]:
            partial = _Partial(output_cls)
            async for response in responses:
                yield partial.of(response)
            yield partial.whole()

        return objects()

    @property
    def _constrains(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    def _question(
        self, output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any], methods: Methods
    ) -> tuple[Callable[..., Any], Any]:
        """The method that fits the model, and the prompt for it with the schema in words."""
        words = PydanticOutputParser(output_cls=output_cls).get_format_string(escape_json=False)
        if not self.metadata.is_chat_model:
            return methods[1], self._get_prompt(prompt, **prompt_args) + "\n" + words
        messages = list(self._get_messages(prompt, **prompt_args))
        last = messages[-1] if messages else ChatMessage()
        messages[-1:] = [last.model_copy(update={"blocks": [*last.blocks, TextBlock(text=words)]})]
        return methods[0], messages


def _tell_start(output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> None:
    event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
    dispatcher.event(event)


def _options(output_cls: type[BaseModel], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {**(llm_kwargs or {}), "json_schema": output_cls}


def _text(response: ChatResponse | CompletionResponse) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""


class _Partial:
    """An object on its way."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._class = output_cls
        self._text = ""
        self._before: list[Any] | None = None

    def of(self, response: ChatResponse | CompletionResponse) -> Any:
        """Returns what is known of the object: one with the same fields, of which some may be None."""
        self._text = _text(response)
        found = process_streaming_objects(response, self._class, cur_objects=self._before)
        self._before = [found]
        return found

    def whole(self) -> BaseModel:
        """Returns the object of the whole answer."""
        return self._class.model_validate_json(self._text)
