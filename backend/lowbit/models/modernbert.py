"""ModernBERT: norms before the blocks, rotary positions, gated MLPs, layers with a local view between global ones."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, linear, vectors
from lowbit.models._encoders import labels
from lowbit.models._rope import rope
from lowbit.models._spec import EncoderSpec, Family, Rope

_FULL, _LOCAL = "full_attention", "sliding_attention"


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "modernbert"."""
    c = Config(config)
    hidden, layers, heads = (c.get(n) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    every, count = c.get("global_attn_every_n_layers", 3), labels(c)
    kinds = c.get("layer_types", [_LOCAL if i % every else _FULL for i in range(layers)])
    if len(kinds) != layers or set(kinds) - {_FULL, _LOCAL}:
        raise ValueError(f"modernbert with layer_types {sorted(set(kinds))} for {layers} layers is not supported")
    reach = c.get("local_attention", 128) // 2
    attention_bias, mlp_bias, norm_bias = (c.get(n, False) for n in ("attention_bias", "mlp_bias", "norm_bias"))
    c.only("classifier_activation", "gelu")
    c.only("classifier_pooling", "cls", "mean")
    spec = EncoderSpec(
        family=c.family,
        vocab_size=c.get("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        head_dim=hidden // heads,
        ffn_size=c.get("intermediate_size"),
        context=c.get("max_position_embeddings"),
        norm_place="pre",
        norm_eps=c.get("norm_eps", 1e-5),
        final_norm=True,
        ropes=tuple(_rope(c, kind, hidden // heads) for kind in (_FULL, _LOCAL)),
        layer_rope=tuple(int(kind == _LOCAL) for kind in kinds),
        layer_reach=tuple(reach if kind == _LOCAL else 0 for kind in kinds),
        gated=True,
        activation=c.activation("hidden_activation", "gelu"),
        labels=count,
        head_pooling=c.get("classifier_pooling", "cls"),
        head_activation="gelu",
    )
    recipes = linear("embedding", "embeddings.tok_embeddings", kind="embedding")
    recipes += vectors("embedding_norm", "embeddings.norm", bias=norm_bias)
    for i in range(layers):
        at = f"layers.{i}"
        if i > 0:
            recipes += vectors(f"{at}.attention_norm", f"{at}.attn_norm", bias=norm_bias)
        recipes += linear(f"{at}.qkv", f"{at}.attn.Wqkv", bias=attention_bias)
        recipes += linear(f"{at}.o", f"{at}.attn.Wo", bias=attention_bias)
        recipes += vectors(f"{at}.ffn_norm", f"{at}.mlp_norm", bias=norm_bias)
        recipes += linear(f"{at}.gate_up", f"{at}.mlp.Wi", bias=mlp_bias, interleave=True)
        recipes += linear(f"{at}.down", f"{at}.mlp.Wo", bias=mlp_bias)
    recipes += vectors("final_norm", "final_norm", bias=norm_bias)
    if count:
        recipes += linear("head_dense", "head.dense", kind="head", bias=c.get("classifier_bias", False))
        recipes += vectors("head_norm", "head.norm", bias=norm_bias)
        recipes += linear("head", "classifier", kind="head", bias=True)
    return Family(spec, tuple(recipes), ("model.", ""))


def _rope(config: Config, kind: str, head_dim: int) -> Rope:
    """Returns the table of a kind of layer: rope_parameters by kind, or the settings of the first configs."""
    given = (config.get("rope_parameters", {}) or {}).get(kind)
    if given is None:
        name, default = ("global_rope_theta", 160000.0) if kind == _FULL else ("local_rope_theta", 10000.0)
        given = {"rope_type": "default", "rope_theta": config.get(name, default)}
    return rope({**config.data, "rope_parameters": given, "rope_scaling": None}, head_dim)
