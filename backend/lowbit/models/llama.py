"""Llama 1, 2 and 3, CodeLlama, Vicuna, and the many models published with Llama's graph."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, llama_like
from lowbit.models._spec import Family


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "llama"."""
    c = Config(config)
    bias = c.get("attention_bias", False)
    return llama_like(c, qkv_bias=bias, o_bias=bias, mlp_bias=c.get("mlp_bias", False))
