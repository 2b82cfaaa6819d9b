"""Sorts the arguments of old scripts: what loads a model, what runs it, what generates, and what means nothing here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from lowbit.options import option_names
from lowbit.runtime import nearest
from lowbit.sampling import ALIASES, NEUTRAL, OPTION_NAMES

logger = logging.getLogger(__name__)

# Arguments of from_pretrained that scripts pass along and that change nothing here, with the reason.
NO_EFFECT = {
    "torch_dtype": "weights are quantised from the type they are stored in",
    "dtype": "weights are quantised from the type they are stored in",
    "low_cpu_mem_usage": "loading always streams tensor by tensor",
    "device_map": "use device",
    "optimize_model": "there is one engine, and it is the optimised one",
    "cpu_embedding": "embeddings are on the CPU",
    "attn_implementation": "there is one implementation of attention",
    "use_safetensors": "both kinds of files are read",
    "padding_side": "batches are not padded",
}
# Arguments that are known, but belong beside model_kwargs.
_BESIDE = frozenset(
    {"load_in_4bit", "load_in_low_bit", "tokenizer_id", "streaming", "apply_chat_template", "callbacks"}
)
_GENERATION = frozenset({*OPTION_NAMES, *ALIASES, *NEUTRAL})


def _load_names() -> set[str]:
    runtime, loading = option_names()
    return (runtime | loading) - {"saved_only"}  # which of the two constructors was called says that


def split_model_kwargs(model_kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (options for `lowbit.load`, generation options) of a model_kwargs; changes nothing in place.

    Raises TypeError for a name nobody knows, with the nearest one that somebody does.
    """
    loading: dict[str, Any] = {}
    generation: dict[str, Any] = {}
    load_names = _load_names() - _BESIDE
    for name, value in (model_kwargs or {}).items():
        if name in _GENERATION:
            generation[name] = value
        elif name in load_names:
            loading[name] = value
        elif name in _BESIDE:
            raise TypeError(f"{name!r} is not an option of model_kwargs: pass {name}=... beside it")
        elif name not in NO_EFFECT:
            known = {*_GENERATION, *load_names, *NO_EFFECT}
            raise TypeError(f"unknown option {name!r} in model_kwargs{nearest(name, sorted(known))}")
    return loading, generation


def log_ignored(model_kwargs: Mapping[str, Any] | None) -> None:
    """Logs which options of a model_kwargs change nothing, and why."""
    for name in model_kwargs or {}:
        if name in NO_EFFECT:
            logger.info("model_kwargs[%r] has no effect: %s", name, NO_EFFECT[name])


def split_fields(kwargs: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Returns the keyword arguments that are fields of the class; TypeError for others, saying where they belong."""
    fields = set(fields) - {"model", "tokenizer", "model_id", "model_kwargs"}
    for name in kwargs:
        if name in fields:
            continue
        if name in _GENERATION | _load_names():
            raise TypeError(f"{name!r} belongs in model_kwargs: model_kwargs={{{name!r}: ...}}")
        known = sorted({*fields, "tokenizer_id", "load_in_4bit", "load_in_low_bit", "model_kwargs"})
        raise TypeError(f"unknown argument {name!r}{nearest(name, known)} Others go into model_kwargs.")
    return dict(kwargs)
