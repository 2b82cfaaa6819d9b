"""The scheduler: decodes the rows of all callers of one model together, in a batch that grows and shrinks with them.

It has no thread. Whoever waits for an event and finds that nobody makes steps takes the turn and makes them, for every
row, until its own event is there; then the turn goes on to another who waits. So one caller alone pays nothing for the
others that might be (its tokens cross no thread), an idle model has nothing that could run, and a model that nobody
reads from computes nothing.

Owns which rows share a pass, how much of a prompt is prefilled beside running answers, and what an error costs whom.
Only who has the turn touches rows and sessions. `leave` may run anywhere, from the garbage collector too: it waits for
nothing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lowbit.requests import Engine, Event
from lowbit.rows import Mailbox, Row
from lowbit.sessions import MIN_REUSE, Held, SessionPool, common_prefix

# Events a reader may be behind before its row waits for it: enough for a thread that is late by some steps, and a bound
# on what is computed for nothing and kept in memory.
RUN_AHEAD = 16
FORK_PATIENCE = 60.0  # seconds that os.fork() waits for a step at most
Share = tuple[Row, np.ndarray, np.ndarray]
# Prompt tokens per pass while other rows step, so that their next token is a short pass away. 32 gave 0.8 to 1.0 of the
# prefill rate of 128 in a third of the time.
BESIDE_STEPS = 32


class Scheduler:
    """Runs rows over one engine. `submit` rows, `read` their events, `leave` before the end."""

    def __init__(self, engine: Engine, sessions: SessionPool, max_batch: int, prefill_chunk: int) -> None:
        self.engine = engine
        self.sessions = sessions
        self.max_batch = max_batch
        self.prefill_chunk = prefill_chunk
        self._new: deque[Row] = deque()
        self._gone: deque[Row] = deque()
        self._rows: list[Row] = []  # oldest first; the first max_batch that can run share a pass
        self._turn = threading.Lock()
        self._waiting: dict[Mailbox, None] = {}
        self._stepping = 0  # the thread that makes a step
        self._held_for_fork = False
        _schedulers.add(self)

    def submit(self, rows: Iterable[Row]) -> None:
        """Takes rows in; they run once somebody reads."""
        self._new.extend(rows)

    def leave(self, rows: Iterable[Row]) -> None:
        """Takes rows out: their sessions are free now, or after the step that somebody is making."""
        self._gone.extend(rows)
        self._tidy()

    def read(self, mailbox: Mailbox) -> Event:
        """Returns the next event of a mailbox, or raises the error that came instead; makes the steps that lead to it
        where nobody else does. The mailbox's rows must owe an event."""
        try:
            while True:
                if mailbox.empty() and self._turn.acquire(blocking=False):
                    try:
                        while mailbox.empty():
                            self._step()
                    finally:
                        self._turn.release()
                item = self._next(mailbox)
                if isinstance(item, BaseException):
                    raise item
                if item is not None:
                    return item
        finally:
            self._tidy()

    @property
    def running(self) -> list[Any]:
        """The caches in use."""
        return [row.held.cache for row in list(self._rows) if row.held is not None and not row.finished]

    # ---- the turn ----------------------------------------------------------------------------------------------

    def _next(self, mailbox: Mailbox) -> Event | BaseException | None:
        """The mailbox's next item; waits for it while somebody else has the turn."""
        if not mailbox.empty():
            return mailbox.get()
        self._waiting[mailbox] = None
        try:
            # Looked at after entering the list: who gave the turn back before that has not seen this mailbox in it.
            return mailbox.get() if self._turn.locked() or not mailbox.empty() else None
        finally:
            self._waiting.pop(mailbox, None)

    def _tidy(self) -> None:
        """Does what follows every end of a turn: lets go of the rows that left meanwhile, which their callers could
        not do, and calls one of those who wait to take the turn."""
        while self._gone and self._turn.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._turn.release()
        while self._waiting and not self._turn.locked():
            try:
                mailbox, _ = self._waiting.popitem()
            except KeyError:  # the last one has just woken by itself
                return
            if mailbox.empty():  # else its reader is awake, and will come here too
                mailbox.put(None)
                return

    # ---- with the turn -----------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Lets new rows in and finished or departed ones out."""
        while self._new:
            self._rows.append(self._new.popleft())
        while self._gone:
            self._gone.popleft().finished = True
        for row in [row for row in self._rows if row.finished]:
            self._rows.remove(row)
            row.leave()
            if row.session is not None and not row.session.released:
                row.settle()
                self.sessions.release(row.session, row.ids)

    def _step(self) -> None:
        """One pass for the rows that can run, and the choice of their next tokens."""
        self._stepping = threading.get_ident()
        self._collect()
        for row in self._rows:
            if row.cancelled:
                row.deliver(Event(row.index, None, "cancelled"))
        running = [row for row in self._rows if not row.finished and row.unread < RUN_AHEAD][: self.max_batch]
        for row in running:
            if row.session is None:
                self._admit(row)
            else:
                row.settle()
        for row, draft, logits in self._forward(self._shares([row for row in running if row.session is not None])):
            try:
                row.choose_all(logits, draft)
            except Exception as error:  # NaN logits, a constraint that allows nothing or breaks: this row's alone
                row.fail(error)
            row.settle()
        self._collect()

    def _admit(self, row: Row) -> None:
        """Gives a row its session, unless another is just prefilling what both begin with: then it waits for that."""
        if row.waits_for is not None:
            other, length = row.waits_for
            if not other.finished and _cache(other).length < length:
                return
        prompt = row.ids[: row.count]
        running = [other for other in self._rows if other.held is not None and not other.finished]
        for other in running:
            shared = common_prefix(other.ids[: other.count], prompt[:-1])
            if shared >= _cache(other).length + MIN_REUSE and _cache(other).capacity == self.engine.capacity(
                row.ids.size
            ):
                row.waits_for = other, shared
                return
        row.session = self.sessions.acquire(prompt, row.ids.size, [other.held for other in running if other.held])
        row.held = Held(row.session.cache, row.ids)
        row.reused = row.session.reused

    def _shares(self, rows: list[Row]) -> list[Share]:
        """Returns what each row puts into the pass: (row, ids, of which the last so many are a draft).

        Rows that step take one token each, and a draft where nobody shares the pass (in a batch a drafted token costs
        what another row's token does); the prompts still to prefill share the rest of the chunk, first come first.
        """
        stepping = sum(row.pending.size == 1 for row in rows)
        room = max(min(self.prefill_chunk, BESIDE_STEPS) if stepping else self.prefill_chunk, 1)
        shares = []
        for row in rows:
            pending, draft = row.pending, row.ids[:0]
            if pending.size > 1:
                pending = pending[:room]
                room -= pending.size
            elif len(rows) == 1:
                draft = row.draft()
            if pending.size:
                shares.append((row, np.concatenate([pending, draft]) if draft.size else pending, draft))
        return shares

    def _forward(self, shares: list[Share]) -> list[Share]:
        """Runs one pass; returns (row, draft, logits after its last token and each drafted one) of those whose prompt
        is complete.

        A pass that fails is tried again row by row, so that one row too many for the memory does not end the others.
        """
        if not shares:
            return []
        before = [_cache(row).length for row, _, _ in shares]
        try:
            logits = self.engine.forward([(_cache(row), ids, draft.size > 0) for row, ids, draft in shares])
        except BaseException as error:
            for (row, _, _), length in zip(
                shares, before, strict=True
            ):  # what a broken pass appended is not to be used
                _cache(row).truncate(min(length, _cache(row).length))
            if not isinstance(error, Exception):
                raise
            if len(shares) > 1:
                return [done for share in shares for done in self._forward([share])]
            row = shares[0][0]
            assert row.session is not None
            row.session.usable = False
            row.fail(error)
            return []
        results, at = [], 0
        for row, _, draft in shares:
            if draft.size or not row.pending.size:
                results.append((row, draft, logits[at : at + 1 + draft.size]))
            at += 1 + draft.size
        return results

    # ---- forks -------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Waits for the end of a step, so that the child finds no native lock taken by a thread it does not have."""
        if not (self._turn.locked() and self._stepping == threading.get_ident()):  # not from within our own step
            self._held_for_fork = self._turn.acquire(timeout=FORK_PATIENCE)

    def after_fork_in_parent(self) -> None:
        if self._held_for_fork:
            self._held_for_fork = False
            self._turn.release()
            self._tidy()

    def after_fork_in_child(self) -> None:
        """Ends the rows, which belong to callers in the parent. Kept sessions stay."""
        for row in (*self._rows, *self._new):
            row.fail(RuntimeError("this generation began before os.fork() and goes on in the parent process only"))
        self._new.clear()
        self._gone.clear()
        self._rows.clear()
        self._waiting.clear()
        self._held_for_fork = False
        self._turn = threading.Lock()


def _cache(row: Row) -> Any:
    assert row.session is not None
    return row.session.cache


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _for_all(method: Callable[[Scheduler], None]) -> Callable[[], None]:
    # In the same order everywhere: two threads that fork at once must not wait for each other.
    def run() -> None:
        for scheduler in sorted(_schedulers, key=id):
            method(scheduler)

    return run


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_for_all(Scheduler.before_fork),
        after_in_parent=_for_all(Scheduler.after_fork_in_parent),
        after_in_child=_for_all(Scheduler.after_fork_in_child),
    )
