"""Better scales and codes for a matrix that is rounded already: each group is fitted anew while the others stay.

GPTQ minimises || (W - Q) X ||^2 = tr((W - Q) H (W - Q)^T), H = X^T X, greedily: scales are chosen before it starts, and
a column never hears of those rounded after it. Here a group's scale (and minimum) moves to where the error is least for
its codes, a linear least-squares problem of one or two unknowns, then each of its columns is rounded to where the
errors of all others want it: coordinate descent, as QuantEase (Behdin et al., arXiv:2309.01885) has it for the codes.
No step makes the error larger: a new scale is taken only where, rounded to fp16, it makes it smaller.
"""

from __future__ import annotations

import numpy as np

from lowbit import reference
from lowbit.formats import CODEBOOK, Choice, Format

BLOCK = 128  # columns whose changes are passed on to the rest of their group at once


def refine(
    weight: np.ndarray,
    moments: np.ndarray,
    choice: Choice,
    group: int,
    multiplier: float,
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray,
    sweeps: int,
) -> None:
    """Improves codes uint8 [rows, k], scales and minima float16 [rows, groups] in place.

    weight: float32 [rows, k]. moments: X^T X of the inputs with its damping, [k, k], not all zero. group: columns of a
    group; multiplier: what stored scales and minima are divided by. sweeps: over all groups.
    """
    k = weight.shape[1]
    moments = (moments / (np.trace(moments) / k)).astype(np.float32)  # sums of many squares, brought near to 1
    stiff = np.maximum(np.diag(moments), np.finfo(np.float32).tiny)
    spans = [slice(start, min(k, start + group)) for start in range(0, k, group)]
    values = np.empty_like(weight, np.float32)
    for g, span in enumerate(spans):
        values[:, span] = reference.decode(codes[:, span], *_used(scales, minima, g, multiplier), choice.format)
    for _ in range(sweeps):
        residual = (weight - values) @ moments  # minus half of the error's gradient
        for g, span in enumerate(spans):
            within, before, part = moments[span, span], values[:, span].copy(), residual[:, span].copy()
            _fit(part, within, values[:, span], choice.format, multiplier, codes[:, span], scales[:, g], minima[:, g])
            scale, base = (x[:, 0] for x in _used(scales, minima, g, multiplier))
            for start in range(span.start, span.stop, BLOCK):
                stop = min(span.stop, start + BLOCK)
                ahead, held = part[:, start - span.start : stop - span.start].copy(), values[:, start:stop].copy()
                for j in range(start, stop):
                    at = j - start
                    wanted = values[:, j] + ahead[:, at] / stiff[j]
                    codes[:, j] = reference.encode(wanted, scale, base, choice.format, choice.full_range)
                    value = reference.decode(codes[:, j], scale, base, choice.format)
                    ahead[:, at + 1 :] -= np.outer(value - values[:, j], moments[j, j + 1 : stop])
                    values[:, j] = value
                part -= (values[:, start:stop] - held) @ moments[start:stop, span]
            residual -= (values[:, span] - before) @ moments[span]


def _used(scales: np.ndarray, minima: np.ndarray, g: int, multiplier: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns scales and minima of a group as decoding sees them, float32 [rows, 1]."""
    scale, base = (x[:, g : g + 1].astype(np.float32) * np.float32(multiplier) for x in (scales, minima))
    return scale, base


def _fit(
    residual: np.ndarray,
    within: np.ndarray,
    values: np.ndarray,
    format: Format,
    multiplier: float,
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray,
) -> None:
    """Moves a group's scales (and minima) to the least error for its codes, in place: [rows] each.

    A change d of the values changes the error by d within d^T - 2 d residual^T; residual and values follow.
    """
    levels = np.array(format.codebook, np.float32)[codes] if format.codes == CODEBOOK else codes.astype(np.float32)
    levels -= 0 if format.codes == CODEBOOK else np.float32(format.offset)
    curved = levels @ within
    pull, stiff = (levels * residual).sum(1), (levels * curved).sum(1)
    if format.has_min:
        flat, pull_flat = within.sum(1), residual.sum(1)
        stiff_flat, mixed = float(flat.sum()), levels @ flat
        det = stiff * stiff_flat - mixed * mixed
        good = det > 1e-6 * stiff * stiff_flat
        det = np.where(good, det, 1)
        step = np.where(good, (pull * stiff_flat - pull_flat * mixed) / det, 0)
        shift = np.where(good, (pull_flat * stiff - pull * mixed) / det, 0)
    else:
        step = np.where(stiff > 0, pull / np.where(stiff > 0, stiff, 1), 0)
        shift = np.zeros_like(step)
    moved = [_stored(old, d, multiplier) for old, d in ((scales, step), (minima, shift))]
    change = levels * moved[0][1][:, None] + moved[1][1][:, None]
    pushed = change @ within
    better = (change * (pushed - 2 * residual)).sum(1) < 0
    for old, (new, _) in zip((scales, minima), moved, strict=True):
        old[better] = new[better]
    residual -= np.where(better[:, None], pushed, 0)
    values += np.where(better[:, None], change, 0)


def _stored(old: np.ndarray, step: np.ndarray, multiplier: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (stored scales moved by `step`, float16; by how much they really moved, float32)."""
    by = np.float32(multiplier)
    with np.errstate(over="ignore"):
        new = (old.astype(np.float32) + step.astype(np.float32) / by).astype(np.float16)
    new = np.where(np.isfinite(new), new, old)
    return new, (new.astype(np.float32) - old.astype(np.float32)) * by
