"""IpexLLM: a low-bit text model as a LangChain LLM, with the constructors and arguments of langchain-community's class.

Translates types: LangChain's prompts, callbacks and results to and from `lowbit.TextModel`. Loads, tokenises and stops
nothing itself. What the predecessor did wrong is not kept: the prompt is never part of the answer, nothing is printed,
`stop` works in every mode, a failed load raises its cause, and no argument is changed in place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LLM
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from langchain_lowbit._model import LowBitModel
from lowbit import chat
from lowbit.grammar import check_finished
from lowbit.sampling import is_constrained
from lowbit.text import Completion, Delta


class IpexLLM(LowBitModel, LLM):
    """A Hugging Face model in 3 to 8 bits, run in process.

    Build it with `from_model_id` (hub id, Hugging Face folder or low-bit folder) or `from_model_id_low_bit` (low-bit
    folder), or around a loaded model: `IpexLLM(model=lowbit.load(...))`.

    Generation options (`temperature`, `max_new_tokens`, `max_length`, `top_p`, `seed`, `stop`, `logprobs`, ...) come
    from `model_kwargs`, and per call from `invoke(..., max_new_tokens=64)` or `bind(...)`. `temperature=0` is greedy;
    `max_length` counts the prompt too, as in transformers. `json_schema`, `regex`, `choice` and `grammar` constrain the
    text (extra `grammar`); an answer that could not be completed is an error. A result's `generation_info` holds
    `finish_reason`, `token_usage` and, when asked for, `logprobs`; `llm_output` the sum.

        from langchain_core.prompts import PromptTemplate
        from langchain_lowbit import IpexLLM

        llm = IpexLLM.from_model_id("Qwen/Qwen2.5-0.5B-Instruct", {"temperature": 0, "max_length": 64})
        chain = PromptTemplate.from_template("USER: {question}\\nASSISTANT:") | llm
        for text in chain.stream({"question": "What is AI?"}):
            print(text, end="")
    """

    model_config = LowBitModel.model_config  # of several bases, the last one's would count

    streaming: bool = True
    """Whether `invoke` of one prompt tells callbacks each delta (`on_llm_new_token`). Changes no result and prints
    nothing; `stream` and `astream` stream in either case."""
    apply_chat_template: bool = False
    """Whether a prompt is the user's message in the model's chat template, instead of the text to be continued; the
    answer then ends where the template ends a turn."""
    template: str | None = None
    """The chat template to apply, for a model without one: the name of a format (`vicuna`, `llama-2`, ...) or a jinja2
    template, as for `ChatIpexLLM`."""

    # ---- what it is ----

    @property
    def _llm_type(self) -> str:
        return "ipex-llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        templates = {"apply_chat_template": self.apply_chat_template, "template": self.template}
        return self._identity() | ({} if self.model is None else templates)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._tracing_params("llm", stop, {**(self.model_kwargs or {}), **kwargs})

    # ---- generating: every method below is a fold over the model's deltas ----

    def _inputs(
        self, prompts: Sequence[str], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[list[str | list[int]], dict[str, Any]]:
        """What the model continues for some prompts, and the options of all of them."""
        options = self._options(stop, kwargs)
        if not (self.apply_chat_template or self.template):
            return [*prompts], options
        turns = [
            chat.turn(self._loaded, [{"role": "user", "content": prompt}], options, template=self.template)
            for prompt in prompts
        ]
        return [turn.prompt for turn in turns], turns[0].options if turns else options

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
        inputs, options = self._inputs(prompts, stop, kwargs)
        completions = self._loaded.generate(inputs, **options)
        return self._result([_generation(completion, is_constrained(options)) for completion in completions])

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
        inputs, options = self._inputs(prompts, stop, kwargs)
        completions = await self._loaded.agenerate(inputs, **options)
        return self._result([_generation(completion, is_constrained(options)) for completion in completions])

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        (start,), options = self._inputs([prompt], stop, kwargs)
        with closing(self._loaded.stream(start, **options)) as deltas:
            for delta in deltas:
                chunk = _chunk(delta, is_constrained(options))
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
        (start,), options = self._inputs([prompt], stop, kwargs)
        async with aclosing(self._loaded.astream(start, **options)) as deltas:
            async for delta in deltas:
                chunk = _chunk(delta, is_constrained(options))
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


def _generation(completion: Completion, constrained: bool) -> Generation:
    check_finished(completion.finish_reason, constrained)
    return Generation(text=completion.text, generation_info=_info(completion))


def _chunk(delta: Delta, constrained: bool) -> GenerationChunk:
    check_finished(delta.finish_reason or "stop", constrained)
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
