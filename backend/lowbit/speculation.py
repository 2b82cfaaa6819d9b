"""Speculation without a second model: an answer that quotes is guessed from what was read or said before.

A draft is what followed the last place where the newest tokens stood (prompt-lookup decoding, Saxena 2023). One pass
computes the logits after each drafted token, and tokens are chosen from them one by one as in plain steps, until one
differs from the draft: so the output is the same, bit for bit, greedy or sampled, with constraints and without. Owns
the drafts and when they pay; the scheduler makes the passes.
"""

from __future__ import annotations

import numpy as np

SHORTEST, LONGEST = 2, 6  # tokens that must, and may, agree with the earlier place
# What a drafted token costs, in steps: a pass over 8 tokens takes up to 1.7 times one over a single token.
TOKEN_COST = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 4, 128  # steps without a draft after drafts that did not pay


class Lookup:
    """Drafts for one row: as long as the last ones were good, none for a while where they do not pay."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._length = min(4, longest)
        self._gain = 0.0  # steps saved per draft, recent ones counted more
        self._pause = FIRST_PAUSE
        self._wait = 0

    def draft(self, ids: np.ndarray, room: int) -> np.ndarray:
        """Returns up to `room` ids that may follow `ids` (int32), possibly none."""
        length = min(self._length, room)
        if length < 1:
            return ids[:0]
        if self._wait:
            self._wait -= 1
            return ids[:0]
        return lookup(ids, length)

    def learn(self, drafted: int, accepted: int) -> None:
        """Takes note of how a draft went."""
        self._length = min(self._longest, 2 * drafted) if accepted == drafted else max(1, accepted + 1)
        self._gain += 0.3 * (accepted - TOKEN_COST * drafted - self._gain)
        if self._gain >= 0:
            self._pause = FIRST_PAUSE
        else:
            self._wait, self._pause, self._gain = self._pause, min(2 * self._pause, LONGEST_PAUSE), 0.0


def lookup(ids: np.ndarray, length: int) -> np.ndarray:
    """Returns the up to `length` ids after the latest earlier place that ends like `ids`: LONGEST tokens alike where
    there is one, else as many as agree, SHORTEST at least; empty where there is none."""
    if ids.size <= SHORTEST:
        return ids[:0]
    places, agree = np.flatnonzero(ids[:-1] == ids[-1]), 1
    while agree < LONGEST:
        longer = places[places >= agree]
        longer = longer[ids[longer - agree] == ids[-1 - agree]]
        if not longer.size:
            break
        places, agree = longer, agree + 1
    if agree < SHORTEST or not places.size:
        return ids[:0]
    start = int(places[-1]) + 1
    return ids[start : start + length]
