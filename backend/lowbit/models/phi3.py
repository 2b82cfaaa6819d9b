"""Phi-3 and Phi-4 (text): Llama's graph with fused projections, a window over all layers, and two sets of rope
frequencies.

Which set is used depends on the context a session reserves, not on how long it has become: keys are rotated once.
"""

from __future__ import annotations

from typing import Any

from lowbit.models._common import Config, llama_like
from lowbit.models._spec import Family


def family(config: dict[str, Any]) -> Family:
    """Returns the family of a config with model_type "phi3"."""
    c = Config(config)
    for name in ("rope_parameters", "rope_scaling"):
        settings = config.get(name) or {}
        kind = settings.get("rope_type", settings.get("type"))
        if kind == "yarn":  # a name some Phi-3 files use for longrope
            config = {**config, name: {**settings, "rope_type": "longrope"}}
    window = c.get("sliding_window", 0)
    return llama_like(
        Config(config), norm_eps=1e-5, fused=True, layer_window=(window,) * c.get("num_hidden_layers") if window else ()
    )
