"""Sorts the arguments of old LangChain scripts: what belongs in model_kwargs, and what beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lowbit import options
from lowbit.options import GENERATION_NAMES, NO_EFFECT, log_ignored
from lowbit.runtime import nearest

__all__ = ["NO_EFFECT", "log_ignored", "split_fields", "split_model_kwargs"]

# Arguments that are known, but belong beside model_kwargs.
_BESIDE = frozenset(
    {"load_in_4bit", "load_in_low_bit", "tokenizer_id", "streaming", "apply_chat_template", "callbacks"}
    | {"template", "template_kwargs"}
)


def split_model_kwargs(model_kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (options for `lowbit.load`, generation options) of a model_kwargs; changes nothing in place.

    Raises TypeError for a name nobody knows, with the nearest one that somebody does.
    """
    return options.split_model_kwargs(model_kwargs, {name: name for name in _BESIDE})


def split_fields(kwargs: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Returns the keyword arguments that are fields of the class; TypeError for others, saying where they belong."""
    fields = set(fields) - {"model", "tokenizer", "model_id", "model_kwargs"}
    for name in kwargs:
        if name in fields:
            continue
        if name in GENERATION_NAMES | options.load_names():
            raise TypeError(f"{name!r} belongs in model_kwargs: model_kwargs={{{name!r}: ...}}")
        known = sorted({*fields, "tokenizer_id", "load_in_4bit", "load_in_low_bit", "model_kwargs"})
        raise TypeError(f"unknown argument {name!r}{nearest(name, known)} Others go into model_kwargs.")
    return dict(kwargs)
