"""The native engines: a loaded model's decoder with its KV caches, or its encoder, and the thread pool they run on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.models._spec import ModelSpec
from lowbit.precision import outlier_matrices
from lowbit.runtime import pool

logger = logging.getLogger(__name__)

# (token, head) rows that the native attention takes together (kQueryRows in attention.cpp): a part of more tokens sums
# over its keys in another order than single steps do.
QUERY_ROWS = 32


class NativeEngine:
    """Computes logits with the native decoder (the protocol `generate.Engine`). Weights are shared and immutable."""

    def __init__(self, loaded: Any, runtime: Any, outliers: Sequence[str] | None = None) -> None:
        """outliers: matrices that compute on bf16 activations, not int8 (None: as `loaded` was measured)."""
        spec = loaded.spec
        self.spec = spec
        self.vocab_size = spec.vocab_size
        self.context = context_of(loaded, runtime.context)
        self._kv_dtype = runtime.kv_dtype
        self._pool = pool(runtime.threads)
        # The decoder views the arrays of `loaded`; the binding keeps them alive.
        if outliers is None:
            outliers = outlier_matrices(loaded.activation_errors, runtime.precision)
        self._decoder = ops.decoder(spec.to_dict(), loaded.tensors, runtime.compute, runtime.tier, outliers)
        self._capacities = capacities_of(spec, self.context)
        self.exact_tokens = max(1, min(8, QUERY_ROWS * spec.kv_heads // spec.heads))
        self.token_bytes: int = self.new_cache(1).bytes_per_position

    def capacity(self, tokens: int) -> int:
        """Returns the capacity of the cache for a sequence of up to that many tokens."""
        return next(c for c in self._capacities if c >= tokens)

    def new_cache(self, capacity: int) -> Any:
        """Returns an empty cache, which takes memory as it fills."""
        spec = self.spec
        return ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, capacity, self._kv_dtype)

    def kv_bytes(self, caches: Sequence[Any]) -> int:
        """Returns the bytes that caches hold together, shared memory counted once."""
        return ops.kv_bytes(caches)

    def forward(self, parts: list[tuple[Any, np.ndarray, bool]]) -> np.ndarray:
        """Appends tokens to caches and returns logits, float32 [rows, vocab_size]; calls from several threads queue."""
        return ops.forward(self._decoder, parts, self._pool)

    def hidden_states(self, parts: list[tuple[Any, np.ndarray, bool]]) -> np.ndarray:
        """Appends tokens to caches and returns last hidden states, float32 [rows, hidden_size], as `forward` logits."""
        return ops.decoder_hidden_states(self._decoder, parts, self._pool)


def context_of(loaded: Any, asked: int | None) -> int:
    """Returns the longest sequence in tokens: the caller's wish, else the model's own limit.

    Raises ValueError for more than a model with learned positions has; for others, more is allowed with a warning.
    """
    own: int = loaded.spec.context
    if asked is None or asked <= own:
        return asked or own
    if "position_embedding.weight" in loaded.tensors:
        raise ValueError(
            f"context={asked} is more than the {own} positions this model has learned; ask for at most {own}"
        )
    logger.warning("context=%d is more than the %d tokens the model was made for; expect worse text beyond", asked, own)
    return asked


def capacities_of(spec: ModelSpec, context: int) -> list[int]:
    """Returns the capacities of caches, smallest first.

    A rotary table for long contexts changes every position, so a sequence that stays short is to have a short cache.
    """
    return sorted({rope.long_from for rope in spec.ropes if 0 < rope.long_from < context} | {context})


class EncoderEngine:
    """Turns token ids into vectors or scores with the native encoder. Calls from several threads queue."""

    def __init__(self, loaded: Any, runtime: Any) -> None:
        self.spec = loaded.spec
        self._pool = pool(runtime.threads)
        outliers = outlier_matrices(loaded.activation_errors, runtime.precision)
        self._encoder = ops.encoder(self.spec.to_dict(), loaded.tensors, runtime.compute, runtime.tier, outliers)

    def embed(self, texts: Sequence[np.ndarray], poolings: tuple[str, ...]) -> np.ndarray:
        """Returns float32 [texts, len(poolings) * hidden] for int32 ids, at least one text."""
        return ops.embed(self._encoder, *_packed(texts), None, poolings, self._pool)

    def classify(self, texts: Sequence[np.ndarray], types: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the logits of the classification head, float32 [texts, labels]; types: int32, one per token."""
        return ops.classify(self._encoder, *_packed(texts), np.concatenate(types), self._pool)


class DecoderEmbedder:
    """Turns token ids into vectors with the native decoder: the hidden state of the last token."""

    POOLINGS = ("last",)

    def __init__(self, loaded: Any, runtime: Any) -> None:
        self.spec = loaded.spec
        if "head.weight" not in loaded.tensors:  # hidden states read none, but the decoder wants to know of one
            loaded = replace(loaded, spec=replace(loaded.spec, tied_head=True))
        self._engine = NativeEngine(loaded, runtime)

    def embed(self, texts: Sequence[np.ndarray], poolings: tuple[str, ...]) -> np.ndarray:
        """Returns float32 [texts, hidden] for int32 ids, at least one text; poolings is ("last",)."""
        engine = self._engine
        return engine.hidden_states([(engine.new_cache(len(ids)), ids, False) for ids in texts])


def _packed(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(texts), np.cumsum([len(t) for t in texts], dtype=np.int64)
