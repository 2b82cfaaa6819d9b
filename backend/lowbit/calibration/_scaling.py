"""Which factors on a layer's inputs make rounding cheapest: searched (AWQ) or trained (TEQ).

Both minimise || X (Q(W s) / s - W)^T ||^2 over the factors s, X being a sample of the layer's inputs and Q rounding to
the format. They differ in how: AWQ tries powers of the inputs' mean magnitude, TEQ follows the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Round = Callable[[np.ndarray], np.ndarray]  # a float32 weight -> the values it has after quantising

AWQ_STEPS = 20
TEQ_STEPS, TEQ_RATE = 60, 0.02  # Adam on log s
_SMALLEST = 1e-4


def _loss(weight: np.ndarray, sample: np.ndarray, factors: np.ndarray, rounded: Round) -> float:
    difference = rounded(weight * factors) / factors - weight
    return float(np.square(sample @ difference.T).mean(dtype=np.float64))


def awq(
    weight: np.ndarray, sample: np.ndarray, magnitudes: np.ndarray, columns: np.ndarray, rounded: Round
) -> np.ndarray:
    """Returns factors, float32 [free], by activation-aware search (Lin et al., AWQ, arXiv:2306.00978, section 3.2).

    weight [out, k]; sample [n, k] of inputs; magnitudes [k], mean |x|; columns [k]: the factor of each column. Factors
    are m^a, normalised to sqrt(max * min) = 1, a from 0 (no scaling) to below 1 in AWQ_STEPS steps, m the mean over
    columns that share a factor.
    """
    shared = np.bincount(columns, magnitudes) / np.bincount(columns)
    shared = np.maximum(shared, shared.max() * _SMALLEST if shared.max() else 1.0)
    best, least = np.ones(len(shared), np.float32), np.inf
    for step in range(AWQ_STEPS):
        factors = shared ** (step / AWQ_STEPS)
        factors = (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
        loss = _loss(weight, sample, factors[columns], rounded)
        if loss < least:
            best, least = factors, loss
    return best


def teq(
    weight: np.ndarray, sample: np.ndarray, columns: np.ndarray, group_size: int, has_min: bool, rounded: Round
) -> np.ndarray:
    """Returns factors, float32 [free], by trained equivalent transformation (Cheng et al., TEQ, arXiv:2310.10944).

    Gradient descent through the rounding with the straight-through estimator. With D = Q(W s) / s - W and G = D X^T X
    the loss ||X D^T||^2 changes with log s_j by -2 sum_o G_oj D_oj, and each group's scale passes
    T = 2 sum_(j in group) G_oj D_oj on to the columns that set it: the one of largest magnitude or, in formats with a
    minimum, the highest and the lowest in proportion to their shares of the span. Every layer is trained on its own
    output, where the paper trains all on the model's.
    """
    rows, k = weight.shape
    group = group_size or k
    edges = np.arange(0, k, group)
    log_factors = np.zeros(int(columns.max()) + 1)
    first, second = np.zeros_like(log_factors), np.zeros_like(log_factors)
    best, least = np.ones(len(log_factors), np.float32), np.inf
    for step in range(1, TEQ_STEPS + 2):
        factors = np.exp(log_factors).astype(np.float32)
        scaled = weight * factors[columns]
        difference = rounded(scaled) / factors[columns] - weight
        error = sample @ difference.T
        loss = float(np.square(error).mean(dtype=np.float64))
        if loss < least:
            best, least = factors, loss
        if step > TEQ_STEPS:
            break
        product = (error.T @ sample) * difference  # [rows, k]
        by_column = -2 * product.sum(0, dtype=np.float64)
        passed = 2 * np.add.reduceat(product, edges, axis=1)  # [rows, groups]
        for n, start in enumerate(edges):
            part = scaled[:, start : start + group]
            for column, share in _setters(part, has_min):
                np.add.at(by_column, start + column, passed[:, n] * share)
        gradient = np.bincount(columns, by_column) / (rows * len(sample))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = TEQ_RATE * (1 - (step - 1) / TEQ_STEPS)
        log_factors -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-12)
    return best


def _setters(part: np.ndarray, has_min: bool) -> list[tuple[np.ndarray, np.ndarray | float]]:
    """Returns (column per row, share of the scale it sets) for the columns that set a group's scale."""
    if not has_min:
        return [(np.abs(part).argmax(1), 1.0)]
    row = np.arange(len(part))
    high, low = part.argmax(1), part.argmin(1)
    span = np.maximum(part[row, high] - part[row, low], 1e-30)
    return [(high, part[row, high] / span), (low, -part[row, low] / span)]
