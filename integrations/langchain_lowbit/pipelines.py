"""WeightOnlyQuantPipeline: langchain-community's class over ITREX, on this engine.

A text-generation model of a known family runs on the native decoder (no torch); encoder-decoder models, other families
and pipelines of the caller's run in transformers with low-bit layers (extra `torch`). What the predecessor did wrong is
not kept: `stop` and the options of a call count, `stream` streams, nothing is cut by character counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LLM
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field, model_validator

from langchain_lowbit._arguments import split_model_kwargs
from langchain_lowbit._torch_model import TorchModel, of_pipeline
from langchain_lowbit.llms import IpexLLM
from lowbit import checkpoint, models
from lowbit.loading import config_of
from lowbit.woq import WeightOnlyQuantConfig

DEFAULT_MODEL_ID = "google/flan-t5-large"
DEFAULT_TASK = "text2text-generation"
VALID_TASKS = ("text2text-generation", "text-generation", "summarization")


class WeightOnlyQuantPipeline(LLM):
    """A model in low bits for text generation, text-to-text generation or summarisation.

        from langchain_lowbit import WeightOnlyQuantPipeline
        from lowbit.woq import WeightOnlyQuantConfig

        llm = WeightOnlyQuantPipeline.from_model_id(
            model_id="google/flan-t5-large", task="text2text-generation",
            quantization_config=WeightOnlyQuantConfig(weight_dtype="nf4"), pipeline_kwargs={"max_new_tokens": 10},
        )
        llm.invoke("Who was the first person on the moon?")

    Or around a pipeline of transformers: `WeightOnlyQuantPipeline(pipeline=transformers.pipeline(...))`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    pipeline: Any = Field(default=None, exclude=True, repr=False)
    """What runs: an `IpexLLM`, a low-bit transformers model with its tokenizer, or the caller's pipeline."""
    model_id: str = DEFAULT_MODEL_ID
    model_kwargs: dict[str, Any] | None = None
    """Options for loading."""
    pipeline_kwargs: dict[str, Any] | None = None
    """Options for generation."""

    @model_validator(mode="after")
    def _adopt_pipeline(self) -> WeightOnlyQuantPipeline:
        if self.pipeline is not None and not isinstance(self.pipeline, (IpexLLM, TorchModel)):
            self.pipeline = of_pipeline(self.pipeline)
            self.pipeline.defaults |= self.pipeline_kwargs or {}
            if "model_id" not in self.model_fields_set:
                self.model_id = getattr(self.pipeline.model, "name_or_path", None) or self.model_id
        return self

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        task: str,
        device: int | None = -1,
        device_map: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        pipeline_kwargs: dict[str, Any] | None = None,
        load_in_4bit: bool | None = False,
        load_in_8bit: bool | None = False,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> WeightOnlyQuantPipeline:
        """Returns an object for a model that is quantised while it loads.

        task: one of VALID_TASKS. load_in_4bit is nf4 in groups of 32 and load_in_8bit int8, as ITREX had it on CPUs;
        quantization_config: a WeightOnlyQuantConfig, or the class for its defaults; with none of them the model keeps
        its floats. model_kwargs: options of `lowbit.load` (and, for models that run in transformers, of its
        from_pretrained); pipeline_kwargs: options for generation. Raises ValueError for an unknown task, a GPU device,
        or device and device_map together; ImportError naming the extra where torch is needed and absent.
        """
        if task not in VALID_TASKS:
            raise ValueError(f"task {task!r} is not supported; the tasks are {', '.join(VALID_TASKS)}")
        _check_device(device, device_map)
        config = _config(quantization_config, load_in_4bit, load_in_8bit)
        loading, generation = dict(model_kwargs or {}), dict(pipeline_kwargs or {})
        runs: Any
        if task == "text-generation" and _is_native(model_id, loading):
            runs = _native(model_id, config, loading, generation)
        else:
            runs = _transformers(model_id, task, config, loading, generation)
        return cls(pipeline=runs, model_id=model_id, model_kwargs=loading, pipeline_kwargs=generation, **kwargs)

    @property
    def _llm_type(self) -> str:
        return "weight_only_quantization"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        inner = self.pipeline._identifying_params if isinstance(self.pipeline, IpexLLM) else {}
        own = {"model_id": self.model_id, "model_kwargs": self.model_kwargs, "pipeline_kwargs": self.pipeline_kwargs}
        return {**inner, **own}

    # ---- generating ----

    def _runs(self) -> Any:
        if self.pipeline is None:
            raise ValueError(
                "WeightOnlyQuantPipeline has no model: build it with from_model_id(...) or pass pipeline=..."
            )
        return self.pipeline

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return "".join(chunk.text for chunk in self._stream(prompt, stop, run_manager, **kwargs))

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Several prompts of a native model are decoded together."""
        runs = self._runs()
        if isinstance(runs, IpexLLM):
            return runs._generate(prompts, stop, run_manager, **kwargs)
        return super()._generate(prompts, stop, run_manager, **kwargs)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        runs = self._runs()
        if isinstance(runs, IpexLLM):
            return await runs._agenerate(prompts, stop, run_manager, **kwargs)
        sync = run_manager.get_sync() if run_manager else None
        return await run_in_executor(None, self._generate, prompts, stop, sync, **kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        runs = self._runs()
        if isinstance(runs, IpexLLM):
            yield from runs._stream(prompt, stop, run_manager, **kwargs)
            return
        with closing(runs.stream(prompt, stop, kwargs)) as pieces:
            for text in pieces:
                chunk = GenerationChunk(text=text)
                if run_manager:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        runs = self._runs()
        if isinstance(runs, IpexLLM):
            chunks: Any = runs._astream(prompt, stop, run_manager, **kwargs)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
            return
        async for chunk in super()._astream(prompt, stop, run_manager, **kwargs):
            yield chunk


_PLACES = ("revision", "cache_dir", "token", "local_files_only")


def _given(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _check_device(device: int | None, device_map: str | None) -> None:
    if device is not None and device >= 0:
        if device_map is not None:
            raise ValueError("give device or device_map, not both")
        raise ValueError(f"device={device} asks for an Intel GPU, which this version does not run on; use device=-1")
    if device_map not in (None, "cpu", "auto"):
        raise ValueError(f"device_map={device_map!r} is not supported; models run on the CPU: 'cpu' or 'auto'")


def _config(config: Any, load_in_4bit: bool | None, load_in_8bit: bool | None) -> Any:
    if config is not None:
        return config() if isinstance(config, type) else config
    if load_in_4bit:
        return WeightOnlyQuantConfig(weight_dtype="nf4")
    return WeightOnlyQuantConfig(weight_dtype="int8") if load_in_8bit else None


def _is_native(model_id: str, loading: dict[str, Any]) -> bool:
    """Returns whether the native decoder runs a model."""
    config = config_of(model_id, **_given(loading, *_PLACES))
    if checkpoint.is_low_bit(config):
        return True
    try:
        family = models.family(config)
    except ValueError:
        return False
    return isinstance(family.spec, models.ModelSpec)


def _native(model_id: str, config: Any, loading: dict[str, Any], generation: dict[str, Any]) -> IpexLLM:
    import lowbit

    options, of_generation = split_model_kwargs(loading)
    settings = {"low_bit": None} if config is None else config.load_options()
    model = lowbit.load(model_id, **{**settings, **options})
    return IpexLLM(model=model, model_id=model_id, model_kwargs={**of_generation, **generation})


def _transformers(
    model_id: str, task: str, config: Any, loading: dict[str, Any], generation: dict[str, Any]
) -> TorchModel:
    try:
        import transformers

        from lowbit.transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    except ImportError as error:
        raise ImportError(
            f"{model_id} for {task} runs in transformers, which needs torch: pip install 'lowbit[torch]' ({error})"
        ) from error
    auto = AutoModelForCausalLM if task == "text-generation" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(model_id, quantization_config=config, **loading)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_id, **_given(loading, *_PLACES, "trust_remote_code"))
    settings = getattr(model.config, "task_specific_params", None) or {}
    prefix = settings.get("summarization", {}).get("prefix", "") if task == "summarization" else ""
    return TorchModel(model, tokenizer, generation, prefix)
