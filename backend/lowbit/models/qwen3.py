"""Qwen 3 (dense): Llama's graph with RMS norms on the heads of q and k, and head_dim set apart from the hidden size."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, llama_like, vectors, windows
from lowbit.models._spec import Family, Recipe


def _head_norms(i: int) -> list[Recipe]:
    here = f"layers.{i}"
    return vectors(f"{here}.q_norm", f"{here}.self_attn.q_norm") + vectors(f"{here}.k_norm", f"{here}.self_attn.k_norm")


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "qwen3"."""
    c = Config(config)
    bias = c.get("attention_bias", False)
    window = windows(c, c.get("num_hidden_layers"))
    return llama_like(c, qkv_bias=bias, o_bias=bias, head_dim=128, layer_window=window, layer_recipes=_head_norms)
