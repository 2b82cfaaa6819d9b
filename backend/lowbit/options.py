"""Sorts keyword arguments: of `lowbit.load` into the runtime's and loading's, of a script's `model_kwargs` further into
what generates and what means nothing here; refuses unknown names."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lowbit.runtime import nearest
from lowbit.sampling import ALIASES, NEUTRAL, OPTION_NAMES

logger = logging.getLogger(__name__)

GENERATION_NAMES = frozenset({*OPTION_NAMES, *ALIASES, *NEUTRAL})
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

# Loading options that say where files come from, not what becomes of them: a draft model takes them too.
ACCESS = ("cache_dir", "token", "local_files_only", "show_progress")


def option_names() -> tuple[set[str], set[str]]:
    """Returns the names of the runtime options and of the loading options of `lowbit.load`."""
    from lowbit.loading import load_model
    from lowbit.runtime import Runtime

    runtime_names = {f.name for f in dataclasses.fields(Runtime) if f.init}
    loading_names = {
        name for name, p in inspect.signature(load_model).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
    } - {"runtime", "task"}
    return runtime_names, loading_names


def load_names() -> set[str]:
    """Returns the options of `lowbit.load` that a `model_kwargs` may hold."""
    runtime, loading = option_names()
    return (runtime | loading | {"draft_model"}) - {"saved_only"}  # which of the two constructors was called says that


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (runtime options, loading options). Raises TypeError for a name neither knows, with the nearest one."""
    runtime_names, loading_names = option_names()
    for name in options:
        if name not in runtime_names | loading_names:
            near = difflib.get_close_matches(name, sorted(runtime_names | loading_names), n=1)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else f"; known: {', '.join(sorted(runtime_names | loading_names))}"
            )
            raise TypeError(f"unknown option {name!r}{hint}")
    runtime = {name: value for name, value in options.items() if name in runtime_names}
    return runtime, {name: value for name, value in options.items() if name not in runtime_names}


def split_model_kwargs(
    model_kwargs: Mapping[str, Any] | None, beside: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (options for `lowbit.load`, generation options) of a model_kwargs; changes nothing in place.

    beside: names of what is an argument of its own -> that argument. Raises TypeError for those, and for a name nobody
    knows, with the nearest one that somebody does.
    """
    loading: dict[str, Any] = {}
    generation: dict[str, Any] = {}
    loadable = load_names() - set(beside)
    for name, value in (model_kwargs or {}).items():
        if name in beside:
            raise TypeError(f"{name!r} is not an option of model_kwargs: pass {beside[name]}=... beside it")
        if name in GENERATION_NAMES:
            generation[name] = value
        elif name in loadable:
            loading[name] = value
        elif name not in NO_EFFECT:
            known = {*GENERATION_NAMES, *loadable, *NO_EFFECT}
            raise TypeError(f"unknown option {name!r} in model_kwargs{nearest(name, sorted(known))}")
    return loading, generation


def log_ignored(model_kwargs: Mapping[str, Any] | None) -> None:
    """Logs which options of a model_kwargs change nothing, and why."""
    for name in model_kwargs or {}:
        if name in NO_EFFECT:
            logger.info("model_kwargs[%r] has no effect: %s", name, NO_EFFECT[name])
