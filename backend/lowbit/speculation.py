"""Speculation: what comes next is guessed cheaply, and one pass of the model checks several guesses.

Guesses come from what was read or said before, where an answer quotes it (prompt-lookup decoding, Saxena 2023), and
from a small draft model where the caller gave one (Leviathan et al. 2023). One pass computes the logits after each
drafted token, and tokens are chosen from them one by one as in plain steps, until one differs from the draft: so the
output is the same, bit for bit, greedy or sampled, with constraints and without. Owns the drafts and when they pay; the
scheduler makes the passes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lowbit.sampling import GenerationOptions
from lowbit.sessions import Cache, Session, SessionPool, common_prefix

if TYPE_CHECKING:
    from lowbit.requests import Engine

logger = logging.getLogger(__name__)

SHORTEST, LONGEST = 2, 6  # tokens that must, and may, agree with the earlier place
# What a drafted token costs, in steps: a pass over 8 tokens takes up to 1.7 times one over a single token.
TOKEN_COST = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 4, 128  # steps without a draft after drafts that did not pay
CATCH_UP = 128  # tokens of the text so far that a draft model reads between two steps
SURE = math.log(0.4)  # a draft ends after a token that its model gives less than 0.4


class Drafter(Protocol):
    """Drafts for one row."""

    def draft(self, ids: np.ndarray, room: int) -> np.ndarray:
        """Returns up to `room` ids that may follow `ids` (int32), possibly none."""

    def learn(self, drafted: int, accepted: int) -> None:
        """Takes note of how the last draft went."""

    def close(self) -> None:
        """Ends the row."""


class Pauses:
    """When to draft: not for a while, twice as long each time, after drafts that did not pay."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._wait = 0

    def over(self) -> bool:
        """Returns whether to draft; counts the step."""
        if self._wait:
            self._wait -= 1
            return False
        return True

    def learn(self, paid: bool) -> None:
        if paid:
            self._pause = FIRST_PAUSE
        else:
            self._wait, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)


class Pace(Protocol):
    """How long the next draft is to be."""

    def length(self, room: int) -> int:
        """Returns how many tokens to draft, at most `room`; counts the step."""

    def learn(self, drafted: int, accepted: int) -> None:
        """Takes note of how the last draft went."""


class BurstPace:
    """For guesses that are all right for a while and then all wrong, as quotations: as long as the last ones were good.

    cost: of a drafted token, in steps of the model.
    """

    def __init__(self, longest: int, cost: float) -> None:
        self._longest = longest
        self._cost = cost
        self._length = min(4, longest)
        self._gain = 0.0  # steps saved per draft, recent ones counted more
        self._pauses = Pauses()

    def length(self, room: int) -> int:
        length = min(self._length, room)
        return length if length >= 1 and self._pauses.over() else 0

    def learn(self, drafted: int, accepted: int) -> None:
        self._length = min(self._longest, 2 * drafted) if accepted == drafted else max(1, accepted + 1)
        self._gain += 0.3 * (accepted - self._cost * drafted - self._gain)
        paid = self._gain >= 0
        self._pauses.learn(paid)
        if not paid:
            self._gain = 0.0


class SteadyPace:
    """For guesses each of which is right with about the same probability p, as a draft model's.

    The n-th token of a draft is accepted with probability p^n and pays where that is above its cost, in steps of the
    model; p is that of about the last 20 guesses.
    """

    def __init__(self, longest: int, cost: float) -> None:
        self._longest = longest
        self._cost = cost
        self._right, self._guesses = 3.2, 4.0  # nothing is known yet: 4 of 5 are right
        self._pauses = Pauses()

    def length(self, room: int) -> int:
        most = min(self._longest, room)
        if most < 1 or not self._pauses.over():
            return 0
        share = min(max(self._right / self._guesses, 0.01), 0.99)
        return max(1, min(most, int(math.log(min(self._cost, 1.0)) / math.log(share))))

    def learn(self, drafted: int, accepted: int) -> None:
        self._right = 0.95 * self._right + accepted
        self._guesses = 0.95 * self._guesses + min(drafted, accepted + 1)  # none is made behind a wrong one
        self._pauses.learn(self._right >= self._cost * self._guesses)


class Lookup:
    """Drafts from the row's own text."""

    def __init__(self, longest: int) -> None:
        self._pace = BurstPace(longest, TOKEN_COST)

    def draft(self, ids: np.ndarray, room: int) -> np.ndarray:
        length = self._pace.length(room)
        return lookup(ids, length) if length else ids[:0]

    def learn(self, drafted: int, accepted: int) -> None:
        self._pace.learn(drafted, accepted)

    def close(self) -> None:
        """Nothing is held."""


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


class DraftModel:
    """A small model of the same vocabulary that guesses for a large one.

    engine, sessions: the small model's. vocab_size: of the large model. cost: of a step of the small one, in steps of
    the large one.
    """

    def __init__(self, engine: Engine, sessions: SessionPool, vocab_size: int, cost: float) -> None:
        self.engine = engine
        self.sessions = sessions
        self.vocab_size = vocab_size
        self.cost = cost

    def logits(self, cache: Cache, ids: np.ndarray) -> np.ndarray:
        """Appends ids to a cache and returns the logits after them, float32 [vocab_size].

        The rows of one vocabulary may be padded to different lengths: what only the large model has is never drafted.
        """
        logits = self.engine.forward([(cache, ids, False)])[0]
        missing = self.vocab_size - logits.size
        return np.append(logits, np.full(missing, -np.inf, np.float32)) if missing > 0 else logits[: self.vocab_size]


# From logits (scratch afterwards) and the ids before them to (token, its log-probability), as the row itself chooses.
Choose = Callable[[np.ndarray, np.ndarray], tuple[int, float]]


class ModelDrafts:
    """Drafts by a `DraftModel`, for a row that may grow to `limit` ids.

    Their tokens are chosen as the row's are, with the same seed and position: where the models agree about the
    probabilities, they draw the same token.
    """

    def __init__(self, model: DraftModel, longest: int, choose: Choose, limit: int) -> None:
        self._model = model
        self._choose = choose
        self._pace: Pace = SteadyPace(longest, TOKEN_COST + model.cost)
        self._session: Session | None = None
        self._ids = np.empty(limit, np.int32)  # what the session's cache holds, and the last token of a draft

    def draft(self, ids: np.ndarray, room: int) -> np.ndarray:
        length = self._pace.length(room)
        if not length:
            return ids[:0]
        try:
            return self._draft(ids, length)
        except Exception:  # too little memory for a second cache, NaN weights: speed is lost, not the answer
            logger.warning("the draft model failed; this answer goes on without it", exc_info=True)
            self.close()
            self._pace = SteadyPace(0, 1.0)
            return ids[:0]

    def learn(self, drafted: int, accepted: int) -> None:
        self._pace.learn(drafted, accepted)

    def close(self) -> None:
        if self._session is not None:
            self._model.sessions.release(self._session, self._ids)
            self._session = None

    def _draft(self, ids: np.ndarray, length: int) -> np.ndarray:
        logits = self._read_up_to(ids)
        if logits is None:
            return ids[:0]
        for end in range(ids.size + 1, ids.size + 1 + length):
            token, logprob = self._choose(logits, self._ids[: end - 1])
            self._ids[end - 1] = token
            if end == ids.size + length or logprob < SURE or token >= self._model.engine.vocab_size:
                break
            logits = self._read(self._ids[end - 1 : end])
        return self._ids[ids.size : end].copy()

    def _read_up_to(self, ids: np.ndarray) -> np.ndarray | None:
        """Returns the logits after `ids`; None where they are too many to read at once, or beyond the vocabulary."""
        if self._session is None:
            self._session = self._model.sessions.acquire(ids, self._ids.size)
            self._ids[: self._session.reused] = ids[: self._session.reused]
        cache = self._session.cache
        cache.truncate(common_prefix(self._ids[: cache.length], ids[:-1]))  # guesses that were wrong
        pending = ids[cache.length :][:CATCH_UP]
        if (pending >= self._model.engine.vocab_size).any():
            return None
        logits = self._read(pending)
        return logits if cache.length == ids.size else None

    def _read(self, ids: np.ndarray) -> np.ndarray:
        assert self._session is not None
        cache = self._session.cache
        before = cache.length
        try:
            logits = self._model.logits(cache, ids)
        except BaseException:  # what a broken pass appended is not to be used
            cache.truncate(min(before, cache.length))
            raise
        self._ids[before : cache.length] = ids
        return logits


def drafters(
    options: GenerationOptions, longest: int, model: DraftModel | None, choose: Choose, limit: int
) -> list[Drafter]:
    """Returns what drafts for a row that may grow to `limit` ids, best first, up to `longest` tokens at a time.

    Where options.speculate is None: the row's own text if the answer is greedy, a draft model if there is one.
    """
    if longest < 1 or options.speculate is False:
        return []
    found: list[Drafter] = [Lookup(longest)] if options.greedy or options.speculate else []
    if model is not None and limit <= model.engine.context:
        found.append(ModelDrafts(model, longest, choose, limit))
    return found
