"""RoBERTa: all-distilroberta, all-roberta-large."""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config
from lowbit.models._encoders import roberta_like
from lowbit.models._spec import Family


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "roberta"."""
    return roberta_like(Config(config), ("roberta.", ""))
