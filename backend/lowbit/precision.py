"""Which matrices compute on int8 activations, and which on bf16 ones because a few channels are too large for int8.

Owns the measure, taken once when a model is quantised, and the limit; what they decide holds for every pass, whatever
shares it. int8 compute gives 64 activations a common scale: where one of them is far larger than the others, the
others are rounded away. bf16 rounds each by itself. `precision="auto"` has it for such matrices, "fast" for none;
"high" rounds no activations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.models._spec import EncoderSpec, ModelSpec
from lowbit.packed import PackedTensor

logger = logging.getLogger(__name__)

# The error of a matrix's output above which it computes on bf16 activations. docs/quality.md has what models lose
# below it.
LIMIT = 0.0145

# Tokens that the measure reads: each counts alike, and channels that are too large are so at most tokens.
PROBE_TOKENS = 32


def measure(loaded: Any, runtime: Any) -> dict[str, float]:
    """Returns what int8 activations do to each matrix of a model, by name ("layers.0.down", "head").

    A number is the root mean square, over tokens, of the error of the matrix's output over that output; matrices whose
    format has no int8 compute have none. The tokens are spread over the vocabulary: text gives nearly the same, and
    needs a tokenizer. The same for any number of threads.
    """
    spec, tensors = loaded.spec, loaded.tensors
    if not any(isinstance(t, PackedTensor) and t.format.int8_compute for t in tensors.values()):
        return {}
    count = min(PROBE_TOKENS, spec.context)
    ids = (np.arange(1, count + 1) * 2654435761 % spec.vocab_size).astype(np.int32)  # Knuth's multiplier: well spread
    if isinstance(spec, EncoderSpec):
        encoder = ops.encoder(spec.to_dict(), tensors, "int8", runtime.tier)
        errors = ops.encoder_activation_errors(encoder, ids, np.array([count], np.int64), runtime.pool)
    else:
        assert isinstance(spec, ModelSpec)
        if "head.weight" not in tensors:  # an embedder has none
            spec = replace(spec, tied_head=True)
        decoder = ops.decoder(spec.to_dict(), tensors, "int8", runtime.tier)
        errors = ops.decoder_activation_errors(decoder, ids, runtime.pool)
    return {name: float(f"{error:.3g}") for name, error in errors.items()}


def outlier_matrices(errors: Mapping[str, float], precision: str) -> list[str]:
    """Returns the matrices that compute in bf16 where int8 is the compute type. errors: of `measure`, {} if unknown."""
    if precision != "auto":
        return []
    if not errors:
        logger.debug("no activation errors were measured for this model: every matrix computes on int8 activations")
    found = [name for name, error in errors.items() if error > LIMIT]
    if found:
        logger.info("%d of %d matrices compute in bf16, for outliers: %s", len(found), len(errors), ", ".join(found))
    return found
