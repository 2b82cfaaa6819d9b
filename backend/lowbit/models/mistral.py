"""Mistral 7B and its descendants: Llama's graph with a window over all layers."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, llama_like
from lowbit.models._spec import Family


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "mistral"."""
    c = Config(config)
    # Absent and null differ here: upstream's default is a window of 4096, published files say null for "none".
    window = config.get("sliding_window", 4096) or 0
    return llama_like(c, kv_heads=8, layer_window=(window,) * c.get("num_hidden_layers") if window else ())
