"""Random weights for a spec, and decoders over them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.models import Family, ModelSpec
from lowbit.quantize import quantize


def interleaved(array: np.ndarray) -> np.ndarray:
    """Returns the two halves of the rows as alternating panels of 16, each half padded with zero rows."""
    halves = []
    for half in np.split(array, 2):
        padded = np.zeros((-(-len(half) // 16) * 16, *array.shape[1:]), array.dtype)
        padded[: len(half)] = half
        halves.append(padded.reshape(-1, 16, *array.shape[1:]))
    return np.stack(halves, axis=1).reshape(-1, *array.shape[1:])


def from_checkpoint(family: Family, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns canonical arrays made from a checkpoint's arrays by the family's recipes."""
    canonical = {}
    for recipe in family.located(weights):
        parts = []
        for part in recipe.parts:
            array = weights[part.source]
            array = array.T if part.transpose else array
            parts += [array] if part.rows is None else [array[a:b] for a, b in part.rows]
        array = np.concatenate(parts)
        canonical[recipe.name] = interleaved(array) if recipe.interleave else array
    return canonical


def random_weights(
    spec: ModelSpec, extra: dict[str, tuple[int, ...]] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns float32 weights for every tensor the spec needs; `extra` names optional ones with their shapes."""
    random = np.random.default_rng(seed)
    hidden, q = spec.hidden_size, spec.heads * spec.head_dim
    panels = -(-spec.ffn_size // 16) * 16
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (spec.vocab_size, hidden)}
    if spec.final_norm:
        shapes["final_norm.weight"] = (hidden,)
    if not spec.tied_head:
        shapes["head.weight"] = (spec.vocab_size, hidden)
    for i in range(spec.layers):
        at = f"layers.{i}"
        norms = ["attention_norm"]
        norms += ["ffn_norm"] if spec.residual != "parallel_shared" else []
        norms += ["attention_post_norm", "ffn_post_norm"] if spec.norm_place == "sandwich" else []
        shapes |= {f"{at}.{name}.weight": (hidden,) for name in norms}
        shapes[f"{at}.qkv.weight"] = (q + 2 * spec.kv_heads * spec.head_dim, hidden)
        shapes[f"{at}.o.weight"] = (hidden, q)
        up, rows = ("gate_up", 2 * panels) if spec.gated else ("up", spec.ffn_size)
        shapes[f"{at}.{up}.weight"] = (rows, hidden)
        shapes[f"{at}.down.weight"] = (hidden, spec.ffn_size)
    shapes |= extra or {}
    weights = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if "norm." in name:
            values = values * 0.3 + (0 if name.endswith("bias") else 1 - spec.norm_weight_offset)
        elif len(shape) == 2:
            values *= 2.0 / np.sqrt(shape[1]) if "embedding" not in name else 1.0
        weights[name] = values.astype(np.float32)
        if ".gate_up." in name:  # the rows behind ffn_size are padding
            panel = weights[name].reshape(panels // 16, 2, 16, *shape[1:])
            for row in range(spec.ffn_size, panels):
                panel[row // 16, :, row % 16] = 0
    return weights


def packed(weights: dict[str, np.ndarray], low_bit: str = "fp32", group_size: int | None = None) -> dict[str, Any]:
    """Returns the weights with matrices quantised."""
    return {n: quantize(w, low_bit, group_size) if w.ndim == 2 else w for n, w in weights.items()}


def decoder(spec: ModelSpec, tensors: dict[str, Any], tier: str = "scalar", compute: str = "fp32") -> Any:
    """Returns a native decoder over packed tensors and vectors."""
    return ops.decoder(spec.to_dict(), tensors, compute, tier)


def cache(spec: ModelSpec, capacity: int = 96, dtype: str = "fp32") -> Any:
    """Returns an empty KV cache for the spec."""
    return ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, capacity, dtype)


def run(model: Any, session: Any, tokens: Iterable[int], threads: int = 2, all_logits: bool = True) -> np.ndarray:
    """Returns the logits of one part."""
    return ops.forward(model, [(session, np.array(list(tokens), np.int32), all_logits)], ops.pool(threads))
