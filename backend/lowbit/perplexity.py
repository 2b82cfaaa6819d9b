"""Perplexity: how well a model predicts a text, the measure by which formats are compared.

Owns the sum over sequences; knows neither files nor models: it is given token ids and a function that returns logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Logits = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Perplexity:
    """The mean negative log-likelihood (`loss`, nats per token) over `tokens` predictions; `value` = e^loss."""

    loss: float
    tokens: int

    @property
    def value(self) -> float:
        """Returns the perplexity."""
        return math.exp(self.loss)


def token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the negative log-likelihood of each target id, float64 [n] in nats, under logits [n, vocab].

    Raises ValueError when a logit is not finite.
    """
    rows = np.asarray(logits, np.float64)
    peak = rows.max(axis=1)
    normaliser = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
    losses: np.ndarray = normaliser - rows[np.arange(len(targets)), targets]
    if not np.isfinite(losses).all():
        raise ValueError("the model returned logits that are not finite; its weights are damaged or overflow")
    return losses


def windows(ids: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    """Yields consecutive windows of at most `length` ids of a long stream, each predicted without the one before."""
    for start in range(0, len(ids), length):
        window = ids[start : start + length]
        if len(window) > 1:
            yield window


def perplexity(logits: Logits, sequences: Iterable[Sequence[int]], max_tokens: int | None = None) -> Perplexity:
    """Returns the perplexity of `sequences` of token ids, each predicted on its own from its first id on.

    logits: returns float32 [len(ids), vocab] for a sequence of ids. max_tokens: stop after the sequence in which this
    many predictions are reached. Raises ValueError when there is nothing to predict or a logit is not finite.
    """
    total, count = 0.0, 0
    for ids in sequences:
        if len(ids) < 2:
            continue
        losses = token_losses(logits(ids)[:-1], np.asarray(ids[1:]))
        total += float(losses.sum())
        count += len(losses)
        if max_tokens is not None and count >= max_tokens:
            break
    if count == 0:
        raise ValueError("nothing to predict: every sequence is shorter than two tokens")
    return Perplexity(total / count, count)
