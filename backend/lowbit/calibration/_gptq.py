"""GPTQ: columns are rounded one after another, and those still to come make up for each one's error."""

from __future__ import annotations

import numpy as np

from lowbit import reference
from lowbit.calibration._refine import refine
from lowbit.formats import FLOAT, Choice
from lowbit.packed import PackedTensor, layout_of

BLOCK = 128  # columns whose errors are passed on to the rest of the matrix at once


def gptq(
    weight: np.ndarray,
    moments: np.ndarray,
    choice: Choice,
    group_size: int,
    *,
    damp: float = 0.01,
    act_order: bool = True,
    ratios: tuple[float, ...] = (1.0,),
    sweeps: int = 0,
) -> PackedTensor:
    """Returns a float32 matrix [rows, k] quantised by GPTQ (Frantar et al., arXiv:2210.17323, algorithm 1).

    moments: X^T X of the layer's inputs, [k, k]. damp: share of the mean of its diagonal that is added to it.
    act_order: columns are rounded in the order of falling diagonal, with the scales of the groups chosen beforehand;
    else in their own order, each group's scale chosen when it is reached. ratios: clip ratios each scale is chosen
    from. sweeps: how often scales and codes are fitted anew afterwards (_refine.py).
    """
    format = choice.format
    assert format.codes != FLOAT
    rows, k = weight.shape
    layout = layout_of(format, rows, k, group_size)
    multiplier = reference.scale_multiplier(format, float(np.abs(weight).max(initial=0)))
    diagonal = np.diag(moments).astype(np.float64)
    inverse, order, added = _inverse_factor(moments.astype(np.float64), damp, act_order)
    w = weight[:, order].astype(np.float32)
    codes = np.full((rows, layout.k_padded), reference.zero_code(format), np.uint8)
    groups = layout.k_padded // layout.group_size
    scales, minima = np.zeros((rows, groups), np.float16), np.zeros((rows, groups), np.float16)

    def choose_scales(columns: np.ndarray, g: int, count: np.ndarray | None) -> None:
        _, s, m = reference.choose(columns, format, 0, multiplier, choice.full_range, ratios, count)
        scales[:, g], minima[:, g] = s[:, 0], m[:, 0]

    spans = [(g, slice(g * layout.group_size, min(k, (g + 1) * layout.group_size))) for g in range(groups)]
    spans = [(g, span) for g, span in spans if span.start < k]
    if act_order:
        for g, span in spans:
            choose_scales(np.ascontiguousarray(weight[:, span]), g, diagonal[span])
    for start in range(0, k, BLOCK):
        stop = min(k, start + BLOCK)
        errors = np.zeros((rows, stop - start), np.float32)
        for j in range(start, stop):
            column = int(order[j])
            g = column // layout.group_size
            if not act_order and column % layout.group_size == 0:
                ahead = w[:, j : min(k, j + layout.group_size)].copy()
                if j + ahead.shape[1] > stop:  # what the block has not passed on to them yet
                    ahead[:, stop - j :] -= errors[:, : j - start] @ inverse[start:j, stop : j + ahead.shape[1]]
                choose_scales(ahead, g, diagonal[j : j + ahead.shape[1]])
            s, base = (x[:, g].astype(np.float32) * np.float32(multiplier) for x in (scales, minima))
            codes[:, column] = reference.encode(w[:, j], s, base, format, choice.full_range)
            error = (w[:, j] - reference.decode(codes[:, column], s, base, format)) / inverse[j, j]
            w[:, j + 1 : stop] -= np.outer(error, inverse[j, j + 1 : stop])
            errors[:, j - start] = error
        w[:, stop:] -= errors @ inverse[start:stop, stop:]
    if sweeps and diagonal.any():
        damped = moments + added * np.eye(k)
        refine(weight, damped, choice, layout.group_size, multiplier, codes[:, :k], scales, minima, sweeps)
    own = -(-k // layout.group_size)  # the others are padding
    return PackedTensor.from_codes(format, group_size, codes[:, :k], scales[:, :own], minima[:, :own], multiplier)


def _inverse_factor(moments: np.ndarray, damp: float, act_order: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns (the upper Cholesky factor of the damped inverse, float32 [k, k]; the order of columns it is for; what
    was added to the diagonal)."""
    k = len(moments)
    diagonal = np.diag(moments)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(k)
    moments = moments[np.ix_(order, order)]
    dead = np.diag(moments) == 0
    moments[dead, dead] = 1
    mean = float(diagonal.mean()) or 1.0
    while True:
        try:
            lower = np.linalg.inv(np.linalg.cholesky(moments + damp * mean * np.eye(k)))
            return np.linalg.cholesky(lower.T @ lower).T.astype(np.float32), order, damp * mean
        except np.linalg.LinAlgError:  # too few calibration tokens for this width
            damp = max(10 * damp, 1e-6)
