"""Sessions: KV caches in use and a bounded number kept idle, so that a known prefix is not computed again.

A session is exclusive while in use. Idle ones remember the token ids in their cache; a new prompt takes the one with
the longest common prefix, cut back to it.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np

MIN_REUSE = 16  # tokens; a shorter common prefix (the BOS token, a role header) is not worth another session's content


class Cache(Protocol):
    """A KV cache: how many positions it holds and can hold; `truncate` keeps the first n."""

    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    def truncate(self, length: int) -> None: ...


class Session:
    """A cache in use. reused: prompt tokens it already held. usable: False after a broken pass, so it is not kept."""

    def __init__(self, cache: Cache, reused: int = 0) -> None:
        self.cache = cache
        self.reused = reused
        self.usable = True
        self.released = False


class SessionPool:
    """Hands out sessions and keeps up to `idle` finished ones, dropping the longest unused."""

    def __init__(self, engine: Any, idle: int) -> None:
        self._engine = engine
        self._limit = idle
        self._idle: list[tuple[Cache, np.ndarray]] = []  # least recently used first; ids in the cache, int32
        self._lock = threading.Lock()

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
            best, shared = None, 0
            for i, (cache, ids) in enumerate(self._idle):
                if cache.capacity != capacity:  # positions may be encoded otherwise there (long-context rotary tables)
                    continue
                n = common_prefix(ids, prompt[:-1])
                if n >= shared and (n >= MIN_REUSE or n == ids.size):
                    best, shared = i, n
            if best is None and len(self._idle) >= self._limit > 0:
                best = next((i for i, (cache, _) in enumerate(self._idle) if cache.capacity == capacity), None)
            cache = self._idle.pop(best)[0] if best is not None else None
        if cache is None:
            return Session(self._engine.new_cache(capacity))
        cache.truncate(shared)
        return Session(cache, shared)

    def release(self, session: Session, ids: np.ndarray) -> None:
        """Takes a session back; `ids` begins with the tokens in its cache."""
        session.released = True
        if not session.usable or self._limit == 0:
            return
        with self._lock:
            self._idle.append((session.cache, ids[: session.cache.length].copy()))
            del self._idle[: -self._limit]

    def clear(self) -> None:
        """Drops all idle sessions and with them their memory."""
        with self._lock:
            self._idle.clear()


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many leading elements two 1-D arrays share."""
    n = min(a.size, b.size)
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n
