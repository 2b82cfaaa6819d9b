"""Sessions: KV caches in use and a bounded number kept idle, so that a known prefix is not computed again.

A session is exclusive while in use. Idle ones remember the token ids in their cache. A prompt that goes on where one
ends (a chat's next turn) takes it over; one that shares a beginning with it, or with a session in use (a system prompt,
a document), gets a fork: the caches share the memory of what they have in common, and both go on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

IDLE_SESSIONS = 32
# What all idle caches together may hold: room for so many tokens, but at least so many bytes. The latest one stays
# whatever its length.
IDLE_TOKENS = 16384
IDLE_BYTES = 64 << 20
MIN_REUSE = 16  # tokens; for a shorter common prefix (the BOS token, a role header) a fork is not worth it


class Cache(Protocol):
    """A KV cache: how many positions it holds and can hold; `truncate` keeps the first n, `fork` returns a cache that
    begins with the first n of this one."""

    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    def truncate(self, length: int) -> None: ...
    def fork(self, length: int) -> Cache: ...


class Session:
    """A cache in use. reused: prompt tokens it already held. usable: False after a broken pass, so it is not kept."""

    def __init__(self, cache: Cache, reused: int = 0) -> None:
        self.cache = cache
        self.reused = reused
        self.usable = True
        self.released = False


@dataclass(frozen=True, eq=False)
class Held:
    """A cache, and the ids of which it holds the first `cache.length` (int32)."""

    cache: Cache
    ids: np.ndarray

    def shared_with(self, prompt: np.ndarray) -> int:
        """Returns how many leading tokens of a prompt the cache holds, its last token not counted: its logits are
        needed, so it is computed."""
        return common_prefix(self.ids[: self.cache.length], prompt[:-1])


class SessionPool:
    """Hands out sessions and keeps up to `idle` finished ones within a memory bound, dropping the longest unused.

    idle_bytes: the bound; None = IDLE_TOKENS tokens of this model, at least IDLE_BYTES.
    """

    def __init__(self, engine: Any, idle: int = IDLE_SESSIONS, idle_bytes: int | None = None) -> None:
        self._engine = engine
        self._limit = idle
        self.idle_bytes = max(IDLE_TOKENS * engine.token_bytes, IDLE_BYTES) if idle_bytes is None else idle_bytes
        self._idle: list[Held] = []  # least recently used first
        # Re-entrant: the garbage collector may close an abandoned stream, and so release its session, anywhere in here.
        self._lock = threading.RLock()

    @property
    def idle(self) -> int:
        """Number of idle sessions."""
        return len(self._idle)

    def bytes(self, in_use: Iterable[Cache] = ()) -> int:
        """Returns what idle sessions and the caches in use hold together, shared memory counted once."""
        with self._lock:
            return int(self._engine.kv_bytes([*(held.cache for held in self._idle), *in_use]))

    def acquire(self, prompt: np.ndarray, tokens: int, running: Iterable[Held] = ()) -> Session:
        """Returns a session for a prompt (int32) that may grow to `tokens`, holding as much of the prompt as is known
        to an idle session or a running one (none of which is in a pass meanwhile)."""
        capacity = self._engine.capacity(tokens)
        with self._lock:
            best, shared = None, 0
            # Caches of another capacity may encode positions otherwise (rotary tables for long contexts). Idle ones
            # first, the latest before the others: taking over beats forking.
            for held in (*reversed(self._idle), *running):
                if held.cache.capacity == capacity and (n := held.shared_with(prompt)) > shared:
                    best, shared = held, n
            if best is None or shared < min(MIN_REUSE, best.cache.length):
                return Session(self._engine.new_cache(capacity))
            if best in self._idle:
                self._idle.remove(best)
                if shared == best.cache.length:
                    return Session(best.cache, shared)
                self._idle.append(best)  # used just now
            return Session(best.cache.fork(shared), shared)

    def release(self, session: Session, ids: np.ndarray) -> None:
        """Takes a session back; `ids` begins with the tokens in its cache."""
        session.released = True
        if not session.usable or self._limit == 0:
            return
        with self._lock:
            self._idle.append(Held(session.cache, ids[: session.cache.length].copy()))
            del self._idle[: -self._limit]
            while len(self._idle) > 1 and self.bytes() > self.idle_bytes:
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
