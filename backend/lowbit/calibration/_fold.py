"""Where a factor on the inputs of a linear layer can hide: in the weights of what produces them.

W x = (W diag(s)) (x / s): the columns of W are multiplied by s, and what makes x is divided by it, so the model
computes the same and needs nothing new at run time. Knows for every place of a ModelSpec whether that is possible and
how.
"""

from __future__ import annotations

import numpy as np

from lowbit.models._spec import ModelSpec

Weights = dict[str, np.ndarray]  # float32, by name within a layer ("qkv.weight", "attention_norm.bias", ...)
_NORM = {"qkv": "attention_norm", "gate_up": "ffn_norm", "up": "ffn_norm"}


class Fold:
    """One linear layer whose inputs can be scaled. `free` factors are chosen, `columns` [k] says which one a column
    takes: all heads that share a v head share its factors."""

    def __init__(self, spec: ModelSpec, name: str, k: int) -> None:
        self.spec, self.name = spec, name
        self.columns = np.arange(k)
        if name == "o":
            heads = np.arange(spec.heads) // (spec.heads // spec.kv_heads)
            self.columns = (heads[:, None] * spec.head_dim + np.arange(spec.head_dim)).ravel()

    @property
    def free(self) -> int:
        return int(self.columns.max()) + 1

    def apply(self, weights: Weights, factors: np.ndarray) -> None:
        """Multiplies the columns of the layer and divides its producer; factors is float32 [free], all above 0."""
        weights[f"{self.name}.weight"] = weights[f"{self.name}.weight"] * factors[self.columns]
        if self.name in _NORM:
            self._divide_norm(weights, _NORM[self.name], factors)
            return
        producer = "qkv" if self.name == "o" else "gate_up" if self.spec.gated else "up"
        rows = _producer_rows(self.spec, self.name)
        for part in ("weight", "bias"):
            if (array := weights.get(f"{producer}.{part}")) is not None:
                array = array.copy()
                array[rows] = (array[rows].T / factors).T
                weights[f"{producer}.{part}"] = array

    def _divide_norm(self, weights: Weights, norm: str, factors: np.ndarray) -> None:
        offset = np.float32(self.spec.norm_weight_offset)
        weights[f"{norm}.weight"] = (weights[f"{norm}.weight"] + offset) / factors - offset
        if f"{norm}.bias" in weights:
            weights[f"{norm}.bias"] = weights[f"{norm}.bias"] / factors


def _producer_rows(spec: ModelSpec, name: str) -> np.ndarray:
    """Returns the rows that produce the inputs of `o` (v in qkv) or `down` (up, in gate_up's alternating panels)."""
    if name == "o":
        first = (spec.heads + spec.kv_heads) * spec.head_dim
        return np.arange(first, first + spec.kv_heads * spec.head_dim)
    row = np.arange(spec.ffn_size)
    return row // 16 * 32 + 16 + row % 16 if spec.gated else row


def folds(spec: ModelSpec, shapes: dict[str, int]) -> list[Fold]:
    """Returns the layers whose inputs can be scaled, those that change another's rows first; shapes: name -> k."""
    before = spec.norm_place in ("pre", "sandwich") and spec.residual != "parallel_shared"
    possible = {
        "o": not spec.clip_qkv,
        "down": spec.gated or spec.activation == "relu",  # relu(x / s) = relu(x) / s; other activations bend
        "qkv": before,
        "gate_up": before,
        "up": before,
    }
    return [Fold(spec, name, shapes[name]) for name, able in possible.items() if able and name in shapes]
