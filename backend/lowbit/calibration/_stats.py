"""What a linear layer's inputs look like over the calibration text: sums, a sample of rows, the second moments."""

from __future__ import annotations

import numpy as np


class Stats:
    """Sums over all rows seen, and a random sample of them.

    k: width of the inputs. keep: the share of rows that enters the sample. moments: whether X^T X is summed (GPTQ).
    """

    def __init__(self, k: int, keep: float, moments: bool, random: np.random.Generator) -> None:
        self.rows = 0
        self.squares = np.zeros(k, np.float64)  # [k], sum of x^2
        self.magnitudes = np.zeros(k, np.float64)  # [k], sum of |x|
        self.moments = np.zeros((k, k), np.float32) if moments else None
        self._keep, self._random = keep, random
        self._sample: list[np.ndarray] = []

    def add(self, x: np.ndarray) -> None:
        """Takes in float32 rows [n, k]."""
        self.rows += len(x)
        self.squares += np.square(x, dtype=np.float64).sum(0)
        self.magnitudes += np.abs(x).sum(0, dtype=np.float64)
        if self.moments is not None:
            self.moments += x.T @ x
        chosen = self._random.random(len(x)) < self._keep
        self._sample.append(x[chosen])

    @property
    def sample(self) -> np.ndarray:
        """Float32 [sampled rows, k]."""
        self._sample = [np.concatenate(self._sample)]
        return self._sample[0]

    @property
    def importance(self) -> np.ndarray:
        """The mean square of every input, float32 [k]: how much an error in its column of the weight costs."""
        return (self.squares / max(1, self.rows)).astype(np.float32)

    def divide(self, factors: np.ndarray) -> None:
        """Makes these the statistics of inputs divided by `factors` [k]."""
        self.squares /= np.square(factors, dtype=np.float64)
        self.magnitudes /= factors
        self._sample = [part / factors for part in self._sample]
        if self.moments is not None:
            self.moments /= np.outer(factors, factors)
