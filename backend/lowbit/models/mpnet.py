"""MPNet: BERT without token types, with a bias on attention scores by the distance of tokens (all-mpnet-base-v2)."""

from __future__ import annotations

import math
from typing import Any

from lowbit.models._common import Config
from lowbit.models._encoders import bert_like, head, table
from lowbit.models._spec import Family

_FAR = 128  # distances from here on share a bucket


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "mpnet"."""
    c = Config(config)
    buckets = c.get("relative_attention_num_buckets", 32)
    return bert_like(
        c,
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        o="attention.attn.o",
        attention_norm="attention.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        ffn_norm="output.LayerNorm",
        prefixes=("mpnet.", ""),
        classifier=lambda: head(dense="classifier.dense", out="classifier.out_proj"),
        recipes=(table("relative_bias", "encoder.relative_attention_bias"),),
        relative_buckets=tuple(_bucket(d, buckets) for d in range(-_FAR, _FAR + 1)),
        positions_before=2,  # the reference ignores the padding id of the config
    )


def _bucket(distance: int, buckets: int) -> int:
    """Returns the bucket of key - query = distance: half for each side, near ones exact, then logarithmic (T5)."""
    half = buckets // 2
    exact = half // 2
    side, n = (half, distance) if distance > 0 else (0, -distance)
    if n < exact:
        return side + n
    far = exact + int(math.log(n / exact) / math.log(_FAR / exact) * (half - exact))
    return side + min(far, half - 1)
