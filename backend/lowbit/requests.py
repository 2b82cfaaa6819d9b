"""What one asks of a generator and what comes back: `Request`, `Event`, and the engine's protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lowbit.sampling import GenerationOptions
from lowbit.sessions import Cache


class Engine(Protocol):
    """What computes logits: the native decoder (engine.py), or a toy in tests."""

    vocab_size: int
    context: int  # longest sequence, in tokens
    token_bytes: int  # of a cache, per token
    exact_tokens: int  # of one part whose logits are those of single steps to the last bit

    def capacity(self, tokens: int) -> int:
        """Returns the capacity of the cache to use for a sequence that may grow to that many tokens."""

    def new_cache(self, capacity: int) -> Cache:
        """Returns an empty cache, which takes memory as it fills."""

    def kv_bytes(self, caches: Sequence[Cache]) -> int:
        """Returns the bytes that caches hold together, shared memory counted once."""

    def forward(self, parts: list[tuple[Cache, np.ndarray, bool]]) -> np.ndarray:
        """Appends int32 tokens to each cache; returns float32 [rows, vocab_size], logits of the last token of each part
        (of all its tokens where the third item is True)."""


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    prompt: token ids, at least one. eos: ids that end the answer. allowed: called before each choice with the output
    ids so far (int32), returns the tokens allowed next as uint32 bit words [ceil(vocab / 32)], or None for all. It runs
    in whichever thread makes the step, never in two at once.
    """

    prompt: Sequence[int] | np.ndarray
    options: GenerationOptions
    eos: tuple[int, ...] = ()
    allowed: Callable[[np.ndarray], np.ndarray | None] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One generated token of one row, or the end of a row ("cancelled" comes without a token).

    finish_reason: None, "stop" (token is an eos id), "length" or "cancelled". logprob and alternatives [(id, logprob)]:
    where options.logprobs asks for them.
    """

    row: int
    token: int | None
    finish_reason: str | None = None
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
