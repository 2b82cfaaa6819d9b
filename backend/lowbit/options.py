"""Sorts the keyword arguments of `lowbit.load` into those of the runtime and of loading; refuses unknown names."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any


def option_names() -> tuple[set[str], set[str]]:
    """Returns the names of the runtime options and of the loading options of `lowbit.load`."""
    from lowbit.loading import load_model
    from lowbit.runtime import Runtime

    runtime_names = {f.name for f in dataclasses.fields(Runtime) if f.init}
    loading_names = {
        name for name, p in inspect.signature(load_model).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
    } - {"runtime", "task"}
    return runtime_names, loading_names


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
            raise TypeError(f"load() got an unknown option {name!r}{hint}")
    runtime = {name: value for name, value in options.items() if name in runtime_names}
    return runtime, {name: value for name, value in options.items() if name not in runtime_names}
