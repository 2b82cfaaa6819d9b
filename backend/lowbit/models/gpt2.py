"""GPT-2: layer norms, learned positions, biases everywhere, a plain MLP; matrices are stored [in_features,
out_features]."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, ends, linear, vectors
from lowbit.models._spec import Family, ModelSpec


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "gpt2"."""
    c = Config(config)
    c.only("add_cross_attention", False)
    hidden, layers, heads = c.get("n_embd", 768), c.get("n_layer", 12), c.get("n_head", 12)
    tied = c.get("tie_word_embeddings", True)
    head_dim = hidden // heads
    spec = ModelSpec(
        family=c.family,
        vocab_size=c.get("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ffn_size=c.get("n_inner", 4 * hidden),
        context=c.get("n_positions", 1024),
        norm="layer",
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        attention_scale=head_dim**-0.5 if c.get("scale_attn_weights", True) else 1.0,
        layer_attention_scale=tuple(1 / (i + 1) for i in range(layers))
        if c.get("scale_attn_by_inverse_layer_idx", False)
        else (),
        gated=False,
        activation=c.activation("activation_function", "gelu_new"),
        tied_head=tied,
    )
    recipes = ends(c, "wte", "ln_f", norm_bias=True, tied=tied)
    recipes += linear("position_embedding", "wpe", kind="embedding")
    for i in range(layers):
        here, there = f"layers.{i}", f"h.{i}"
        recipes += vectors(f"{here}.attention_norm", f"{there}.ln_1", bias=True)
        recipes += linear(f"{here}.qkv", f"{there}.attn.c_attn", bias=True, transpose=True)
        recipes += linear(f"{here}.o", f"{there}.attn.c_proj", bias=True, transpose=True)
        recipes += vectors(f"{here}.ffn_norm", f"{there}.ln_2", bias=True)
        recipes += linear(f"{here}.up", f"{there}.mlp.c_fc", bias=True, transpose=True)
        recipes += linear(f"{here}.down", f"{there}.mlp.c_proj", bias=True, transpose=True)
    return Family(spec, tuple(recipes), ("transformer.", ""))
