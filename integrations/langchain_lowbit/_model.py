"""What the LLM and the chat class share: the constructors, the loaded model, its options and its identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from langchain_core.language_models.base import LangSmithParams
from pydantic import BaseModel, ConfigDict, Field, model_validator

import lowbit
from langchain_lowbit._arguments import log_ignored, split_fields, split_model_kwargs
from lowbit.sampling import GenerationOptions, merge
from lowbit.text import TextModel

DEFAULT_MODEL_ID = "gpt2"


class LowBitModel(BaseModel):
    """Fields and constructors of a LangChain class around one `lowbit.TextModel`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: str = DEFAULT_MODEL_ID
    """Hub id or folder the model came from."""
    model_kwargs: dict[str, Any] | None = None
    """Options for loading and generation, without `device`, `trust_remote_code` and `token`."""
    model: Any = Field(default=None, exclude=True, repr=False)
    """The `lowbit.TextModel`; `llm.model.save_low_bit(path)` writes a complete low-bit folder. At construction also
    another object of this package that has one: the weights are shared."""
    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """The model's tokenizer."""

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
    ) -> Self:
        """Returns an object for a model that is quantised while it loads; a low-bit folder is opened as it was saved.

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
    ) -> Self:
        """Returns an object for a folder that `llm.model.save_low_bit` or `lowbit convert` wrote.

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
    ) -> Self:
        fields = split_fields(kwargs, cls.model_fields)
        options, generation = split_model_kwargs(model_kwargs)
        log_ignored(model_kwargs)
        GenerationOptions.resolve(generation)  # a bad value is told now, not after minutes of loading
        loading = {name: value for name, value in loading.items() if value is not None}
        model = lowbit.load(model_id, low_bit, **options, **loading)
        # As upstream keeps them, less what decides nothing about answers; a hub token must not reach traces and caches.
        dropped = ("device", "trust_remote_code", "token", "draft_model")
        kept = {k: v for k, v in (model_kwargs or {}).items() if k not in dropped}
        return cls(model_id=model_id, model=model, tokenizer=model.tokenizer, model_kwargs=kept, **fields)

    @model_validator(mode="after")
    def _complete_from_model(self) -> Self:
        """`IpexLLM(model=...)` needs no second mention of what the model knows, and tells unknown options at once."""
        if self.model is not None:
            if isinstance(self.model, LowBitModel):
                self._adopt(self.model)
            if not isinstance(self.model, TextModel):
                raise TypeError(f"model must be what lowbit.load returns, not a {type(self.model).__name__}")
            split_model_kwargs(self.model_kwargs)
            if self.tokenizer is None:
                self.tokenizer = self.model.tokenizer
            if "model_id" not in self.model_fields_set:
                self.model_id = self.model.model_id
        return self

    def _adopt(self, other: LowBitModel) -> None:
        """Takes over another object's model, and what was said about it there and not here."""
        for name in ("model_id", "model_kwargs", "tokenizer"):
            if name not in self.model_fields_set:
                setattr(self, name, getattr(other, name))
        self.model = other.model

    @model_validator(mode="after")
    def _set_lowbit_version(self) -> Self:
        """Adds lowbit's version to the metadata of traces, where this langchain-core collects versions."""
        if hasattr(self, "_add_version"):
            self._add_version("lowbit", lowbit.__version__)
        return self

    # ---- what it is and what it does with a call ----

    @property
    def _loaded(self) -> Any:
        if self.model is None:
            raise ValueError(
                f"{type(self).__name__} has no model: build it with {type(self).__name__}.from_model_id(...) "
                "or pass model=lowbit.load(...)"
            )
        return self.model

    def _defaults(self) -> dict[str, Any]:
        """The generation options that hold for every call."""
        return split_model_kwargs(self.model_kwargs)[1]

    def _options(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The options of one call: the object's, over them the call's, over them LangChain's own `stop`."""
        return merge(self._defaults(), kwargs, {"stop": stop})

    def _identity(self) -> dict[str, Any]:
        """What the answer depends on; also the key of LangChain's LLM cache, hence format, tokenizer and device."""
        known: dict[str, Any] = {"model_id": self.model_id, "model_kwargs": self.model_kwargs}
        if self.model is not None:
            known |= {
                "tokenizer_id": self.model.provenance.get("tokenizer"),
                "quantization": dict(self.model.quantization),
                "device": self.model.device,
                "precision": self.model.runtime.precision,
            }
        return known

    def _tracing_params(
        self, kind: Literal["llm", "chat"], stop: list[str] | None, options: Mapping[str, Any]
    ) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="lowbit", ls_model_type=kind, ls_model_name=options.get("model") or self.model_id
        )
        if options.get("temperature") is not None:
            params["ls_temperature"] = options["temperature"]
        limit = options.get("max_new_tokens") or options.get("max_tokens")
        if limit is not None:
            params["ls_max_tokens"] = limit
        stop = stop or options.get("stop")
        if stop:
            params["ls_stop"] = [stop] if isinstance(stop, str) else list(stop)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Returns the ids of a text by the model's own tokenizer (or by `custom_get_token_ids`)."""
        custom = getattr(self, "custom_get_token_ids", None)
        return custom(text) if custom is not None else list(self._loaded.encode(text))
