"""The native engine behind generation: a loaded model's decoder, its thread pool and its KV caches."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.runtime import pool

logger = logging.getLogger(__name__)


class NativeEngine:
    """Computes logits with the native decoder (the protocol `generate.Engine`). Weights are shared and immutable."""

    def __init__(self, loaded: Any, runtime: Any) -> None:
        spec = loaded.spec
        self.spec = spec
        self.vocab_size = spec.vocab_size
        self.context = _context(loaded, runtime.context)
        self._kv_dtype = runtime.kv_dtype
        self._pool = pool(runtime.threads)
        # The decoder views the arrays of `loaded`; the binding keeps them alive.
        self._decoder = ops.decoder(spec.to_dict(), loaded.tensors, runtime.compute, runtime.tier)
        # A rotary table for long contexts changes every position, so a sequence that stays short gets a short cache.
        self._capacities = sorted({r.long_from for r in spec.ropes if 0 < r.long_from < self.context} | {self.context})

    def capacity(self, tokens: int) -> int:
        """Returns the capacity of the cache for a sequence of up to that many tokens."""
        return next(c for c in self._capacities if c >= tokens)

    def new_cache(self, capacity: int) -> Any:
        """Returns an empty cache; its memory is reserved at once and touched as it fills."""
        spec = self.spec
        return ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, capacity, self._kv_dtype)

    def forward(self, parts: list[tuple[Any, np.ndarray, bool]]) -> np.ndarray:
        """Appends tokens to caches and returns logits, float32 [rows, vocab_size]; calls from several threads queue."""
        return ops.forward(self._decoder, parts, self._pool)


def _context(loaded: Any, asked: int | None) -> int:
    """The longest sequence: the caller's wish, else the model's own limit. Learned positions cannot be exceeded."""
    own = loaded.spec.context
    if asked is None or asked <= own:
        return asked or own
    if "position_embedding.weight" in loaded.tensors:
        raise ValueError(
            f"context={asked} is more than the {own} positions this model has learned; ask for at most {own}"
        )
    logger.warning("context=%d is more than the %d tokens the model was made for; expect worse text beyond", asked, own)
    return asked
