"""Qwen 1.5, 2 and 2.5: Llama's graph with biases on q, k and v, and a window over the upper layers where it is
switched on."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, llama_like, windows
from lowbit.models._spec import Family


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "qwen2"."""
    c = Config(config)
    return llama_like(c, qkv_bias=True, layer_window=windows(c, c.get("num_hidden_layers")))
