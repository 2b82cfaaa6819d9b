"""Generation: token ids in, token ids out, for any number of prompts at once. Knows no text.

Owns the door: a call's rows as one iterator of events. Rows of all calls are decoded together (scheduler.py) over
sessions that remember what they computed (sessions.py). Everything else is a fold over `Generator.start`.

Thread safety: any thread may start a batch at any time; one thread at a time reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from lowbit.requests import Engine, Event, Request
from lowbit.rows import Mailbox, Row
from lowbit.scheduler import Scheduler
from lowbit.sessions import IDLE_SESSIONS, SessionPool
from lowbit.speculation import DraftModel

__all__ = ["MAX_BATCH", "PREFILL_CHUNK", "Batch", "Engine", "Event", "Generator", "Request"]

# Rows decoded together; others wait and enter as rows leave. On a 0.5 B model and two cores 16 rows gave 1.5 times the
# tokens per second of 8 and 9 times those of one; more rows make every row slow.
MAX_BATCH = 16
# Prompt tokens per forward pass; cancellation is honoured between passes. 128 gave 96 % of the prefill rate of 512.
PREFILL_CHUNK = 128


class Batch:
    """The rows of one `Generator.start` call: an iterator of events, a context manager.

    `finish(row)` takes a row out (its stop string was found); `close()` ends everything and frees the sessions at once,
    or after the pass they are in. Nothing is computed before the first event is asked for.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        requests: Sequence[Request],
        cancel: threading.Event | None,
        draft_model: DraftModel | None = None,
    ) -> None:
        self._mailbox: Mailbox = Mailbox()
        self._scheduler = scheduler
        self._rows = [Row(i, r, scheduler.engine, self._mailbox, cancel, draft_model) for i, r in enumerate(requests)]
        self._started = False
        self._open = len(self._rows)  # that owe an event

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while self._open:
            if not self._started:
                self._started = True
                self._scheduler.submit(self._rows)
            try:
                event = self._scheduler.read(self._mailbox)
            except BaseException:
                self.close()
                raise
            row = self._rows[event.row]
            row.taken += 1
            if row.closed:
                continue
            if event.token is not None and row.cancelled:  # not even what has been computed ahead
                event = Event(row.index, None, "cancelled")
            if event.finish_reason is not None:
                self.finish(row.index)
            return event
        raise StopIteration

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_open"):  # not where the constructor refused a prompt
            self.close()

    def finish(self, row: int) -> None:
        """Takes a row out of the batch; no further event of it comes."""
        self._take_out([self._rows[row]])

    def close(self) -> None:
        """Ends the batch and frees its sessions; further iteration ends at once."""
        self._take_out(self._rows)

    def prompt_tokens(self, row: int) -> int:
        """Returns the length of a row's prompt."""
        return self._rows[row].prompt_tokens

    def cached_tokens(self, row: int) -> int:
        """Returns how many tokens of a row's prompt came from a kept session (0 before its prefill)."""
        return self._rows[row].reused

    def _take_out(self, rows: Sequence[Row]) -> None:
        leaving = [row for row in rows if not row.closed]
        for row in leaving:
            row.closed = True
        self._open -= len(leaving)
        unfinished = [row for row in leaving if not row.finished]
        if self._started and unfinished:
            self._scheduler.leave(unfinished)


class Generator:
    """Generates with one engine, and keeps idle sessions within a memory bound: a prompt that begins like an earlier or
    running one is prefilled only from where it differs, and what they share is held once. draft_model: guesses what the
    engine then checks, several tokens in one pass."""

    def __init__(
        self,
        engine: Engine,
        *,
        idle_sessions: int = IDLE_SESSIONS,
        idle_bytes: int | None = None,
        max_batch: int = MAX_BATCH,
        prefill_chunk: int = PREFILL_CHUNK,
        draft_model: DraftModel | None = None,
    ) -> None:
        self.engine = engine
        self._draft_model = draft_model
        self.sessions = SessionPool(engine, idle_sessions, idle_bytes)
        self._scheduler = Scheduler(engine, self.sessions, max_batch, prefill_chunk)

    @property
    def max_batch(self) -> int:
        """Most rows that are decoded together; a caller with more of them gains nothing by asking for more at once."""
        return self._scheduler.max_batch

    def start(self, requests: Sequence[Request], *, cancel: threading.Event | None = None) -> Batch:
        """Returns the events of several prompts, decoded together with those of other calls. `cancel` ends all rows,
        options.cancel its own.

        Raises ValueError for an empty prompt, an id outside the vocabulary, a prompt that leaves no room in the context
        or under max_length; nothing is truncated.
        """
        return Batch(self._scheduler, requests, cancel, self._draft_model)

    def memory(self) -> dict[str, int]:
        """Returns bytes and counts of the key-value caches: idle_sessions, idle_bytes and idle_limit_bytes of those
        kept; running_sessions; kv_bytes of all together, what they share counted once; token_bytes of one token."""
        running = self._scheduler.running
        return {
            "token_bytes": self.engine.token_bytes,
            "idle_sessions": self.sessions.idle,
            "idle_bytes": self.sessions.bytes(),
            "idle_limit_bytes": self.sessions.idle_bytes,
            "running_sessions": len(running),
            "kv_bytes": self.sessions.bytes(running),
        }
