"""Which of two models predicts a text better, and by how much more than chance: differences on the same tokens.

Both models read the same sequences. A_w and B_w are the sums of a figure (negative log-likelihood, or divergence from
the original's predictions, in nats) over the n_w predictions of sequence w, for the two. The difference per token is

    d = sum_w (A_w - B_w) / N,    N = sum_w n_w

and its standard error, sequences being drawn independently while tokens of one sequence are not,

    e = sqrt(W / (W - 1) * sum_w (A_w - B_w - d n_w)^2) / N,    W sequences

(the linearised variance of a ratio of sums over clusters; Cochran, Sampling Techniques, section 6.3). Pairing takes out
what makes a sequence easy or hard for both: e is a small part of the standard error of either mean.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sums:
    """Sums of a figure over each sequence, float64 [sequences], beside the predictions in each, int [sequences]."""

    sums: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        """The figure per prediction."""
        return float(self.sums.sum() / self.counts.sum())


@dataclass(frozen=True)
class Difference:
    """A difference per token and its standard error."""

    value: float
    error: float

    @property
    def worse(self) -> bool:
        """True where it is above zero by more than two standard errors."""
        return self.value > 2 * self.error

    @property
    def better(self) -> bool:
        """True where it is below zero by more than two standard errors."""
        return self.value < -2 * self.error

    def __str__(self) -> str:
        """Thousandths, to a digit that the error reaches: -1.2 ± 0.3; in italics where it is worse."""
        digits = 1 if self.error >= 0.5e-4 else 2
        text = f"{1000 * self.value:+.{digits}f} ± {1000 * self.error:.{digits}f}"
        return f"*{text}*" if self.worse else text


def paired(ours: Sums, others: Sums) -> Difference:
    """Returns by how much a figure of ours is above that of others on the same sequences, as this module's head has it.

    Raises ValueError where the sequences are not the same or fewer than two.
    """
    counts = ours.counts
    if not np.array_equal(counts, others.counts):
        raise ValueError("the two were not measured on the same sequences")
    if len(counts) < 2:
        raise ValueError("a standard error needs at least two sequences")
    difference, total, number = ours.sums - others.sums, counts.sum(), len(counts)
    value = difference.sum() / total
    square = np.square(difference - value * counts).sum() * number / (number - 1)
    return Difference(float(value), float(math.sqrt(square) / total))
