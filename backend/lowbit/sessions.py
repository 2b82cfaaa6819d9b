"""Sessions: KV caches in use and a bounded number kept idle, so that a known prefix is not computed again.

A session is exclusive while in use. Idle ones remember the token ids in their cache; a new prompt takes the one with
the longest common prefix, cut back to it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

IDLE_TOKENS = 16384  # that all idle caches together have room taken for; the latest one stays whatever its length
MIN_REUSE = 16  # tokens; a shorter common prefix (the BOS token, a role header) is not worth another session's content


class Cache(Protocol):
    """A KV cache: how many positions it holds and can hold; `truncate` keeps the first n."""

    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    def truncate(self, length: int) -> None: ...


class Session:
    """A cache in use. reused: prompt tokens it already held. usable: False after a broken pass, so it is not kept.
    touched: positions it had ever held before."""

    def __init__(self, cache: Cache, reused: int = 0, touched: int = 0) -> None:
        self.cache = cache
        self.reused = reused
        self.touched = touched
        self.usable = True
        self.released = False


@dataclass(frozen=True, eq=False)
class _Idle:
    cache: Cache
    ids: np.ndarray  # in the cache, int32
    touched: int  # positions the cache has ever held: a truncated cache keeps their memory


class SessionPool:
    """Hands out sessions and keeps up to `idle` finished ones within a memory bound, dropping the longest unused."""

    def __init__(self, engine: Any, idle: int, idle_tokens: int = IDLE_TOKENS) -> None:
        self._engine = engine
        self._limit = idle
        self._token_limit = idle_tokens
        self._idle: list[_Idle] = []  # least recently used first
        # Re-entrant: the garbage collector may close an abandoned stream, and so release its session, anywhere in here.
        self._lock = threading.RLock()

    @property
    def idle(self) -> int:
        """Number of idle sessions."""
        return len(self._idle)

    def acquire(self, prompt: np.ndarray, tokens: int) -> Session:
        """Returns a session for a prompt (int32) that may grow to `tokens`, holding as much of the prompt as is known.

        At least the prompt's last token is left to compute, because its logits are needed.
        """
        capacity = self._engine.capacity(tokens)
        with self._lock:
            # Caches of another capacity may encode positions otherwise (rotary tables for long contexts).
            candidates = [idle for idle in self._idle if idle.cache.capacity == capacity]
            taken, shared = None, 0
            for idle in candidates:
                n = common_prefix(idle.ids, prompt[:-1])
                if n >= shared and (n >= MIN_REUSE or n == idle.ids.size):
                    taken, shared = idle, n
            if taken is None and candidates and len(self._idle) >= self._limit:
                taken = candidates[0]  # its memory is there already
            if taken is not None:
                self._idle = [idle for idle in self._idle if idle is not taken]
        if taken is None:
            return Session(self._engine.new_cache(capacity))
        taken.cache.truncate(shared)
        return Session(taken.cache, shared, taken.touched)

    def release(self, session: Session, ids: np.ndarray) -> None:
        """Takes a session back; `ids` begins with the tokens in its cache."""
        session.released = True
        if not session.usable or self._limit == 0:
            return
        length = session.cache.length
        with self._lock:
            self._idle.append(_Idle(session.cache, ids[:length].copy(), max(session.touched, length)))
            del self._idle[: -self._limit]
            while len(self._idle) > 1 and sum(idle.touched for idle in self._idle) > self._token_limit:
                self._idle.pop(0)

    def clear(self) -> None:
        """Drops all idle sessions and with them their memory."""
        with self._lock:
            self._idle.clear()


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many leading elements two 1-D arrays share."""
    n = min(a.size, b.size)
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n
