"""OPT, Galactica: layer norms, learned positions that start at 2, a plain MLP. The 350M model has its norms after the
blocks and words of another width than the hidden state."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, linear, vectors
from lowbit.models._spec import Family, ModelSpec


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "opt"."""
    c = Config(config)
    c.only("layer_norm_elementwise_affine", True)
    hidden, layers, heads = c.get("hidden_size"), c.get("num_hidden_layers"), c.get("num_attention_heads")
    pre = c.get("do_layer_norm_before", True)
    final_norm = pre and not c.get("_remove_final_layer_norm", False)
    bias = c.get("enable_bias", True)
    tied = c.get("tie_word_embeddings", True)
    spec = ModelSpec(
        family=c.family,
        vocab_size=c.get("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=c.get("ffn_dim"),
        context=c.get("max_position_embeddings"),
        norm="layer",
        norm_place="pre" if pre else "post",
        norm_eps=1e-5,  # torch.nn.LayerNorm's default; the config has no setting
        final_norm=final_norm,
        learned_position_offset=2,
        attention_scale=(hidden // heads) ** -0.5,
        gated=False,
        activation=c.activation("activation_function", "relu"),
        tied_head=tied,
    )
    recipes = linear("embedding", "embed_tokens", kind="embedding")
    recipes += linear("position_embedding", "embed_positions", kind="embedding")
    if c.get("word_embed_proj_dim", hidden) != hidden:
        recipes += linear("embedding_in", "project_in") + linear("head_in", "project_out")
    if final_norm:
        recipes += vectors("final_norm", "final_layer_norm", bias=True)
    if not tied:
        recipes += linear("head", "lm_head", kind="head")
    for i in range(layers):
        at = f"layers.{i}"
        recipes += vectors(f"{at}.attention_norm", f"{at}.self_attn_layer_norm", bias=True)
        recipes += linear(f"{at}.qkv", *(f"{at}.self_attn.{n}_proj" for n in "qkv"), bias=bias)
        recipes += linear(f"{at}.o", f"{at}.self_attn.out_proj", bias=bias)
        recipes += vectors(f"{at}.ffn_norm", f"{at}.final_layer_norm", bias=True)
        recipes += linear(f"{at}.up", f"{at}.fc1", bias=bias)
        recipes += linear(f"{at}.down", f"{at}.fc2", bias=bias)
    return Family(spec, tuple(recipes), ("model.decoder.", "decoder.", ""))
