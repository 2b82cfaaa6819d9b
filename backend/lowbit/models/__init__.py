"""Model families: which graph a config describes and where its weights stand. One file per `model_type`, found by its
name.

Owns the look-up and the error for families without a file. Refuses weights, files and torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from lowbit.models._spec import EncoderSpec, Family, ModelSpec, Part, Recipe, Rope

__all__ = ["EncoderSpec", "Family", "ModelSpec", "Part", "Recipe", "Rope", "families", "family"]

_HYPHENATED = {"xlm_roberta": "xlm-roberta"}  # a module name cannot have the hyphen that its model_type has


def families() -> list[str]:
    """Returns the supported values of `model_type`, sorted."""
    return sorted(_model_types())


def _model_types() -> dict[str, str]:
    """Returns module names by `model_type`."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return {_HYPHENATED.get(name, name): name for name in names}


def family(config: dict[str, Any]) -> Family:
    """Returns the graph and weight recipes of a Hugging Face config (the parsed config.json).

    Raises ValueError for a config without `model_type`, for a family that has no file here, and for settings that the
    family's graph cannot express; the message says which and what to do.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(
            "the config has no model_type, so its family is unknown; is this the config.json of a language model?"
        )
    modules = _model_types()
    if model_type not in modules:
        raise ValueError(
            f"model family {model_type!r} is not supported yet; supported are {', '.join(sorted(modules))}. "
            "Add a file for it (see 'a model family' in CONTRIBUTING.md), ask for it in an issue, or quantise the "
            "torch model with optimize_model"
        )
    return importlib.import_module(f"{__name__}.{modules[model_type]}").family(config)
