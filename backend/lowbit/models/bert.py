"""BERT: BGE, MiniLM, E5, GTE and the cross-encoders made of it."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config
from lowbit.models._encoders import BERT_LAYER, bert_like, head, table
from lowbit.models._spec import Family


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "bert"."""
    c = Config(config)
    return bert_like(
        c,
        **BERT_LAYER,
        prefixes=("bert.", ""),
        classifier=lambda: head(dense="pooler.dense", out="classifier"),
        recipes=(table("token_type_embedding", "embeddings.token_type_embeddings"),),
        token_types=c.get("type_vocab_size", 2),
    )
