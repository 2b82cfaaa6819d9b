"""Sorts the arguments of old LlamaIndex scripts: what loads the model, what generates, what means nothing here."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.prompts import BasePromptTemplate, PromptTemplate

from lowbit.options import log_ignored, split_model_kwargs
from lowbit.runtime import nearest

logger = logging.getLogger(__name__)

# What belongs beside model_kwargs -> the constructor's name of it.
_BESIDE = {
    "device": "device_map",
    "device_map": "device_map",
    "tokenizer_id": "tokenizer_name",
    "tokenizer_name": "tokenizer_name",
    "load_in_4bit": "load_in_4bit",
    "load_in_low_bit": "load_in_low_bit",
    "generate_kwargs": "generate_kwargs",
}
# Arguments of AutoTokenizer.from_pretrained that change nothing here, with the reason.
_TOKENIZER_NO_EFFECT = {
    "max_length": "a prompt is not cut; one that is longer than the context is an error",
    "model_max_length": "a prompt is not cut; one that is longer than the context is an error",
    "truncation": "a prompt is not cut; one that is longer than the context is an error",
    "padding": "batches are not padded",
    "padding_side": "batches are not padded",
    "trust_remote_code": "no code of a model is ever run",
    "use_fast": "there is one implementation",
    "legacy": "there is one implementation",
    "return_tensors": "token ids are no tensors here",
}


def loading_options(model_kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (options for `lowbit.load`, generation options) of a model_kwargs; changes nothing in place.

    Raises TypeError for a name nobody knows, with the nearest one.
    """
    log_ignored(model_kwargs)
    return split_model_kwargs(model_kwargs, _BESIDE)


def template_of(tokenizer_kwargs: Mapping[str, Any] | None) -> str | None:
    """Returns the chat template that tokenizer_kwargs asks for; TypeError for an option nobody knows."""
    for name in tokenizer_kwargs or {}:
        if name in _TOKENIZER_NO_EFFECT:
            logger.info("tokenizer_kwargs[%r] has no effect: %s", name, _TOKENIZER_NO_EFFECT[name])
        elif name != "chat_template":
            known = ["chat_template", *_TOKENIZER_NO_EFFECT]
            raise TypeError(
                f"unknown option {name!r} in tokenizer_kwargs{nearest(name, known)} A tokenizer is what its files say."
            )
    return (tokenizer_kwargs or {}).get("chat_template")


def other_tokenizer(name: Any, model_name: str) -> str | None:
    """Returns the hub id or folder to take a tokenizer from, None for the model's own; TypeError for another thing."""
    if name is not None and not isinstance(name, str):
        raise TypeError(
            f"tokenizer must be a hub id or a folder, not a {type(name).__name__}: lowbit reads the files itself"
        )
    return None if name == model_name else name or None


def prompt_template(prompt: str | BasePromptTemplate | None) -> BasePromptTemplate | None:
    """Returns a query wrapper as LlamaIndex wants it; a plain string has the place `{query_str}`."""
    return PromptTemplate(prompt) if isinstance(prompt, str) else prompt


def fitting(context_window: int, context: int, default: int) -> int:
    """Returns the context window that the model can hold; says so where it is less than somebody asked for."""
    if context_window > context:
        level = logging.INFO if context_window == default else logging.WARNING
        logger.log(level, "context_window=%d is lowered to %d, which is all the model holds", context_window, context)
    return min(context_window, context)


def with_signature_of(constructor: Callable[..., Any], *without: str) -> Callable[[Callable[..., Any]], Any]:
    """Returns a decorator: the function's signature, for help() and editors, is a constructor's less some arguments."""

    def decorate(function: Callable[..., Any]) -> Any:
        parameters = inspect.signature(constructor).parameters
        kept = [p for name, p in parameters.items() if name not in ("self", *without)]
        first = next(iter(inspect.signature(function).parameters.values()))
        function.__signature__ = inspect.Signature([first, *kept], return_annotation="IpexLLM")  # type: ignore[attr-defined]
        return function

    return decorate
