"""ChatIpexLLM: a low-bit text model as a LangChain chat model.

Translates types: messages and answers to and from `lowbit.chat` and `lowbit.TextModel`. Prompts are made by the model's
own chat template, and an answer ends where the template ends one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from langchain_lowbit._answers import Answer
from langchain_lowbit._messages import template_messages
from langchain_lowbit._model import LowBitModel
from langchain_lowbit._structured import options_of, structured_output
from lowbit import chat, tool_calls
from lowbit.answers import AnswerReader
from lowbit.sampling import merge
from lowbit.text import Completion, TextModel

logger = logging.getLogger(__name__)

# Constructor arguments that every provider is given, and what they would be about.
_NO_SERVICE = {
    "api_key": "the model runs in this process",
    "base_url": "the model runs in this process",
    "timeout": "there is no connection; cancel the task, or limit max_tokens",
    "max_retries": "there is no connection that could fail",
}


class ChatIpexLLM(LowBitModel, BaseChatModel):
    """A Hugging Face chat model in 3 to 8 bits, run in process.

    Build it with `from_model_id` (hub id, Hugging Face folder or low-bit folder) or `from_model_id_low_bit` (low-bit
    folder), or around a loaded model, whose weights are then shared: `ChatIpexLLM(model=lowbit.load(...))`,
    `ChatIpexLLM(model=llm)` of an `IpexLLM`.

    Generation options are fields (`temperature`, `max_tokens`, `top_p`, `top_k`, `seed`, `stop`) or, any of them, keys
    of `model_kwargs`; per call they are arguments of `invoke`, `stream`, `bind`, ... An answer's `usage_metadata`
    counts tokens; its `response_metadata` has `finish_reason`, `model_name` and, with `logprobs=k`, `logprobs`.

        from langchain_lowbit import ChatIpexLLM

        llm = ChatIpexLLM.from_model_id("Qwen/Qwen2.5-0.5B-Instruct", temperature=0, max_tokens=64)
        for chunk in llm.stream([("system", "Be brief."), ("user", "What is AI?")]):
            print(chunk.text, end="")
    """

    model_config = ConfigDict(**LowBitModel.model_config, populate_by_name=True)

    temperature: float | None = None
    """Sampling temperature; 0 is greedy. None: the model's own setting."""
    max_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    """Longest answer in tokens (default 256)."""
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    """The same seed gives the same answer, alone or in a batch. None: another one for every call."""
    stop: list[str] | str | None = None
    """Texts that end an answer; they are not part of it."""
    template: str | None = None
    """For a model without a chat template, or instead of its own: the name of a format (`vicuna`, `llama-2`,
    `chatglm2`, `chatglm3`, `baichuan`, `qwen`, `internlm`, `neural-chat`, `dolly`, ...), the name of one of the
    model's several templates, or a jinja2 template."""
    tool_syntax: str | None = None
    """How the model writes tool calls, where its template does not show it: `hermes`, `mistral`, `llama-3`, `chatglm`,
    `json`, ..."""
    template_kwargs: dict[str, Any] | None = None
    """What else the template knows, for example `{"enable_thinking": False}`."""
    streaming: bool = False
    """True: `invoke` streams too, to callbacks. It changes no result; `stream` and `astream` stream in either case."""

    @model_validator(mode="before")
    @classmethod
    def _drop_service_arguments(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for name in values.keys() & _NO_SERVICE:
            logger.info("%s has no effect: %s", name, _NO_SERVICE[name])
        return {name: value for name, value in values.items() if name not in _NO_SERVICE}

    # ---- what it is ----

    @property
    def _llm_type(self) -> str:
        return "chat-ipex-llm"

    @property
    def model_name(self) -> str:
        """The model's id, by the name that agents look for."""
        return self.model_id

    def _resolve_model_profile(self) -> ModelProfile | None:
        """What agents and middleware ask of a model, for example when to summarise a conversation."""
        model = self.model.model if isinstance(self.model, LowBitModel) else self.model
        if not isinstance(model, TextModel):
            return None
        inputs = {f"{kind}_inputs": False for kind in ("image", "image_url", "pdf", "audio", "video")}
        return ModelProfile(
            max_input_tokens=model.context,
            text_inputs=True,
            text_outputs=True,
            tool_calling=True,
            **inputs,  # type: ignore[typeddict-item]
        )

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Returns how many tokens a conversation is as a prompt, with the tools that would be bound to it.

        A part of one that the template refuses (an answer without its question) counts as its bare texts: that is what
        `trim_messages` asks about.
        """
        definitions = [convert_to_openai_tool(tool) for tool in tools or ()]
        parts = template_messages(messages)
        try:
            turn = chat.turn(
                self._loaded, parts, template=self.template, tools=definitions, **self.template_kwargs or {}
            )
        except ValueError:
            return sum(self.get_num_tokens(part["content"]) for part in parts)
        return len(turn.prompt)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            **self._identity(),
            **self._field_options(),
            "template": self.template,
            "tool_syntax": self.tool_syntax,
            "template_kwargs": self.template_kwargs,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._tracing_params("chat", stop, {**(self.model_kwargs or {}), **self._field_options(), **kwargs})

    # ---- a call: messages in, prompt and options out ----

    def _field_options(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop")}
        return {name: value for name, value in named.items() if value is not None}

    def _defaults(self) -> dict[str, Any]:
        return merge(super()._defaults(), self._field_options())

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | Mapping[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Returns this model with tools that it may call: answers then have `tool_calls`; a stream has
        `tool_call_chunks` whose arguments grow as the model writes them.

        tools: functions, pydantic classes, LangChain tools, JSON schemas or OpenAI's definitions. tool_choice: "auto"
        (default), "any" or "required", "none", or the name of the tool to call; where a call is required, a grammar
        makes the answer one (extra `grammar`). strict: noted in the definitions. parallel_tool_calls: False holds an
        answer to one call; by default the model may write several.

        Raises ValueError for a tool_choice that is none of these, with the nearest.
        """
        definitions = [convert_to_openai_tool(tool, strict=strict) for tool in tools]  # type: ignore[arg-type]
        tool_calls.required(tool_choice, definitions)
        given = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        chosen = {name: value for name, value in given.items() if value is not None}
        return self.bind(tools=definitions, **chosen, **kwargs)

    def with_structured_output(
        self,
        schema: Mapping[str, Any] | type,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Returns this model with answers that are objects of a schema, enforced token by token: instances of a
        pydantic class, dictionaries for any other schema. Streams give partial objects.

        schema: pydantic class, TypedDict, JSON schema or OpenAI function. method: "json_schema" lets the answer be JSON
        of the schema; "function_calling" has the model call a tool of that schema, which its template tells it about;
        "json_mode" enforces the schema too, its name is for other providers' scripts. include_raw: the result is a
        dictionary with `raw`, `parsed` and `parsing_error`. strict: noted in a tool's definition. kwargs: options.

        An answer cut short (`max_tokens`) is an OutputParserException, never half an object. Raises ValueError naming
        a keyword of the schema that cannot be enforced, and ImportError naming the extra where `grammar` is missing.
        """
        return structured_output(self, schema, method, include_raw, strict, kwargs)

    def _turn(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> chat.Turn:
        """The answer to come to a conversation."""
        if "model" in kwargs:
            raise ValueError("a ChatIpexLLM has one loaded model: build another one instead of passing model=")
        how = {name: kwargs.pop(name, getattr(self, name, None)) for name in ("template", "tool_syntax")}
        how |= {name: kwargs.pop(name, None) for name in ("tools", "tool_choice", "parallel_tool_calls")}
        variables = {**(self.template_kwargs or {}), **(kwargs.pop("template_kwargs", None) or {})}
        held_to = options_of(kwargs.pop("response_format", None))
        if held_to and how["tools"]:
            raise ValueError(
                "an answer that is held to a response_format can call no tools: leave one of them out; for an agent "
                "pass response_format=ToolStrategy(...), whose answer is a call itself"
            )
        options = self._options(stop, kwargs | held_to)
        return chat.turn(self._loaded, template_messages(messages), options, **how, **variables)

    # ---- generating: every method below is a fold over the model's deltas ----

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn = self._turn(messages, stop, kwargs)
        return self._result(self._loaded.generate(turn.prompt, **turn.options), turn.reader)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn = await asyncio.to_thread(self._turn, messages, stop, kwargs)
        return self._result(await self._loaded.agenerate(turn.prompt, **turn.options), turn.reader)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        turn = self._turn(messages, stop, kwargs)
        answer = self._answer(turn.reader)
        with closing(self._loaded.stream(turn.prompt, **turn.options)) as deltas:
            for delta in deltas:
                if (chunk := answer.chunk(delta)) is None:
                    continue
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        turn = await asyncio.to_thread(self._turn, messages, stop, kwargs)
        answer = self._answer(turn.reader)
        async with aclosing(self._loaded.astream(turn.prompt, **turn.options)) as deltas:
            async for delta in deltas:
                if (chunk := answer.chunk(delta)) is None:
                    continue
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # ---- several conversations: all of them wait at once, and what waits at once is decoded together ----

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Returns the answers to several conversations, in their order, decoded together."""
        configs = self._at_once(config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[AIMessage]:
        """Returns what `batch` returns without blocking the event loop."""
        configs = self._at_once(config, len(inputs))
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _at_once(self, config: RunnableConfig | list[RunnableConfig] | None, count: int) -> list[RunnableConfig]:
        """As many at a time as the model decodes together, where the caller names no number."""
        configs = get_config_list(config, count)
        if self.model is not None:
            for given in configs:
                given.setdefault("max_concurrency", self.model.generator.max_batch)
        return configs

    # ---- answers ----

    def _answer(self, reader: AnswerReader | None) -> Answer:
        return Answer(self.model_id or "lowbit", reader)

    def _result(self, completion: Completion, reader: AnswerReader | None) -> ChatResult:
        return ChatResult(generations=[self._answer(reader).whole(completion)])
