"""What family files share: reading a config strictly, rotary tables, and the recipes of Llama-shaped layers.

A setting that a family file neither reads nor knows to be harmless must not pass silently: family files state with
`only` which values of such settings their graph covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowbit.models._rope import rope
from lowbit.models._spec import Family, ModelSpec, Part, Recipe

_MISSING = object()
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}


class Config:
    """A config.json read strictly: null counts as absent, errors name the family and the setting."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.family: str = data["model_type"]

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """Returns a setting; raises ValueError when it is absent and there is no default."""
        value = self.data.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise ValueError(f"the {self.family} config lacks {name}")
        return default

    def only(self, name: str, *allowed: Any) -> None:
        """Raises ValueError unless a setting is absent or one of `allowed`."""
        value = self.data.get(name)
        if value is not None and value not in allowed:
            raise ValueError(
                f"{self.family} with {name}={value!r} is not supported (only {' or '.join(map(repr, allowed))}); "
                "ask for it in an issue, or quantise the torch model with optimize_model"
            )

    def activation(self, name: str, default: str) -> str:
        """Returns the canonical name of an activation setting."""
        value = self.get(name, default)
        if value not in _ACTIVATIONS:
            raise ValueError(
                f"{self.family} with {name}={value!r} is not supported; known are {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[value]


def windows(config: Config, layers: int) -> tuple[int, ...]:
    """Returns the attention window of each layer of a Qwen-style config (use_sliding_window, layer_types or
    max_window_layers)."""
    window = config.get("sliding_window", 0) if config.get("use_sliding_window", False) else 0
    if not window:
        return ()
    first = config.get("max_window_layers", 28)
    types = config.get("layer_types", ["sliding_attention" if i >= first else "full_attention" for i in range(layers)])
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown or len(types) != layers:
        raise ValueError(
            f"{config.family} with layer_types {unknown or len(types)} for {layers} layers is not supported"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def vectors(name: str, source: str, *, bias: bool = False) -> list[Recipe]:
    """Returns the recipes of a norm: its weight and, if it has one, its bias."""
    suffixes = ("weight", "bias") if bias else ("weight",)
    return [Recipe(f"{name}.{s}", (Part(f"{source}.{s}"),), "vector") for s in suffixes]


def linear(name: str, *sources: str, bias: bool = False, transpose: bool = False, **options: Any) -> list[Recipe]:
    """Returns the recipes of a linear layer whose rows are the rows of `sources` one after the other."""
    recipes = [Recipe(f"{name}.weight", tuple(Part(f"{s}.weight", transpose=transpose) for s in sources), **options)]
    if bias:
        interleave = options.get("interleave", False)
        recipes.append(Recipe(f"{name}.bias", tuple(Part(f"{s}.bias") for s in sources), "vector", interleave))
    return recipes


def ends(config: Config, embedding: str, norm: str, *, norm_bias: bool = False, tied: bool) -> list[Recipe]:
    """Returns the recipes of embedding, final norm and, unless tied, head."""
    recipes = linear("embedding", embedding, kind="embedding")
    recipes += vectors("final_norm", norm, bias=norm_bias)
    return recipes if tied else recipes + linear("head", "lm_head", kind="head")


def llama_like(
    config: Config,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    norm_eps: float = 1e-6,
    tied: bool = False,
    fused: bool = False,
    layer_window: tuple[int, ...] = (),
    layer_recipes: Callable[[int], list[Recipe]] = lambda i: [],
) -> Family:
    """Returns a family with Llama's graph: RMS norms before attention and a gated MLP, rotary positions, grouped
    queries.

    head_dim, kv_heads, norm_eps and tied are what the family assumes where the config says nothing; fused: the
    checkpoint stores qkv_proj and gate_up_proj; layer_recipes: further tensors of layer i.
    """
    hidden, layers, heads = (config.get(n) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    head_dim = config.get("head_dim", head_dim or hidden // heads)
    tied = config.get("tie_word_embeddings", tied)
    table = rope(config.data, head_dim)
    spec = ModelSpec(
        family=config.family,
        vocab_size=config.get("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=config.get("num_key_value_heads", kv_heads or heads),
        head_dim=head_dim,
        ffn_size=config.get("intermediate_size"),
        context=config.get("max_position_embeddings"),
        norm_eps=config.get("rms_norm_eps", norm_eps),
        ropes=(table,),
        layer_rope=(0,) * layers,
        attention_scale=head_dim**-0.5,
        layer_window=layer_window,
        activation=config.activation("hidden_act", "silu"),
        tied_head=tied,
    )
    recipes = ends(config, "embed_tokens", "norm", tied=tied)
    for i in range(layers):
        here, there = f"layers.{i}", f"layers.{i}"
        attention, mlp = f"{there}.self_attn", f"{there}.mlp"
        qkv = ["qkv_proj"] if fused else ["q_proj", "k_proj", "v_proj"]
        gate_up = ["gate_up_proj"] if fused else ["gate_proj", "up_proj"]
        recipes += vectors(f"{here}.attention_norm", f"{there}.input_layernorm")
        recipes += linear(f"{here}.qkv", *(f"{attention}.{n}" for n in qkv), bias=qkv_bias)
        recipes += linear(f"{here}.o", f"{attention}.o_proj", bias=o_bias)
        recipes += vectors(f"{here}.ffn_norm", f"{there}.post_attention_layernorm")
        recipes += linear(f"{here}.gate_up", *(f"{mlp}.{n}" for n in gate_up), bias=mlp_bias, interleave=True)
        recipes += linear(f"{here}.down", f"{mlp}.down_proj", bias=mlp_bias)
        recipes += layer_recipes(i)
    return Family(spec, tuple(recipes), ("model.", ""))
