"""IpexLLM: a low-bit text model as a LangChain LLM, with the constructors and arguments of langchain-community's class.

Translates types: LangChain's prompts, callbacks and results to and from `lowbit.TextModel`. Loads, tokenises and stops
nothing itself. What the predecessor did wrong is not kept: the prompt is never part of the answer, nothing is printed,
`stop` works in every mode, a failed load raises its cause, and no argument is changed in place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LLM
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, model_validator

import lowbit
from langchain_lowbit._arguments import log_ignored, split_fields, split_model_kwargs
from lowbit import chat
from lowbit.sampling import GenerationOptions, merge
from lowbit.text import Completion, Delta, TextModel

DEFAULT_MODEL_ID = "gpt2"


class IpexLLM(LLM):
    """A Hugging Face model in 3 to 8 bits, run in process.

    Build it with `from_model_id` (hub id, Hugging Face folder or low-bit folder) or `from_model_id_low_bit` (low-bit
    folder), or around a loaded model: `IpexLLM(model=lowbit.load(...))`.

    Generation options (`temperature`, `max_new_tokens`, `max_length`, `top_p`, `seed`, `stop`, `logprobs`, ...) come
    from `model_kwargs`, and per call from `invoke(..., max_new_tokens=64)` or `bind(...)`. `temperature=0` is greedy;
    `max_length` counts the prompt too, as in transformers. A result's `generation_info` holds `finish_reason`,
    `token_usage` and, when asked for, `logprobs`; `llm_output` the sum.

        from langchain_core.prompts import PromptTemplate
        from langchain_lowbit import IpexLLM

        llm = IpexLLM.from_model_id("Qwen/Qwen2.5-0.5B-Instruct", {"temperature": 0, "max_length": 64})
        chain = PromptTemplate.from_template("USER: {question}\\nASSISTANT:") | llm
        for text in chain.stream({"question": "What is AI?"}):
            print(text, end="")
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: str = DEFAULT_MODEL_ID
    """Hub id or folder the model came from."""
    model_kwargs: dict[str, Any] | None = None
    """Options for loading and generation, without `device`, `trust_remote_code` and `token`."""
    model: Any = Field(default=None, exclude=True, repr=False)
    """The `lowbit.TextModel`; `llm.model.save_low_bit(path)` writes a complete low-bit folder."""
    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """The model's tokenizer."""
    streaming: bool = True
    """Whether `invoke` of one prompt tells callbacks each delta (`on_llm_new_token`). Changes no result and prints
    nothing; `stream` and `astream` stream in either case."""
    apply_chat_template: bool = False
    """Whether a prompt is the user's message in the model's chat template, instead of the text to be continued."""

    # ---- building ----

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        model_kwargs: dict[str, Any] | None = None,
        *,
        tokenizer_id: str | None = None,
        load_in_4bit: bool = True,
        load_in_low_bit: str | None = None,
        **kwargs: Any,
    ) -> IpexLLM:
        """Returns an LLM for a model that is quantised while it loads; a low-bit folder is opened as it was saved.

        model_id: hub id or folder. model_kwargs: options for loading (`trust_remote_code`, `revision`, `device`,
        `threads`, `modules_to_not_convert`, ...) and for generation (`temperature`, `max_length`, ...); the dict is
        not changed. tokenizer_id: where the tokenizer comes from, if not from model_id. load_in_low_bit: a format of
        `lowbit.formats`; without it load_in_4bit means sym_int4, and load_in_4bit=False no quantisation. kwargs:
        fields such as `streaming`, `callbacks`, `verbose`, `tags`, `metadata`, `cache`.

        Raises TypeError for an unknown argument, with the nearest name; ValueError or OSError with the cause when the
        model cannot be loaded.
        """
        low_bit = load_in_low_bit or ("sym_int4" if load_in_4bit else None)
        return cls._load(model_id, model_kwargs, kwargs, low_bit=low_bit, tokenizer_id=tokenizer_id)

    @classmethod
    def from_model_id_low_bit(
        cls,
        model_id: str,
        model_kwargs: dict[str, Any] | None = None,
        *,
        tokenizer_id: str | None = None,
        **kwargs: Any,
    ) -> IpexLLM:
        """Returns an LLM for a folder that `llm.model.save_low_bit` or `lowbit convert` wrote.

        The folder holds its tokenizer, so tokenizer_id is only for another one. The other arguments and the errors
        are those of `from_model_id`; ValueError when the folder is not a low-bit one.
        """
        return cls._load(model_id, model_kwargs, kwargs, tokenizer_id=tokenizer_id, saved_only=True)

    @classmethod
    def _load(
        cls,
        model_id: str,
        model_kwargs: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
        *,
        low_bit: str | None = "sym_int4",
        **loading: Any,
    ) -> IpexLLM:
        fields = split_fields(kwargs, cls.model_fields)
        options, generation = split_model_kwargs(model_kwargs)
        log_ignored(model_kwargs)
        GenerationOptions.resolve(generation)  # a bad value is told now, not after minutes of loading
        loading = {name: value for name, value in loading.items() if value is not None}
        model = lowbit.load(model_id, low_bit, **options, **loading)
        # As upstream keeps them, less what decides nothing about answers; a hub token must not reach traces and caches.
        kept = {k: v for k, v in (model_kwargs or {}).items() if k not in ("device", "trust_remote_code", "token")}
        return cls(model_id=model_id, model=model, tokenizer=model.tokenizer, model_kwargs=kept, **fields)

    @model_validator(mode="after")
    def _complete_from_model(self) -> IpexLLM:
        """`IpexLLM(model=...)` needs no second mention of what the model knows, and tells unknown options at once."""
        if self.model is not None:
            if not isinstance(self.model, TextModel):
                raise TypeError(f"model must be what lowbit.load returns, not a {type(self.model).__name__}")
            split_model_kwargs(self.model_kwargs)
            if self.tokenizer is None:
                self.tokenizer = self.model.tokenizer
            if "model_id" not in self.model_fields_set:
                self.model_id = self.model.model_id
        return self

    @model_validator(mode="after")
    def _set_lowbit_version(self) -> IpexLLM:
        """Adds lowbit's version to the metadata of traces, where this langchain-core collects versions."""
        if hasattr(self, "_add_version"):
            self._add_version("lowbit", lowbit.__version__)
        return self

    # ---- what it is ----

    @property
    def _llm_type(self) -> str:
        return "ipex-llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What the answer depends on; also the key of LangChain's LLM cache, hence format, tokenizer and device."""
        known: dict[str, Any] = {"model_id": self.model_id, "model_kwargs": self.model_kwargs}
        if self.model is not None:
            known |= {
                "tokenizer_id": self.model.provenance.get("tokenizer"),
                "apply_chat_template": self.apply_chat_template,
                "quantization": dict(self.model.quantization),
                "device": self.model.device,
                "compute": self.model.runtime.compute,
            }
        return known

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = {**(self.model_kwargs or {}), **kwargs}
        params = LangSmithParams(ls_provider="lowbit", ls_model_type="llm", ls_model_name=self.model_id)
        if options.get("temperature") is not None:
            params["ls_temperature"] = options["temperature"]
        if options.get("max_new_tokens") is not None:
            params["ls_max_tokens"] = options["max_new_tokens"]
        if stop:
            params["ls_stop"] = [stop] if isinstance(stop, str) else list(stop)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Returns the ids of a text by the model's own tokenizer (or by `custom_get_token_ids`)."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self._loaded.encode(text))

    # ---- generating: every method below is a fold over the model's deltas ----

    @property
    def _loaded(self) -> Any:
        if self.model is None:
            raise ValueError(
                f"{type(self).__name__} has no model: build it with {type(self).__name__}.from_model_id(...) "
                "or pass model=lowbit.load(...)"
            )
        return self.model

    def _options(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The options of one call: model_kwargs, over them the call's, over them LangChain's own `stop`."""
        _, defaults = split_model_kwargs(self.model_kwargs)
        return merge(defaults, kwargs, {"stop": stop})

    def _prompt(self, text: str) -> str | list[int]:
        if not self.apply_chat_template:
            return text
        return chat.encode(self._loaded.tokenizer, [{"role": "user", "content": text}])

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return self._generate([prompt], stop, run_manager, **kwargs).generations[0][0].text

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """One prompt with listening callbacks is streamed to them; several are decoded together as one batch."""
        if self._tells_tokens(prompts, run_manager):
            return self._result([_joined(list(self._stream(prompts[0], stop, run_manager, **kwargs)))])
        inputs = [self._prompt(prompt) for prompt in prompts]
        completions = self._loaded.generate(inputs, **self._options(stop, kwargs))
        return self._result([_generation(completion) for completion in completions])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self._tells_tokens(prompts, run_manager):
            chunks = [chunk async for chunk in self._astream(prompts[0], stop, run_manager, **kwargs)]
            return self._result([_joined(chunks)])
        inputs = [self._prompt(prompt) for prompt in prompts]
        completions = await self._loaded.agenerate(inputs, **self._options(stop, kwargs))
        return self._result([_generation(completion) for completion in completions])

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with closing(self._loaded.stream(self._prompt(prompt), **self._options(stop, kwargs))) as deltas:
            for delta in deltas:
                chunk = _chunk(delta)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async with aclosing(self._loaded.astream(self._prompt(prompt), **self._options(stop, kwargs))) as deltas:
            async for delta in deltas:
                chunk = _chunk(delta)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _tells_tokens(
        self, prompts: list[str], run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None
    ) -> bool:
        return self.streaming and len(prompts) == 1 and bool(run_manager and run_manager.handlers)

    def _result(self, generations: list[Generation]) -> LLMResult:
        usages = [(generation.generation_info or {})["token_usage"] for generation in generations]
        total = {name: sum(usage[name] for usage in usages) for name in _usage(0, 0)}
        return LLMResult(
            generations=[[generation] for generation in generations],
            llm_output={"token_usage": total, "model_name": self.model_id},
        )


BigdlLLM = IpexLLM  # langchain-community's older name of the same class


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _info(part: Delta | Completion) -> dict[str, Any]:
    """The generation_info of a delta or a completion, as plain data; finish reason and usage come with the end."""
    info: dict[str, Any] = {}
    if part.finish_reason is not None:
        info["finish_reason"] = part.finish_reason
        info["token_usage"] = _usage(part.prompt_tokens, part.completion_tokens)
    if part.logprobs is not None:
        info["logprobs"] = [
            {**asdict(entry), "alternatives": [list(other) for other in entry.alternatives]} for entry in part.logprobs
        ]
    return info


def _generation(completion: Completion) -> Generation:
    return Generation(text=completion.text, generation_info=_info(completion))


def _chunk(delta: Delta) -> GenerationChunk:
    return GenerationChunk(text=delta.text, generation_info=_info(delta) or None)


def _joined(chunks: list[GenerationChunk]) -> Generation:
    """One generation of a whole stream; in one pass, where adding chunk to chunk copies the text each time."""
    info: dict[str, Any] = {}
    logprobs: list[Any] = []
    for chunk in chunks:
        logprobs += (chunk.generation_info or {}).get("logprobs", ())
        info |= chunk.generation_info or {}
    if "logprobs" in info:
        info["logprobs"] = logprobs
    return Generation(text="".join(chunk.text for chunk in chunks), generation_info=info)
