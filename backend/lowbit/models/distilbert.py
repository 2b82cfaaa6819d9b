"""DistilBERT: BERT without token types; its head is a layer with ReLU."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config
from lowbit.models._encoders import bert_like, head
from lowbit.models._spec import Family

_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "distilbert"."""
    return bert_like(
        Config({**config, "layer_norm_eps": 1e-12}),  # the config has no setting
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        o="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        ffn_norm="output_layer_norm",
        layer="transformer.layer",
        prefixes=("distilbert.", ""),
        classifier=lambda: head(dense="pre_classifier", out="classifier", activation="relu"),
        names=_NAMES,
    )
