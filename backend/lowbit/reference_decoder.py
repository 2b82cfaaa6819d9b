"""A readable numpy interpretation of ModelSpec: the slow version that defines what the native decoder computes.

The native decoder is held to it in float64; calibration runs it in float32, layer by layer, because every linear
layer's inputs pass through one method here. One sequence, no cache: all positions from all tokens. `weights` maps
canonical names (models/_spec.py) to arrays; gate_up is in the panel order of the packed layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowbit.models import ModelSpec, Rope

Weights = dict[str, np.ndarray]
_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def norm(
    kind: str, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float, eps: float, offset: float
) -> np.ndarray:
    """Returns x normalised along its last axis."""
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (weight + offset) + bias


def rotate(rope: Rope, x: np.ndarray, positions: np.ndarray, long_context: bool) -> np.ndarray:
    """Returns x [tokens, heads, head_dim] with its first rope.dim dimensions rotated."""
    use_long = long_context and bool(rope.inv_freq_long)
    scale = rope.scale_long if use_long else rope.scale
    angles = positions[:, None] * np.array(rope.inv_freq_long if use_long else rope.inv_freq)
    cos, sin = ((f(angles)[:, None] * scale).astype(x.dtype) for f in (np.cos, np.sin))
    half = rope.dim // 2
    first = slice(0, half) if rope.kind == "half" else slice(0, rope.dim, 2)
    second = slice(half, rope.dim) if rope.kind == "half" else slice(1, rope.dim, 2)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def as_int8(x: np.ndarray) -> np.ndarray:
    """Returns x as int8 compute sees it: symmetric int8 per 64 values of a row."""
    rows, k = x.shape
    blocks = np.zeros((rows, -(-k // 64) * 64))
    blocks[:, :k] = x
    blocks = blocks.reshape(rows, -1, 64)
    scales = np.abs(blocks).max(-1, keepdims=True) / 127
    codes = np.rint(np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0))
    return (codes * scales).reshape(rows, -1)[:, :k]


def as_bf16(x: np.ndarray) -> np.ndarray:
    """Returns x as bf16 compute sees it: finite values rounded to the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(x.dtype)


def as_int8_vectors(x: np.ndarray) -> np.ndarray:
    """Returns x with each vector along the last axis rounded to int8, symmetric, with a scale of its own."""
    scales = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(np.divide(x, scales, out=np.zeros_like(x), where=scales > 0)) * scales


def key_balance(spec: ModelSpec, weights: Weights, layer: int) -> np.ndarray:
    """Returns the relative sizes [kv_heads, head_dim] of a layer's key channels, told by its weights: keys are divided
    by them before an int8 cache rounds them (native/src/key_balance.cpp)."""
    s, at = spec, f"layers.{layer}"
    first, channels = s.heads * s.head_dim, s.kv_heads * s.head_dim
    rows = weights[f"{at}.qkv.weight"][first : first + channels]
    offset = weights.get(f"{at}.qkv.bias", np.zeros(first + channels))[first : first + channels]
    gain: np.ndarray | float = 1.0
    if s.norm_place != "post":
        gain = weights[f"{at}.attention_norm.weight"] + s.norm_weight_offset
        if s.norm == "layer" and f"{at}.attention_norm.bias" in weights:
            offset = offset + rows @ weights[f"{at}.attention_norm.bias"]
    sizes = np.abs(offset) + 3 * np.sqrt(np.square(rows * gain).sum(1))
    if f"{at}.k_norm.weight" in weights:
        norm_weight = np.abs(weights[f"{at}.k_norm.weight"] + s.norm_weight_offset)
        sizes = sizes * (norm_weight if norm_weight.size == channels else np.tile(norm_weight, s.kv_heads))
    sizes = sizes.reshape(s.kv_heads, s.head_dim)
    if s.layer_rope and s.layer_rope[layer] >= 0:
        rope = s.ropes[s.layer_rope[layer]]
        a = np.arange(rope.dim // 2) * (1 if rope.kind == "half" else 2)
        b = a + (rope.dim // 2 if rope.kind == "half" else 1)
        sizes[:, a] = sizes[:, b] = np.hypot(sizes[:, a], sizes[:, b])
    return np.maximum(sizes / sizes.mean(1, keepdims=True), 1 / 16)


class Reference:
    """int8: inputs of linear layers are rounded as by int8 compute. kv_int8: keys and values are rounded as by an int8
    cache. dtype: of all other arithmetic."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        capacity: int | None = None,
        int8: bool = False,
        kv_int8: bool = False,
        dtype: type[np.floating] = np.float64,
    ) -> None:
        self.spec = spec
        self.int8 = int8
        self.kv_int8 = kv_int8
        self.dtype = dtype
        self.weights = {name: np.asarray(w, dtype) for name, w in weights.items()}
        self.capacity = capacity or spec.context

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """Returns the output [tokens, out] of a linear layer for its input [tokens, in]."""
        x = as_int8(x) if self.int8 else x
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        s = self.spec
        bias = self.weights.get(f"{name}.bias", 0.0) if s.norm == "layer" else 0.0
        return norm(s.norm, x, self.weights[f"{name}.weight"], bias, s.norm_eps, s.norm_weight_offset)

    def head_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """x [tokens, heads, head_dim]."""
        s, weight = self.spec, self.weights.get(f"{name}.weight")
        if weight is None:
            return x
        if s.qk_norm_whole:
            flat = norm(s.qk_norm, x.reshape(len(x), -1), weight, 0.0, s.norm_eps, s.norm_weight_offset)
            return flat.reshape(x.shape)
        if weight.size != s.head_dim:
            weight = weight.reshape(x.shape[1:])
        return norm(s.qk_norm, x, weight, 0.0, s.norm_eps, s.norm_weight_offset)

    def attention(self, i: int, x: np.ndarray) -> np.ndarray:
        s, n = self.spec, len(x)
        qkv = self.linear(f"layers.{i}.qkv", x)
        if s.clip_qkv:
            qkv = np.clip(qkv, -s.clip_qkv, s.clip_qkv)
        heads = qkv.reshape(n, s.heads + 2 * s.kv_heads, s.head_dim)
        q, k, v = np.split(heads, [s.heads, s.heads + s.kv_heads], axis=1)
        q, k = self.head_norm(f"layers.{i}.q_norm", q), self.head_norm(f"layers.{i}.k_norm", k)
        positions = np.arange(n)
        if s.layer_rope and s.layer_rope[i] >= 0:
            rope = s.ropes[s.layer_rope[i]]
            long_context = self.capacity > rope.long_from
            q, k = (rotate(rope, t, positions, long_context) for t in (q, k))
        if self.kv_int8:
            balance = key_balance(s, self.weights, i)
            k, v = as_int8_vectors(k / balance) * balance, as_int8_vectors(v)
        scale = np.full(n, s.attention_scale or 1 / math.sqrt(s.head_dim), self.dtype)
        if s.layer_attention_scale:
            scale *= s.layer_attention_scale[i]
        if s.attention_logn_from:
            scale *= np.maximum(1, np.log(positions + 1) / math.log(s.attention_logn_from)).astype(self.dtype)
        group = s.heads // s.kv_heads
        q, k, v = (t.swapaxes(0, 1) for t in (q * scale[:, None, None], *(np.repeat(t, group, axis=1) for t in (k, v))))
        scores = q @ k.swapaxes(1, 2)  # [heads, queries, keys]
        if s.attention_softcap:
            scores = s.attention_softcap * np.tanh(scores / s.attention_softcap)
        distance = positions[:, None] - positions[None, :]
        if s.alibi_slopes:
            scores = scores - np.array(s.alibi_slopes, self.dtype)[:, None, None] * distance
        seen = distance >= 0
        if s.layer_window and s.layer_window[i]:
            seen &= distance < s.layer_window[i]
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear(f"layers.{i}.o", (weights @ v).swapaxes(0, 1).reshape(n, -1))

    def ffn(self, i: int, x: np.ndarray) -> np.ndarray:
        s, f = self.spec, ACTIVATIONS[self.spec.activation]
        if not s.gated:
            return self.linear(f"layers.{i}.down", f(self.linear(f"layers.{i}.up", x)))
        panels = self.linear(f"layers.{i}.gate_up", x).reshape(len(x), -1, 2, 16)
        gate, up = (panels[:, :, half].reshape(len(x), -1)[:, : s.ffn_size] for half in (0, 1))
        return self.linear(f"layers.{i}.down", f(gate) * up)

    def layer(self, i: int, x: np.ndarray) -> np.ndarray:
        """Returns what leaves a layer, [tokens, hidden], for what enters it."""
        s, at = self.spec, f"layers.{i}"
        post = s.norm_place == "post"

        def before(name: str, x: np.ndarray) -> np.ndarray:
            return x if post else self.norm(f"{at}.{name}_norm", x)

        def added(name: str, x: np.ndarray, delta: np.ndarray) -> np.ndarray:
            if s.norm_place == "sandwich":
                delta = self.norm(f"{at}.{name}_post_norm", delta)
            x = x + s.residual_scale * delta
            return self.norm(f"{at}.{name}_norm", x) if post else x

        if s.residual == "sequential":
            x = added("attention", x, self.attention(i, before("attention", x)))
            return added("ffn", x, self.ffn(i, before("ffn", x)))
        entered = before("attention", x)
        attention = self.attention(i, entered)
        ffn = self.ffn(i, entered if s.residual == "parallel_shared" else before("ffn", x))
        return added("ffn", added("attention", x, attention), ffn)

    def embed(self, tokens: Sequence[int], rows: np.ndarray | None = None) -> np.ndarray:
        """Returns what enters the first layer, [tokens, hidden]; rows: of the embedding, for these tokens."""
        s, w = self.spec, self.weights
        x = w["embedding.weight"][list(tokens)] if rows is None else np.asarray(rows, self.dtype)
        if "embedding_in.weight" in w:
            x = self.linear("embedding_in", x)
        x = x * s.embedding_scale
        if "position_embedding.weight" in w:
            x = x + w["position_embedding.weight"][np.arange(len(tokens)) + s.learned_position_offset]
        if "embedding_norm.weight" in w:
            x = self.norm("embedding_norm", x)
        return x

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Returns logits [len(tokens), vocab]."""
        s, w = self.spec, self.weights
        x = self.embed(tokens)
        for i in range(s.layers):
            x = self.layer(i, x)
        if s.final_norm:
            x = self.norm("final_norm", x)
        if "head_in.weight" in w:
            x = self.linear("head_in", x)
        head = w["embedding.weight"] if s.tied_head else w["head.weight"]
        x = as_int8(x) if self.int8 else x
        logits = (x @ head.T + w.get("head.bias", 0.0)) * s.logit_scale
        return s.logit_softcap * np.tanh(logits / s.logit_softcap) if s.logit_softcap else logits
