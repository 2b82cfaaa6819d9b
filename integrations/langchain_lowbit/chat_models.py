"""ChatIpexLLM: a low-bit text model as a LangChain chat model.

Translates types: messages and answers to and from `lowbit.chat` and `lowbit.TextModel`. Prompts are made by the model's
own chat template, and an answer ends where the template ends one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from langchain_lowbit._messages import logprobs, template_messages, usage
from langchain_lowbit._model import LowBitModel
from lowbit import chat
from lowbit.sampling import merge
from lowbit.text import Completion, Delta

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
    def _identifying_params(self) -> dict[str, Any]:
        return {
            **self._identity(),
            **self._field_options(),
            "template": self.template,
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

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[list[int], dict[str, Any]]:
        """The prompt of a conversation and the options of its answer."""
        if "model" in kwargs:
            raise ValueError("a ChatIpexLLM has one loaded model: build another one instead of passing model=")
        template = kwargs.pop("template", self.template)
        variables = {**(self.template_kwargs or {}), **(kwargs.pop("template_kwargs", None) or {})}
        model = self._loaded
        prompt = chat.encode(model.tokenizer, template_messages(messages), template=template, **variables)
        return prompt, chat.answer_options(model, self._options(stop, kwargs), template)

    # ---- generating: every method below is a fold over the model's deltas ----

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt, options = self._request(messages, stop, kwargs)
        return self._result(self._loaded.generate(prompt, **options))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt, options = self._request(messages, stop, kwargs)
        return self._result(await self._loaded.agenerate(prompt, **options))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        prompt, options = self._request(messages, stop, kwargs)
        with closing(self._loaded.stream(prompt, **options)) as deltas:
            for delta in deltas:
                chunk = self._chunk(delta)
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
        prompt, options = self._request(messages, stop, kwargs)
        async with aclosing(self._loaded.astream(prompt, **options)) as deltas:
            async for delta in deltas:
                chunk = self._chunk(delta)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # ---- answers ----

    def _info(self, part: Delta | Completion) -> dict[str, Any]:
        """What becomes an answer's response_metadata; finish reason and name come with the end."""
        info: dict[str, Any] = {}
        if part.finish_reason is not None:
            info = {
                "finish_reason": part.finish_reason,
                "model_name": self.model_id or "lowbit",
                "model_provider": "lowbit",
            }
        if part.logprobs is not None:
            info["logprobs"] = logprobs(part.logprobs)
        return info

    def _result(self, completion: Completion) -> ChatResult:
        message = AIMessage(content=completion.text, usage_metadata=usage(completion))
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=self._info(completion))])

    def _chunk(self, delta: Delta) -> ChatGenerationChunk:
        ended = delta.finish_reason is not None
        message = AIMessageChunk(
            content=delta.text,
            usage_metadata=usage(delta) if ended else None,
            chunk_position="last" if ended else None,
        )
        return ChatGenerationChunk(message=message, generation_info=self._info(delta) or None)
