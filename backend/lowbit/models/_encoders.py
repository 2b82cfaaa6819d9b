"""What encoder family files share: the recipes of BERT-shaped layers and the settings of classification heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowbit.models._common import Config, linear, vectors
from lowbit.models._spec import EncoderSpec, Family, Part, Recipe


def labels(config: Config) -> int:
    """Returns how many labels the classification head has; 0 for a checkpoint without one."""
    architectures = config.get("architectures", [])
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        return 0
    named = config.get("id2label", None)
    return len(named) if named else config.get("num_labels", 2)


def table(name: str, source: str) -> Recipe:
    """Returns the recipe of a small matrix that stays in the checkpoint's float type."""
    return Recipe(f"{name}.weight", (Part(f"{source}.weight"),), "table")


def head(*, dense: str | None, out: str, activation: str = "tanh") -> tuple[list[Recipe], dict[str, Any]]:
    """Returns the recipes of a classification head with biases and the spec fields that go with it."""
    recipes = [] if dense is None else linear("head_dense", dense, kind="head", bias=True)
    return recipes + linear("head", out, kind="head", bias=True), {"head_activation": activation}


def bert_like(
    config: Config,
    *,
    qkv: tuple[str, str, str],
    o: str,
    attention_norm: str,
    up: str,
    down: str,
    ffn_norm: str,
    layer: str = "encoder.layer",
    classifier: Callable[[], tuple[list[Recipe], dict[str, Any]]],
    prefixes: tuple[str, ...],
    recipes: tuple[Recipe, ...] = (),
    names: dict[str, str] | None = None,
    positions_before: int = 0,
    **fields: Any,
) -> Family:
    """Returns a family with BERT's graph: learned positions, norms behind the blocks, a plain MLP, biases everywhere.

    The names of a layer's modules are relative to the layer. names: config settings where the family spells them
    otherwise. positions_before: rows of the table of positions that no text uses. recipes and fields: what the family
    has besides.
    """

    def setting(name: str) -> Any:
        return config.get((names or {}).get(name, name))

    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    config.only("add_cross_attention", False)
    hidden, layers, heads = (setting(n) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    count = labels(config)
    head_recipes, head_fields = classifier() if count else ([], {})
    spec = EncoderSpec(
        family=config.family,
        vocab_size=setting("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        head_dim=hidden // heads,
        ffn_size=setting("intermediate_size"),
        context=setting("max_position_embeddings") - positions_before,
        learned_position_offset=positions_before,
        norm_eps=config.get("layer_norm_eps", 1e-12),
        activation=config.activation((names or {}).get("hidden_act", "hidden_act"), "gelu"),
        labels=count,
        **head_fields,
        **fields,
    )
    made = linear("embedding", "embeddings.word_embeddings", kind="embedding")
    made.append(table("position_embedding", "embeddings.position_embeddings"))
    made += vectors("embedding_norm", "embeddings.LayerNorm", bias=True)
    made += recipes
    for i in range(layers):
        here, there = f"layers.{i}", f"{layer}.{i}"
        made += linear(f"{here}.qkv", *(f"{there}.{n}" for n in qkv), bias=True)
        made += linear(f"{here}.o", f"{there}.{o}", bias=True)
        made += vectors(f"{here}.attention_norm", f"{there}.{attention_norm}", bias=True)
        made += linear(f"{here}.up", f"{there}.{up}", bias=True)
        made += linear(f"{here}.down", f"{there}.{down}", bias=True)
        made += vectors(f"{here}.ffn_norm", f"{there}.{ffn_norm}", bias=True)
    return Family(spec, tuple(made + head_recipes), prefixes)


BERT_LAYER: dict[str, Any] = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


def roberta_like(config: Config, prefixes: tuple[str, ...]) -> Family:
    """Returns RoBERTa's family: BERT with positions that start behind the padding id and a head of two layers."""
    types = config.get("type_vocab_size", 1)
    return bert_like(
        config,
        **BERT_LAYER,
        prefixes=prefixes,
        classifier=lambda: head(dense="classifier.dense", out="classifier.out_proj"),
        recipes=(table("token_type_embedding", "embeddings.token_type_embeddings"),) if types else (),
        token_types=types,
        positions_before=config.get("pad_token_id", 1) + 1,
    )
